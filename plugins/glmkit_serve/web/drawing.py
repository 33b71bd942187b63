"""What draws for the page: one picture at a time, stoppable."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, cast

from glmkit import DrawOptions, UsageError

if TYPE_CHECKING:
    from glmkit import Glmkit, ImageModel, Picture, Progress

    from .visits import Visit


class Drawing:
    """The picture models of an application, loaded when they are first asked.

    :param names: which to offer, None for the default; empty where nothing draws.
    """

    def __init__(self, app: Glmkit, names: list[str | None]) -> None:
        self._app = app
        self._names = names
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
        self, visit: Visit, name: str | None, wish: str, options: DrawOptions
    ) -> Generator[Progress, None, list[Path]]:
        """Draw; return PNG files in the visitor's folder. Others wait until it is done.

        Setting ``visit.undrawn`` ends it; then there are no pictures.

        :raises UsageError: if nothing is called so, or the model cannot draw so.
        """
        if name not in self._names:
            name = self._names[0] if not name else name
        if name not in self._names:
            raise UsageError(f"there is no picture model {name!r} here")
        with self._turn:
            if name not in self._models:
                self._models[name] = self._app.load_image_model(name)
            drawn = yield from _until(visit, self._models[name].draw(wish, options))
        return list(_kept(drawn, visit.pictures))


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
