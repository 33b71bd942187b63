"""The contender openvino-genai: the same GGUF; see worker.py."""

from __future__ import annotations

import time
from typing import Any

from worker import serve


class Contender:
    """A GGUF file on the processor.

    :param rows: how many answers run side by side; None: its settings for single answers.
    """

    def __init__(self, gguf: str, rows: int | None = None) -> None:
        import openvino_genai

        self.library = openvino_genai
        if rows is None:
            self.pipe = openvino_genai.LLMPipeline(gguf, "CPU")
            return
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs, scheduler.max_num_batched_tokens = rows, 2048
        scheduler.cache_size = 2  # GB
        scheduler.enable_prefix_caching = True
        self.pipe = openvino_genai.LLMPipeline(gguf, "CPU", scheduler_config=scheduler)

    def _config(self, tokens: int) -> Any:  # noqa: ANN401
        config = self.library.GenerationConfig()
        config.max_new_tokens, config.ignore_eos = tokens, True
        config.do_sample, config.apply_chat_template = False, False
        return config

    def decode(self, prompts: list[str], tokens: int) -> dict[str, float]:
        """Decode greedily; prompts are texts with their special tokens."""
        lengths = [self.pipe.get_tokenizer().encode(each).input_ids.shape[1] for each in prompts]
        started = time.perf_counter()
        metrics = self.pipe.generate(prompts, self._config(tokens)).perf_metrics
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "tokens": metrics.get_num_generated_tokens(),
            "prompt": sum(lengths),
        }

    def turn(self, prompt: str) -> dict[str, float]:
        """Return when the first token of an answer comes; nothing is kept from earlier turns."""
        started = time.perf_counter()
        self.pipe.generate([prompt], self._config(1))
        return {"first": time.perf_counter() - started}

    def chat(self, system: str, asked: list[str], tokens: int) -> list[float]:
        """Hold a chat in the mode that keeps earlier turns; return each turn's first token."""
        config = self._config(tokens)
        config.apply_chat_template = True
        self.pipe.start_chat(system)
        answers = [self.pipe.generate([text], config) for text in asked]
        self.pipe.finish_chat()
        return [each.perf_metrics.get_ttft().mean / 1000 for each in answers]

    def about(self) -> dict[str, Any]:
        """Return versions."""
        return {"openvino-genai": self.library.__version__}


if __name__ == "__main__":
    serve(Contender)
