"""The contender transformers: the same weights, dequantised, by its generate; see worker.py."""

from __future__ import annotations

import time
from typing import Any

from worker import serve

_PAGE, _BATCH_TOKENS = 64, 512


class Contender:
    """A checkpoint in Hugging Face layout.

    :param dtype: ``float32`` or ``bfloat16``.
    """

    def __init__(self, folder: str, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig, logging

        logging.disable_progress_bar()
        self.torch, self.configure = torch, GenerationConfig
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model.eval()
        self.model.generation_config.eos_token_id = None  # every run is as long as it is asked to

    def _config(self, tokens: int) -> Any:  # noqa: ANN401
        return self.configure(max_new_tokens=tokens, do_sample=False, pad_token_id=0)

    def decode(self, prompts: list[list[int]], tokens: int, size: int) -> dict[str, float]:
        """Decode in batches padded on the left, ``size`` prompts at a time."""
        started = time.perf_counter()
        for at in range(0, len(prompts), size):
            self._padded(prompts[at : at + size], tokens)
        return {"seconds": time.perf_counter() - started, "tokens": len(prompts) * tokens}

    def _padded(self, prompts: list[list[int]], tokens: int) -> None:
        width = max(map(len, prompts))
        ids = self.torch.tensor([[0] * (width - len(each)) + each for each in prompts])
        mask = self.torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts])
        made = self.model.generate(ids, attention_mask=mask, generation_config=self._config(tokens))
        assert made.shape == (len(prompts), width + tokens), made.shape

    def continuous(self, prompts: list[list[int]], tokens: int) -> dict[str, float]:
        """Decode by continuous batching, with a cache that holds all prompts and answers.

        Left to itself it sizes its cache, and masks as wide, by the memory that is free, and spends
        most of its time on filling them.
        """
        from transformers import ContinuousBatchingConfig

        pages = sum(-(-(len(each) + tokens) // _PAGE) for each in prompts)
        config = ContinuousBatchingConfig(
            page_size=_PAGE, num_blocks=pages + 8, max_batch_tokens=_BATCH_TOKENS
        )
        started = time.perf_counter()
        made = self.model.generate_batch(
            inputs=prompts,
            generation_config=self._config(tokens),
            continuous_batching_config=config,
        )
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "tokens": sum(len(each.generated_tokens) for each in made.values()),
        }

    def turn(self, ids: list[int]) -> dict[str, float]:
        """Return when the first token of an answer comes; it has no memory of earlier turns."""
        started = time.perf_counter()
        self._padded([ids], 1)
        return {"first": time.perf_counter() - started}

    def about(self) -> dict[str, Any]:
        """Return versions and settings."""
        import transformers

        return {
            "transformers": transformers.__version__,
            "torch": self.torch.__version__,
            "threads": self.torch.get_num_threads(),
        }


if __name__ == "__main__":
    serve(Contender)
