"""Who may be asked on the page: models, and what each of them wears."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from glmkit import UnknownNameError, UsageError

if TYPE_CHECKING:
    from glmkit import ChatModel

    from .words import Words


@dataclass(frozen=True)
class Voice:
    """A model with one of its adapters, or with none."""

    name: str
    """What the page calls it."""
    model: ChatModel
    """May be asked by several threads at a time."""
    adapter: str | None = None
    """None: the model wears what it wears; empty: the base alone."""

    @property
    def worn(self) -> str | Mapping[str, float] | None:
        """The adapter as :class:`~glmkit.GenerationOptions` takes it."""
        return {} if self.adapter == "" else self.adapter


class Voices:
    """The choices, the first of which is asked where nobody chooses."""

    def __init__(self, voices: Sequence[Voice]) -> None:
        if not voices:
            raise UsageError("the page needs a model to talk to")
        self._voices: dict[str, Voice] = {}
        for each in voices:
            if each.name in self._voices:
                raise UsageError(f"two models or adapters are called {each.name!r}; rename one")
            self._voices[each.name] = each

    def names(self) -> list[str]:
        """Return what can be chosen."""
        return list(self._voices)

    def of(self, name: str | None) -> Voice:
        """Return the voice with this name, the first for None.

        :raises UnknownNameError: if there is none; names come from browsers.
        """
        found = self._voices.get(name or next(iter(self._voices)))
        if found is None:
            raise UnknownNameError("model", str(name), self._voices)
        return found

    def __iter__(self) -> Iterator[Voice]:
        return iter(self._voices.values())


_LANGUAGES = {"en": "language_en", "zh": "language_zh"}


def told(languages: Collection[str] | None, words: Words) -> str:
    """Return what a model speaks, where that is not what the page does; else nothing.

    :param languages: ISO 639-1 codes; None where nobody said.
    """
    if not languages or words.language in languages:
        return ""
    names = [words(_LANGUAGES[each]) if each in _LANGUAGES else each for each in sorted(languages)]
    return words("speaks", languages=", ".join(names))


_TEMPERATURE, _TOP_P = 0.7, 0.9


def suited(model: object) -> tuple[float, float]:
    """Return the temperature and top-p that a model's authors chose, where it says so."""
    own = getattr(getattr(model, "model", model), "settings", None)
    found = getattr(own, "temperature", None), getattr(own, "top_p", None)
    if all(isinstance(each, (int, float)) for each in found):
        return cast("tuple[float, float]", found)
    return _TEMPERATURE, _TOP_P
