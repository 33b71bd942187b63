"""How a model's authors want it to be sampled, and what ends its answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..models.files import read_json, read_json_if_there
from ..models.formats import ChatFormat
from ..models.shapes import shown
from ..models.tokenizers import Tokenizer

_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 1_000_000),
    "repetition_penalty": (0.01, 100.0),
}
"""By field: what can be sampled with. Temperature 0 and top-p 0 are greedy, top-k 0 is off."""


@dataclass(frozen=True)
class Settings:
    """How a model's authors want it to be sampled, and what ends its answers."""

    stop_ids: frozenset[int] = frozenset()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        chat_format: ChatFormat | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> Settings:
        """Read `generation_config.json`; what it does not say is as the model was published.

        Answers end at the stop tokens of the files and at those of the chat format, whichever comes
        first: the original folders list only a part.

        :param chat_format: how the model chats; brings the published sampling of its generation.
        :param tokenizer: the model's vocabulary.
        :raises CheckpointError: if a file is damaged.
        """
        raw = read_json(folder / "config.json")
        raw = {**raw, **read_json_if_there(folder / "generation_config.json")}
        stops = _listed(raw.get("eos_token_id")) | _of_format(chat_format, tokenizer)
        penalty = _given(raw, "repetition_penalty", 1.0)
        temperature, top_p = _published(chat_format)
        if not raw.get("do_sample", temperature > 0):
            return cls(stops, repetition_penalty=penalty)
        return cls(
            stops,
            temperature=_given(raw, "temperature", temperature or 1.0),
            top_p=_given(raw, "top_p", top_p),
            top_k=int(_given(raw, "top_k", 0)),
            repetition_penalty=penalty,
        )


def _published(chat_format: ChatFormat | None) -> tuple[float, float]:
    return (chat_format.temperature, chat_format.top_p) if chat_format else (0.0, 1.0)


def _listed(ids: object) -> frozenset[int]:
    listed = ids if isinstance(ids, list) else [ids]
    return frozenset(each for each in listed if type(each) is int)


def _of_format(chat_format: ChatFormat | None, tokenizer: Tokenizer | None) -> frozenset[int]:
    if tokenizer is None:
        return frozenset()
    names = chat_format.stops if chat_format else ()
    found = [tokenizer.eos_id, *map(tokenizer.special, names)]
    return frozenset(each for each in found if each is not None)


def _given(raw: dict[str, Any], name: str, default: float) -> float:
    value = raw.get(name)
    if value is None:
        return default
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    least, most = _RANGES[name]
    # Compared before it is converted: NaN and numbers too long for a float fail here.
    if not number or not least <= value <= most or (name == "top_k" and value != int(value)):
        kind = "a whole number" if name == "top_k" else "a number"
        raise CheckpointError(
            f"generation_config.json: {name} is {shown(value)}; expected {kind} from {least:g} to "
            f"{most:g}"
        )
    return float(value)
