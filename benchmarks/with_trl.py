"""The contender TRL: its SFTTrainer on the same weights in Llama's layout; see worker.py."""

from __future__ import annotations

import tempfile
import time
from typing import Any

from worker import serve

_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Contender:
    """A checkpoint in Hugging Face layout with a fresh LoRA on all linears of its blocks.

    :param settings: what SFTConfig is told beside what is not about speed.
    :param attention: how transformers computes attention; None: as it chooses.
    :param packs: whether the driver's rows may be put together into longer ones.
    """

    def __init__(
        self, folder: str, settings: dict[str, Any], rank: int, attention: str | None = None
    ) -> None:
        import torch
        import transformers
        import trl
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.torch, self.trl, self.transformers = torch, trl, transformers
        self.settings, self.folder = settings, folder
        torch.manual_seed(0)
        bare = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        )
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        lora = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.0,
            target_modules=_LINEARS,
            task_type="CAUSAL_LM",
        )
        self.model = get_peft_model(bare, lora)

    def train(self, rows: list[dict[str, Any]], learning_rate: float) -> dict[str, Any]:
        """Train once on rows of token ids with labels, in their order; the trainer is made first.

        :return: seconds of the steps, real tokens, and the loss of each step.
        """
        from datasets import Dataset

        data = Dataset.from_list(
            [{"input_ids": each["ids"], "labels": each["labels"]} for each in rows]
        )
        with tempfile.TemporaryDirectory() as folder:
            config = self.trl.SFTConfig(
                output_dir=folder,
                use_cpu=True,
                num_train_epochs=1,
                learning_rate=learning_rate,
                lr_scheduler_type="constant",
                train_sampling_strategy="sequential",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **{"logging_steps": 1, **self.settings},
            )
            trainer = self.trl.SFTTrainer(
                self.model, args=config, train_dataset=data, processing_class=self.tokenizer
            )
            started = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - started
        losses = [each["loss"] for each in trainer.state.log_history if "loss" in each]
        return {
            "seconds": seconds,
            "tokens": sum(len(each["ids"]) for each in rows),
            "losses": losses,
        }

    def about(self) -> dict[str, Any]:
        """Return versions and settings."""
        return {
            "trl": self.trl.__version__,
            "transformers": self.transformers.__version__,
            "torch": self.torch.__version__,
            "threads": self.torch.get_num_threads(),
            "settings": self.settings,
        }


if __name__ == "__main__":
    serve(Contender)
