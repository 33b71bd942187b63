"""What ``glmkit models show`` prints of a folder: one line for each fact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..runtime.describe import Description, Sizes

WIDTH = 15


def lines(about: Description) -> Iterator[str]:
    """Yield the lines that describe a folder, names and values aligned."""
    for name, value in _rows(about):
        yield f"{name:<{WIDTH}} {value}"


def amount(size: int) -> str:
    """Return bytes for a person."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= one:
            return f"{size / one:.1f} {unit}"
    return f"{size} bytes"


def count(number: int) -> str:
    """Return a number of parameters for a person."""
    for unit, one in (("billion", 1e9), ("million", 1e6)):
        if number >= one:
            return f"{number / one:.2f} {unit}"
    return f"{number:,}"


def _rows(about: Description) -> Iterator[tuple[str, str]]:
    yield "path", about.path
    yield "holds", _WORDS.get(about.kind, about.kind)
    if about.architecture:
        yield "architecture", about.architecture
        yield "runs with", f"the {about.engine} engine" if about.engine else "nothing here"
    if about.family:
        sure = "" if about.family_certain else "probably; "
        because = f" ({sure}{about.family_because})" if about.family_because else ""
        yield "family", about.family + because
    if about.layout:
        yield "layout", about.layout
    yield from _architecture(about)
    yield from _files(about)
    yield from _additions(about)
    yield from _memory(about)
    for note in about.notes:
        yield "note", note


_WORDS = {
    "prefix": "a P-Tuning prefix without its model",
    "adapter": "an adapter without its model",
    "vocabulary": "a vocabulary without a model",
    "other": "a model of another kind",
}


def _architecture(about: Description) -> Iterator[tuple[str, str]]:
    sizes = about.sizes
    if about.parameters is not None:
        whose = " of the model" if about.kind == "prefix" else ""
        yield "parameters", count(about.parameters) + whose
    if sizes is not None:
        yield "sizes" if about.architecture else "architecture", _sizes(sizes)
    if about.context_length is not None:
        yield "context", f"{about.context_length:,} tokens"


def _sizes(sizes: Sizes) -> str:
    forward = f" feed-forward {sizes.ffn_size}," if sizes.ffn_size else ""
    shared = f" sharing {sizes.kv_heads} key/value heads" if sizes.kv_heads != sizes.heads else ""
    return (
        f"{sizes.layers} layers, hidden {sizes.hidden_size},{forward} {sizes.heads} heads of "
        f"{sizes.head_dim}{shared}, {sizes.vocab_size:,} token rows"
        + (", head tied" if sizes.tied_head else "")
    )


def _files(about: Description) -> Iterator[tuple[str, str]]:
    weights = about.weights
    if weights is not None:
        shards = len(weights.files)
        named = weights.files[0] if shards == 1 else f"{shards} .{weights.format} files"
        yield "weights", f"{named}, {amount(weights.size)}"
        yield "stored as", _numbers(weights.numbers)
    if about.vocabulary is not None:
        told = about.vocabulary
        yield "vocabulary", f"{told.size:,} tokens ({told.kind})" if told.size else told.kind
    elif about.kind in ("model", "other"):
        yield "vocabulary", "none: it takes and gives ids, and cannot chat"


def _numbers(numbers: Mapping[str, int]) -> str:
    whole = sum(numbers.values())
    if len(numbers) == 1:
        return next(iter(numbers))
    return ", ".join(f"{dtype} {each / whole:.1%}" for dtype, each in numbers.items())


def _additions(about: Description) -> Iterator[tuple[str, str]]:
    if about.prefix is not None:
        how = "with" if about.prefix.projection else "without"
        yield (
            "prefix",
            f"{about.prefix.length} entries, {how} projection, {count(about.prefix.parameters)} "
            "parameters",
        )
    if about.quantised is not None:
        told = about.quantised
        what = ", ".join(told.linears) + (", token table" if told.embeddings else "")
        yield "quantised", f"int{told.bits} ({told.format} format): {what}"
    if about.adapter is not None:
        told_of = about.adapter
        ranks = ", ".join(map(str, told_of.ranks))
        yield "adapter", f"{told_of.layout}, {count(told_of.parameters)} parameters"
        if ranks:
            yield "rank", f"{ranks} on {', '.join(told_of.modules)}"
        yield "trained on", told_of.base or "(not recorded)"


def _memory(about: Description) -> Iterator[tuple[str, str]]:
    if about.memory is None:
        return
    weights = ", ".join(f"{name} {amount(size)}" for name, size in about.memory.weights.items())
    yield "memory", weights
    cache = about.memory.cache_per_1000_tokens
    yield (
        "per 1000 tokens",
        ", ".join(f"{name} {amount(size)}" for name, size in cache.items()),
    )
