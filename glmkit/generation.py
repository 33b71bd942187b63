"""How a model picks tokens: what may be asked, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .errors import UsageError
from .structured import TOOL_CHOICES, ResponseFormat, ToolChoice


@dataclass(frozen=True)
class GenerationOptions:
    """How to pick tokens. ``None`` means: as the model's own generation settings say."""

    max_tokens: int = 512
    """Most new tokens, 1 or more."""
    temperature: float | None = None
    """0 is greedy; higher is more random, up to 100."""
    top_p: float | None = None
    """Keep the most likely tokens up to this probability mass, in (0, 1]."""
    top_k: int | None = None
    """Keep this many of the most likely tokens; 0 keeps all."""
    repetition_penalty: float | None = None
    """Divide the scores of tokens already present by this, 0.01 to 100; 1 is off."""
    seed: int | None = None
    """Same seed, same answer (per row); 64 bits, signed."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    adapter: str | Mapping[str, float] | None = None
    """The loaded adapter to answer with, or several with their weights; ``{}`` is the base alone.
    None: the model's active ones."""
    response_format: ResponseFormat | None = None
    """What the answer must look like; also as a mapping, see :meth:`ResponseFormat.of`."""
    tool_choice: ToolChoice | None = None
    """``"required"``: the answer is a call of a tool on offer; None and ``"auto"``: as it likes."""
    logprobs: int | None = None
    """Tell how likely each token was, and as many of the likeliest in its place, 0 to 20: the
    model's own chances, before temperature, penalties and formats. None: tell nothing."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _stops(self.stop))
        object.__setattr__(self, "response_format", ResponseFormat.of(self.response_format))
        for name, (kind, low, high, allowed) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name != "max_tokens":
                continue
            whole = isinstance(value, int) and not isinstance(value, bool)
            number = whole or (kind is float and isinstance(value, float))
            _check(name, value, number and low <= value <= high, allowed)
        if self.temperature:
            _check("temperature", self.temperature, self.temperature >= _COLDEST, _WARM)
        known = self.tool_choice is None or self.tool_choice in TOOL_CHOICES
        _check("tool_choice", self.tool_choice, known, "auto or required")
        if self.top_p is not None:
            _check("top_p", self.top_p, self.top_p > 0, "above 0, up to 1")


def check_honoured(model: object, options: GenerationOptions) -> None:
    """Refuse what a model would leave out in silence; models list what they know as ``honours``.

    :raises UsageError: naming it.
    """
    honoured: frozenset[str] = getattr(model, "honours", frozenset())
    for name in SPECIAL:
        if getattr(options, name) not in (None, "auto") and name not in honoured:
            raise UsageError(
                f"{getattr(model, 'name', 'this model')} knows no {name}; leave it out"
            )


SPECIAL = frozenset(("response_format", "tool_choice", "logprobs"))
"""Options that not every chat model knows; those that know them say so."""
_COLDEST = 1e-6
"""Scores divided by less may overflow; so low a temperature is greedy anyway."""
_WARM = f"0 (greedy) or a number from {_COLDEST:g} to 100"
_MOST = 2**31 - 1
_RANGES: dict[str, tuple[type, float, float, str]] = {
    "max_tokens": (int, 1, _MOST, f"a whole number from 1 to {_MOST}"),
    "temperature": (float, 0, 100, _WARM),
    "top_p": (float, 0, 1, "above 0, up to 1"),
    "top_k": (int, 0, _MOST, f"a whole number from 0 (off) to {_MOST}"),
    "repetition_penalty": (float, 0.01, 100, "a number from 0.01 to 100"),
    "logprobs": (int, 0, 20, "a whole number from 0 to 20"),
    "seed": (int, -(2**63), 2**63 - 1, "a whole number from -2**63 to 2**63 - 1"),
}
"""What each option may be: its kind, least, most, and how to say so."""


def _stops(value: object) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Iterable) or isinstance(texts, Mapping):
        raise UsageError(f"stop must be non-empty texts, got {value!r:.80}")
    texts = tuple(texts)
    if not all(isinstance(each, str) and each for each in texts):
        raise UsageError(f"stop must be non-empty texts, got {value!r:.80}")
    return texts


def _check(name: str, value: object, good: bool, allowed: str) -> None:
    if not good:
        raise UsageError(f"{name} must be {allowed}, got {value!r}")
