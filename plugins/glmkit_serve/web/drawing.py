"""What draws for the page: one picture at a time, stoppable."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from glmkit import DrawOptions, UsageError

if TYPE_CHECKING:
    from glmkit import Glmkit, ImageModel, Picture, Progress

    from .visits import Visit


@dataclass(frozen=True)
class Brush:
    """What draws."""

    model: str | None = None
    """None or empty: the first."""
    lora: str | None = None
    weight: float = 1.0


class Drawing:
    """The picture models of an application, loaded when they are first asked.

    :param names: which to offer, None for the default; empty where nothing draws.
    :param loras: LoRA files and folders to offer, by name.
    """

    def __init__(
        self,
        app: Glmkit,
        names: Sequence[str | None],
        loras: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        self._app = app
        self._names = names
        self.loras = loras
        self._models: dict[str | None, ImageModel] = {}
        self._turn = threading.Lock()

    @property
    def offered(self) -> bool:
        """Whether anything draws."""
        return bool(self._names)

    def names(self) -> list[str]:
        """Return what can be chosen; empty where there is no choice."""
        named = [each for each in self._names if each is not None]
        return named if len(self._names) > 1 else []

    def draw(
        self, visit: Visit, wish: str, options: DrawOptions, brush: Brush
    ) -> Generator[Progress, None, list[Path]]:
        """Draw; return PNG files in the visitor's folder. Others wait until it is done.

        Setting ``visit.undrawn`` ends it; then there are no pictures.

        :raises UsageError: if nothing is called so, or the model cannot draw so.
        """
        name = brush.model or self._names[0]
        if name not in self._names:
            raise UsageError(f"there is no picture model {name!r} here")
        with self._turn:
            if name not in self._models:
                self._models[name] = self._app.load_image_model(name)
            self._wear(self._models[name], brush)
            drawn = yield from _until(visit, self._models[name].draw(wish, options))
        return list(_kept(drawn, visit.pictures))

    def _wear(self, model: ImageModel, brush: Brush) -> None:
        """Put the LoRA on that was chosen, and take others off."""
        if not self.loras:
            return
        if brush.lora and brush.lora not in self.loras:
            raise UsageError(f"there is no LoRA {brush.lora!r} here")
        wear = getattr(model, "wear", None)
        if wear is None:
            if brush.lora:
                raise UsageError(f"the picture model {model.name!r} wears no LoRA")
            return
        wear([(self.loras[brush.lora], brush.weight)] if brush.lora else [])


def _until(
    visit: Visit, work: Generator[Progress, None, list[Picture]]
) -> Generator[Progress, None, list[Picture]]:
    """Yield how far it is; return the pictures, none where the visitor stopped it."""
    with closing(work):
        while True:
            try:
                step = next(work)
            except StopIteration as done:
                return cast("list[Picture]", done.value)
            if visit.undrawn.is_set():
                return []
            yield step


def _kept(drawn: list[Picture], folder: Path) -> Iterator[Path]:
    """Write pictures as files: whoever downloads one gets what it was drawn from, too."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink(missing_ok=True)
    for number, picture in enumerate(drawn, 1):
        path = folder / f"{number:02}-{picture.seed}.png"
        path.write_bytes(picture.png)
        yield path
