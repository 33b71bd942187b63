"""Looking at a run: the loss at noise that is always the same, and pictures of a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import nn

from glmkit.training.folder import VALIDATION
from glmkit.training.loop import Work

from .base import draw
from .config import DreamboothConfig
from .feed import THING, Feed, held, together
from .learner import PictureLearner

_EACH = 8
"""Times of noise that a photograph is looked at with."""


class Watching:
    """Measures and draws while a model is taught.

    :param computing: what products are taken in.
    """

    def __init__(
        self,
        work: Work,
        pipeline: Any,  # noqa: ANN401
        feed: Feed,
        side: int,
        computing: torch.dtype | None,
    ) -> None:
        self.work, self.pipeline, self.side, self.computing = work, pipeline, side, computing
        self.rows = list(held(feed.things, each=_EACH, times=feed.times, seed=feed.seed))

    def look(self) -> dict[str, float]:
        """Return the loss, and draw where a prompt is given."""
        config = self.work.config
        assert isinstance(config, DreamboothConfig)
        with _resting(self.work.learner):
            loss = self._loss(config.batch_size)
            if config.validation_prompt:
                self._draw(config, config.validation_prompt)
        return {"eval_loss": loss}

    @torch.no_grad()
    def _loss(self, batch_size: int) -> float:
        learner, device = self.work.learner, self.work.crew.device
        assert isinstance(learner, PictureLearner)
        total = 0.0
        for start in range(0, len(self.rows), batch_size):
            some = self.rows[start : start + batch_size]
            batch = together(some, [THING] * len(some)).to(device)
            total += float(learner.errors(batch).sum())
        return total / len(self.rows)

    def _draw(self, config: DreamboothConfig, prompt: str) -> None:
        """Draw a row of pictures into ``validation/step-N.png``, always of the same seeds."""
        seeds = range(config.seed, config.seed + config.validation_count)
        pictures: list[Image.Image] = []
        for start in range(0, len(seeds), config.sample_batch_size):
            pictures += draw(
                self.pipeline,
                prompt,
                seeds[start : start + config.sample_batch_size],
                side=self.side,
                steps=config.sample_steps or 1,
                guidance=config.guidance or 0,
                computing=self.computing,
            )
        folder = self.work.checkpoints.folder / VALIDATION
        folder.mkdir(exist_ok=True)
        beside(pictures).save(folder / f"step-{self.work.state.global_step:06d}.png")


def beside(pictures: list[Image.Image]) -> Image.Image:
    """Return pictures of one size as one row."""
    width, height = pictures[0].size
    row = Image.new("RGB", (width * len(pictures), height))
    for at, picture in enumerate(pictures):
        row.paste(picture, (at * width, 0))
    return row


@contextmanager
def _resting(net: nn.Module) -> Iterator[None]:
    """Leave nothing out at random within."""
    net.eval()
    try:
        yield
    finally:
        net.train()
