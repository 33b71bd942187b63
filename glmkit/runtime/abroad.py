"""What settings and headers tell of a model that is not glmkit's own and that transformers runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, MissingExtraError
from ..models.files import is_file, read_json
from .footprint import TOKENS, Memory

Raw = Mapping[str, Any]

_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "ffn_size": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_dim": ("head_dim",),
    "vocab_size": ("vocab_size",),
}
"""Ours -> how architectures call it, tried in order."""

_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_FLOATS = {"float64", "float32", "float16", "bfloat16"}
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_MOST = 10**9


def runs(folder: Path, raw: Raw) -> tuple[str | None, tuple[str, ...]]:
    """Return the engine that runs a folder, and what a person should know of that.

    :return: None where nothing runs it; the note says why.
    """
    from .engines.foreign import refuse_unknown

    try:
        refuse_unknown(folder, dict(raw))
    except MissingExtraError as error:
        return "transformers", (str(error),)
    except CheckpointError as error:
        return None, (str(error),)
    return "transformers", ()


def sizes(raw: Raw) -> dict[str, Any] | None:
    """Return the architecture in numbers, None where settings do not tell them."""
    text = _text(raw)
    found: dict[str, Any] = {ours: _first(text, theirs) for ours, theirs in _NAMES.items()}
    needed = ("layers", "hidden_size", "heads", "vocab_size")
    if any(found[name] is None for name in needed):
        return None
    found["kv_heads"] = found["kv_heads"] or found["heads"]
    found["head_dim"] = found["head_dim"] or max(1, found["hidden_size"] // found["heads"])
    return found | {"tied_head": raw.get("tie_word_embeddings") is True}


def context_length(raw: Raw) -> int | None:
    """Return how many tokens prompt and answer may have together, None where that is not said."""
    return _first(_text(raw), _LENGTHS)


def parameters(numbers: Mapping[str, int]) -> int | None:
    """Return how many numbers a model has; None where they lie packed."""
    return sum(numbers.values()) if numbers and set(numbers) <= _FLOATS else None


def memory(sizes: Mapping[str, Any], parameters: int) -> Memory:
    """Return what the model takes when transformers runs it."""
    cached = 2 * sizes["layers"] * sizes["kv_heads"] * sizes["head_dim"] * TOKENS
    return Memory(
        {name: size * parameters for name, size in (("float32", 4), ("bfloat16", 2))},
        {name: size * cached for name, size in (("float32", 4), ("bfloat16", 2))},
    )


def vocabulary(folder: Path) -> tuple[str, int | None] | None:
    """Return the vocabulary's file and size; None where there is none.

    :raises CheckpointError: if the file is damaged.
    """
    name = next((each for each in _VOCABULARIES if is_file(folder / each)), None)
    if name is None:
        return None
    if name == "vocab.json":
        return name, len(read_json(folder / name))
    return name, _described(folder / name) if name == "tokenizer.json" else None


def _described(file: Path) -> int | None:
    """Count the tokens of a `tokenizer.json`."""
    table = read_json(file)
    model, added = table.get("model"), table.get("added_tokens")
    entries = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(entries, (dict, list)):
        return None
    tokens = added if isinstance(added, list) else []
    names = {each.get("content") for each in tokens if isinstance(each, dict)}
    known = entries if isinstance(entries, dict) else {each[0] for each in entries if each}
    return len(entries) + sum(name not in known for name in names)


def _text(raw: Raw) -> Raw:
    """Return the settings of the part that reads and writes text."""
    inner = raw.get("text_config")
    return inner if isinstance(inner, Mapping) else raw


def _first(raw: Raw, names: tuple[str, ...]) -> int | None:
    found = (raw.get(name) for name in names)
    return next((each for each in found if type(each) is int and 0 < each < _MOST), None)
