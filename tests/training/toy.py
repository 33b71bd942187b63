"""A toy to train: a table of bigrams, in a run folder, by the real loop."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from glmkit.training.batches import Batch, Example, Feed, Listed
from glmkit.training.checkpoint import Checkpoints
from glmkit.training.config import TrainConfig
from glmkit.training.crew import Alone
from glmkit.training.learner import Loss
from glmkit.training.loop import Work, total_steps
from glmkit.training.optimizers import optimizer_of, schedule_of
from glmkit.training.plan import Shape

VOCABULARY = 11


class Bigram(nn.Module):
    """Foretells a token from the one before it, with dropout, so that random states matter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Module()
        self.model.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY) / 3)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, batch: Batch) -> Loss:
        scores = nn.functional.dropout(self.model.table, 0.2, self.training)[batch.ids[:-1]]
        losses = nn.functional.cross_entropy(scores, batch.ids[1:], reduction="none")
        weights = batch.weights[1:]
        return Loss((losses * weights).sum(), weights.sum())


class Plain:
    """Keeps the parameters in one file."""

    kind, lossless, forecast = "full", True, {}

    def __init__(self) -> None:
        self.full = False

    def save(self, state, folder: Path) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        torch.save(state, folder / "weights.pt")

    def load(self, folder: Path):
        return torch.load(folder / "weights.pt", weights_only=True)


def examples(count: int = 13) -> Listed:
    random = np.random.default_rng(1)
    made = []
    for _ in range(count):
        ids = random.integers(0, VOCABULARY, random.integers(3, 9)).astype(np.int32)
        made.append(Example(ids, random.integers(0, 2, len(ids)).astype(np.float32) + 0.5))
    return Listed(made)


def work(tmp_path: Path, tuning=None, evaluate=None, **given) -> Work:
    config = TrainConfig(
        **{"epochs": 2.0, "batch_size": 2, "learning_rate": 0.05, "output": str(tmp_path), **given}
    )
    learner = Bigram()
    trained = [each for each in learner.parameters() if each.requires_grad]
    optimizer = optimizer_of(config, [{"params": trained}])
    shape = Shape(batch_size=config.batch_size, accumulation=config.gradient_accumulation)
    feed = Feed(examples(), shape, Batch.of)
    total = total_steps(config, feed.steps())
    checkpoints = Checkpoints(tmp_path, tuning or Plain(), config.save_total_limit)
    schedule = schedule_of(config, optimizer, total)
    alone = Alone(torch.device("cpu"))
    return Work(config, learner, feed, alone, optimizer, schedule, total, checkpoints, evaluate)


def losses(lines) -> list[float]:
    return [each.loss for each in lines if each.loss is not None]
