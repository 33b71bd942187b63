"""One loop for every stage of training: batches in, averaged weights out, resumable.

Each step draws its batch from a generator seeded by (seed, step), so that a run that was stopped
and resumed sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from glmkit import Progress

Loss = Callable[[torch.Generator], Tensor]
"""What one step minimises; draws its batch with the generator that it is given."""


@dataclass(frozen=True)
class Plan:
    """How long a stage learns, and how fast."""

    steps: int
    lr: float
    warmup: int = 100
    cooldown: float = 0.25
    """The last part of the steps, over which the rate falls to a fiftieth, in [0, 1]."""
    ema: float = 0.999
    weight_decay: float = 0.01
    beta2: float = 0.99
    clip: float = 1.0
    """Longest gradient, as an L2 norm."""
    seed: int = 0
    save_every_s: float = 120.0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        left = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup), max(0.02, left))


def learn(
    module: nn.Module, loss: Loss, plan: Plan, checkpoint: Path, *, stage: str
) -> Generator[Progress, None, nn.Module]:
    """Train ``module`` until ``plan.steps``, going on from ``checkpoint`` where there is one.

    The checkpoint is written now and then and at the end. Returns the module with the moving
    average of its weights.
    """
    learner = _Learner(module, plan)
    learner.load(checkpoint)
    saved, shown, losses = time.monotonic(), time.monotonic(), 0.0
    since = learner.step
    while learner.step < plan.steps:
        value = learner.take(loss)
        losses += (value - losses) / min(100, learner.step - since)
        now = time.monotonic()
        if now - saved > plan.save_every_s or learner.step == plan.steps:
            learner.save(checkpoint)
            saved = now
        if now - shown > 5 or learner.step == plan.steps:
            shown = now
            yield Progress(stage, learner.step, plan.steps, note=f"loss {losses:.4f}")
    return learner.averaged()


class _Learner:
    """The state of a run: weights, their average, the optimizer's moments, the step."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        self.module, self.plan, self.step = module, plan, 0
        average = get_ema_multi_avg_fn(plan.ema)  # type: ignore[no-untyped-call]
        self.ema = AveragedModel(module, multi_avg_fn=average)
        matrices = [each for each in module.parameters() if each.requires_grad and each.ndim > 1]
        others = [each for each in module.parameters() if each.requires_grad and each.ndim < 2]
        groups: list[dict[str, Any]] = [{"params": matrices}]
        groups += [{"params": others, "weight_decay": 0.0}] if others else []
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=plan.lr,
            betas=(0.9, plan.beta2),
            weight_decay=plan.weight_decay,
            fused=True,
        )

    def take(self, loss: Loss) -> float:
        """Take one step and return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(self.step)
        generator = torch.Generator().manual_seed(self.plan.seed * 1_000_003 + self.step)
        value = loss(generator)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), self.plan.clip)
        self.optimizer.step()
        self.step += 1
        # An average over more steps than there were would remember the random beginning.
        if self.step > min(10 / (1 - self.plan.ema), 0.1 * self.plan.steps):
            self.ema.update_parameters(self.module)
        return float(value.detach())

    def averaged(self) -> nn.Module:
        """Return the module with the moving average of its weights."""
        if self.ema.n_averaged:
            self.module.load_state_dict(self.ema.module.state_dict())
        return self.module

    def save(self, path: Path) -> None:
        """Write the state, so that a torn write leaves the one before."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "module": self.module.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a state, if there is one."""
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location="cpu")
        self.module.load_state_dict(state["module"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = math.floor(state["step"])


def averaged_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Return the moving average of the weights that a stage has saved so far."""
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    if not int(state["ema"]["n_averaged"]):
        weights: dict[str, Tensor] = state["module"]
        return weights
    prefix = "module."
    return {k[len(prefix) :]: v for k, v in state["ema"].items() if k.startswith(prefix)}
