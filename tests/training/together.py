"""What the processes of a test train together: a tiny GLM, on random tokens, by the real loop."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.lr_scheduler import LinearLR

from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.loading import load_local
from glmkit.training.batches import Batch, Example, Feed, Listed
from glmkit.training.checkpoint import Checkpoints
from glmkit.training.config import TrainConfig
from glmkit.training.learner import Learner
from glmkit.training.loop import Work, learn, restore
from glmkit.training.optimizers import optimizer_of
from glmkit.training.parallel import crew_of
from glmkit.training.plan import Shape

STEPS = 7


class Low(nn.Module):
    """A low-rank change beside a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(3, base.in_features) / 8)
        self.b = nn.Parameter(torch.randn(base.out_features, 3) / 8)

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T


class Tuned:
    """Trains all weights or some beside them, and keeps them in one file."""

    lossless, forecast = True, {}

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def dress(self, model) -> None:
        if self.kind == "full":
            model.requires_grad_(True)
            return
        for block in model.stack.layers:
            block.mlp.dense_4h_to_h = Low(block.mlp.dense_4h_to_h)

    def save(self, state, folder: Path) -> None:
        save_file(state, folder / "weights.safetensors")

    def load(self, folder: Path):
        return load_file(folder / "weights.safetensors")


def examples() -> Listed:
    random = np.random.default_rng(0)
    made = []
    for length in random.integers(3, 30, 21):
        ids = random.integers(5, 250, length).astype(np.int32)
        made.append(Example(ids, random.integers(0, 3, length).astype(np.float32) / 2))
    return Listed(made)


def train(run: dict) -> dict:
    """Train as said; return the figures of each step, and in process 0 also the weights."""
    folder = Path(run["folder"])
    told = {"device": "cpu", "learning_rate": 0.01, "max_grad_norm": 0.5, **run["told"]}
    config = TrainConfig(batch_size=2, output=str(folder / run["name"]), **told)
    Path(config.output).mkdir(exist_ok=True, parents=True)
    with crew_of(config) as crew:
        tuning = Tuned(run["kind"])
        torch.manual_seed(3)
        model = load_local(folder / "model", device="cpu", dtype=run.get("dtype", "float32")).model
        tuning.dress(model)
        learner = Learner(model)
        trained = [each for each in learner.parameters() if each.requires_grad]
        learner, optimizer = crew.prepare(learner, optimizer_of(config, [{"params": trained}]))
        shape = Shape(batch_size=2, accumulation=4 // crew.world, world=crew.world)
        work = Work(
            config,
            learner,
            Feed(examples(), shape, Batch.of),
            crew,
            optimizer,
            LinearLR(optimizer, 1.0, 0.2, STEPS),
            STEPS,
            Checkpoints(Path(config.output), tuning, 0),
        )
        if "resume" in run:
            restore(work, folder / run["resume"])
        losses, norms = [], []
        for line in learn(work):
            if line.loss is not None:
                losses.append(line.loss)
                norms.append(line.grad_norm)
            if crew.rank == run.get("fails", -1):
                raise ZeroDivisionError(f"on purpose, in process {crew.rank}")
            sys.stdout.write(f"at {line.step}\n")
            sys.stdout.flush()
        weights = crew.trained(learner)
    return {"losses": losses, "norms": norms, "weights": weights}


def write(run: dict) -> None:
    """Train, and keep the result in a file."""
    found = train(run)
    if found["weights"]:
        out = Path(run["folder"]) / f"{run['name']}.pt"
        torch.save(found, out)


def model_in(folder: Path) -> None:
    tiny_checkpoint(folder / "model", layout="chatglm3", tied=False)


if __name__ == "__main__":
    rank, world, port, runs = sys.argv[1:]
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for each in json.loads(runs):
        write(each)
