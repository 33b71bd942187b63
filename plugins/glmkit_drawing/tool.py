"""Drawing as a tool of chat models."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from glmkit import DrawOptions, UsageError

from .files import keep, slug
from .settings import Settings

if TYPE_CHECKING:
    from glmkit import Glmkit, ImageModel, Picture

_MOST = 4
"""Pictures that one call draws."""


def load(name: str, app: Glmkit) -> Callable[..., str]:
    """Return the tool; the picture model is loaded when it is first asked for."""
    return Drawer(app).draw


class Drawer:
    """Draws for a conversation."""

    def __init__(self, app: Glmkit) -> None:
        self._app = app
        self._settings = Settings.of(app.plugin_config("drawing"))

    @cached_property
    def _model(self) -> ImageModel:
        return self._app.load_image_model(self._settings.image_model)

    def draw(self, wish: str, count: int = 1, seed: int | None = None) -> str:
        """Draw pictures of what somebody wishes to see, and say where they are.

        :param wish: what the pictures show, in a few plain words.
        :param count: how many pictures, 1 to 4.
        :param seed: the same number draws the same picture again.
        """
        if count > _MOST:
            raise UsageError(f"count must be from 1 to {_MOST}, got {count}")
        options = DrawOptions(seed=seed, count=count)
        pictures: list[Picture] = self._app.watch(self._model.draw(wish, options))
        folder = Path(self._settings.out)
        paths = [keep(folder, f"{slug(wish)}-{each.seed}", each.png) for each in pictures]
        return "drawn: " + ", ".join(map(str, paths))
