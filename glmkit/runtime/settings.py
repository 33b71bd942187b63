"""How a model's authors want it to be sampled, and what ends its answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .weights import read_json


@dataclass(frozen=True)
class Settings:
    """How a model's authors want it to be sampled, and what ends its answers."""

    stop_ids: frozenset[int] = frozenset()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    @classmethod
    def open(cls, folder: Path) -> Settings:
        """Read `generation_config.json`, and the stop ids of `config.json` where it has none."""
        raw = read_json(folder / "config.json")
        if (folder / "generation_config.json").is_file():
            raw = {**raw, **read_json(folder / "generation_config.json")}
        ids = raw.get("eos_token_id")
        listed = ids if isinstance(ids, list) else [ids]
        stops = frozenset(each for each in listed if isinstance(each, int))
        if not raw.get("do_sample", False):
            return cls(stops, repetition_penalty=_given(raw, "repetition_penalty", 1.0))
        return cls(
            stops,
            temperature=_given(raw, "temperature", 1.0),
            top_p=_given(raw, "top_p", 1.0),
            top_k=int(_given(raw, "top_k", 0)),
            repetition_penalty=_given(raw, "repetition_penalty", 1.0),
        )


def _given(raw: dict[str, Any], name: str, default: float) -> float:
    value = raw.get(name)
    if value is None:
        return default
    if not isinstance(value, (int, float)) or value < 0:
        raise CheckpointError(f"generation_config.json: {name} is {value!r}; expected a number")
    return float(value)
