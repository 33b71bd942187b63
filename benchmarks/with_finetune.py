"""The contender glmkit, training: its own loop over its own modules; see worker.py."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker import serve


class Contender:
    """The model of a folder with a fresh LoRA on all linears of its blocks.

    :param batch_size: samples of a pass.
    :param accumulation: passes of a step.
    :param plain: expand weights that lie rounded while loading.
    """

    def __init__(
        self, folder: str, rank: int, batch_size: int, accumulation: int, plain: bool = False
    ) -> None:
        import torch

        from glmkit.runtime.loading import load_local
        from glmkit.training.config import TrainConfig
        from glmkit.training.fusing import fuse
        from glmkit.training.precision import quantisation, training_dtype
        from glmkit.training.tunings.lora import LoraTuning

        self.folder = Path(folder)
        self.tuning = LoraTuning(self.folder, rank=rank, alpha=2 * rank, targets=("all",))
        self.config = TrainConfig(
            model=folder, batch_size=batch_size, gradient_accumulation=accumulation
        )
        device = torch.device("cpu")
        dtype = training_dtype(self.config, self.tuning, device)
        self.dtype = str(dtype).removeprefix("torch.")
        self.quantize = None
        if not plain:
            self.quantize = quantisation(self.config, self.tuning, device, dtype)
        local = load_local(self.folder, dtype=self.dtype, quantize=self.quantize)
        self.model = local.model
        torch.manual_seed(0)
        self.tuning.dress(self.model)
        fuse(self.model)

    def rows(self, file: str, count: int, max_length: int) -> list[dict[str, Any]]:
        """Return the first samples of a file as token ids with labels, -100 where none counts."""
        from itertools import islice

        from glmkit.dataset.data import open_data
        from glmkit.training.encoding import SampleEncoder

        encoder = SampleEncoder.open(self.folder, max_length=max_length)
        samples = list(islice(open_data([file]).samples(), count))
        examples = [row for each in encoder.encode(samples) for row in each.rows]
        return [
            {
                "ids": each.ids.tolist(),
                "labels": [
                    int(token) if weight else -100
                    for token, weight in zip(each.ids, each.weights, strict=True)
                ],
            }
            for each in examples
        ]

    def train(self, rows: list[dict[str, Any]], learning_rate: float) -> dict[str, Any]:
        """Train once on rows in their order.

        :return: seconds of the steps, tokens, and the loss of each step.
        """
        from dataclasses import replace

        import torch

        from glmkit.training.checkpoint import Checkpoints
        from glmkit.training.crew import Alone
        from glmkit.training.keeping import freed_memory_kept
        from glmkit.training.learner import Learner
        from glmkit.training.loop import Work, learn
        from glmkit.training.optimizers import optimizer_of, schedule_of

        config = replace(self.config, learning_rate=learning_rate, scheduler="constant")
        optimizer = optimizer_of(config, self.tuning.groups(self.model, config))
        feed = _InOrder.of(rows, config.batch_size, config.gradient_accumulation)
        crew = Alone(torch.device("cpu"))
        with tempfile.TemporaryDirectory() as folder, freed_memory_kept():
            work = Work(
                replace(config, save_steps=1 << 30),
                Learner(self.model),
                feed,
                crew,
                optimizer,
                schedule_of(replace(config, warmup_ratio=0), optimizer, feed.steps()),
                feed.steps(),
                Checkpoints(Path(folder), self.tuning, 1),
            )
            started = time.perf_counter()
            losses = []
            for line in learn(work):
                losses.append(line.loss)
                if line.step == line.total:  # what follows is saving
                    break
            seconds = time.perf_counter() - started
        return {"seconds": seconds, "tokens": feed.all_tokens, "losses": losses}

    def about(self) -> dict[str, Any]:
        """Return versions and settings."""
        import torch

        import glmkit

        return {
            "glmkit": glmkit.__version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "dtype": self.dtype,
            "weights": self.quantize or self.dtype,
            "batch_size": self.config.batch_size,
            "gradient_accumulation": self.config.gradient_accumulation,
        }


@dataclass
class _InOrder:
    """A feed that keeps the order of its rows."""

    parts: Sequence[Sequence[Any]]
    """Batches of each step."""

    @classmethod
    def of(cls, rows: list[dict[str, Any]], size: int, passes: int) -> _InOrder:
        import numpy as np

        from glmkit.training.batches import Batch, Example

        examples = [
            Example(
                np.array(each["ids"], np.int32),
                (np.array(each["labels"]) >= 0).astype(np.float32),
            )
            for each in rows
        ]
        batches = [Batch.of(examples[at : at + size]) for at in range(0, len(examples), size)]
        return cls([batches[at : at + passes] for at in range(0, len(batches), passes)])

    @property
    def all_tokens(self) -> int:
        return sum(self.tokens(0, step) for step in range(self.steps()))

    def steps(self, epoch: int = 0) -> int:
        return len(self.parts)

    def batches(self, epoch: int, step: int, rank: int) -> Sequence[Any]:
        return self.parts[step]

    def weight(self, epoch: int, step: int) -> float:
        return sum(each.weight for each in self.parts[step])

    def tokens(self, epoch: int, step: int) -> int:
        return sum(len(each.ids) for each in self.parts[step])


if __name__ == "__main__":
    serve(Contender)
