"""Server-sent events, as servers really write them."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from ..errors import ServerError

LONGEST = 16 << 20
"""Characters of one line or event; whoever sends more sends no answer."""


class Event(NamedTuple):
    """One event."""

    name: str
    """``""`` where the server named none."""
    data: str


def events(blocks: Iterable[bytes]) -> Iterator[Event]:
    """Yield the events in a stream of bytes, however it is cut into blocks.

    Comments, ids and times to wait are skipped; lines end in CR, LF or both; what is no UTF-8 is
    replaced. An event that the end of the stream cuts short counts, as some servers end like that.

    :raises ServerError: if a line or an event never ends.
    """
    name, data, size = "", list[str](), 0
    for line in chain(_lines(blocks), [""]):
        if not line:
            if data:
                yield Event(name, "\n".join(data))
            name, data, size = "", [], 0
            continue
        key, value = _field(line)
        size += len(value)
        _check(size)
        if key == "data":
            data.append(value)
        elif key == "event":
            name = value
        elif key == "error":  # not in the standard, but llama-server's way to fail
            yield Event("error", value)


def _field(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key, value.removeprefix(" ")


def _lines(blocks: Iterable[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    plain = io.IncrementalNewlineDecoder(decoder, translate=True)
    begun: list[str] = []
    size, first = 0, True
    for text in _decoded(blocks, plain):
        if first:
            text, first = text.removeprefix("\ufeff"), not text
        *whole, rest = text.split("\n")
        for each in whole:
            yield "".join((*begun, each))
            begun, size = [], 0
        begun.append(rest)
        size += len(rest)
        _check(size)
    if any(begun):
        yield "".join(begun)


def _decoded(blocks: Iterable[bytes], plain: io.IncrementalNewlineDecoder) -> Iterator[str]:
    for block in blocks:
        yield plain.decode(block)
    yield plain.decode(b"", final=True)


def _check(size: int) -> None:
    if size > LONGEST:
        raise ServerError(
            f"the server sent a line of over {LONGEST >> 20} million characters, which is no "
            "answer; check that the address is a model server's"
        )
