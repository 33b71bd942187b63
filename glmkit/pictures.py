"""Pictures and who draws them. Light floor: importable in milliseconds, no torch."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from .errors import UsageError
from .types import Progress

_MOST = 2**63 - 1


@dataclass(frozen=True)
class DrawOptions:
    """How to draw. ``None`` means: as the picture model's own settings say.

    :raises UsageError: if a value is out of its range.
    """

    negative: str = ""
    """What the picture should not show."""
    size: tuple[int, int] | None = None
    """Width and height in pixels."""
    steps: int | None = None
    """Of the scheduler, 1 to 1000."""
    guidance: float | None = None
    """How closely the wish is followed, 0 to 100; 1 or less: no guidance."""
    seed: int | None = None
    """Of the first picture, 0 to 2**63 - 1; the next ones count up. None draws one."""
    count: int = 1
    """Pictures, 1 to 100."""

    def __post_init__(self) -> None:
        _within("count", self.count, 1, 100)
        _within("steps", self.steps, 1, 1000)
        _within("guidance", self.guidance, 0, 100, whole=False)
        _within("seed", self.seed, 0, _MOST)
        if self.size is not None:
            for name, value in zip(("width", "height"), self.size, strict=True):
                _within(name, value, 8, 8192)


def _within(name: str, value: object, least: int, most: int, *, whole: bool = True) -> None:
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and least <= cast("float", value) <= most):
        kind = "a whole number" if whole else "a number"
        raise UsageError(f"{name} must be {kind} from {least} to {most}, got {value!r}")


@dataclass(frozen=True)
class Picture:
    """A picture that was drawn."""

    png: bytes
    """A PNG file; its text chunks say how to draw the picture again."""
    prompt: str
    """What the picture model was told."""
    seed: int
    """That it was drawn with."""


@runtime_checkable
class ImageModel(Protocol):
    """Anything that draws."""

    name: str

    def draw(
        self, wish: str, options: DrawOptions | None = None
    ) -> Generator[Progress, None, list[Picture]]:
        """Draw what ``wish`` says; closing the generator stops.

        :raises UsageError: if the model cannot draw so, such as in a size that it does not have.
        """
        ...
