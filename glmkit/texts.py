r"""Whether a text is Unicode at all: a Python string may hold halves of characters (surrogates).

They come from JSON that was cut inside an emoji (``"\ud83d"``), and from bytes that the terminal's
encoding has no character for. No tokenizer takes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from .errors import UsageError

_SURROGATE = re.compile("[\ud800-\udfff]")


def is_unicode(text: str) -> bool:
    """Tell whether a text has no lone surrogates, so that it can be written as UTF-8."""
    return text.isascii() or _SURROGATE.search(text) is None


def check_unicode(text: str, what: str) -> None:
    """Refuse a text with lone surrogates.

    :param what: what the message calls the text: ``"the content of a user message"``.
    :raises UsageError: naming the first one and its place.
    """
    found = None if text.isascii() else _SURROGATE.search(text)
    if found is not None:
        raise UsageError(
            f"{what} is no valid Unicode: {found[0]!a} at {found.start()} is half a character; "
            "decode it again, or replace it by U+FFFD"
        )


def readable(text: str) -> str:
    """Return a text with U+FFFD in place of each lone surrogate."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def texts_in(value: object) -> Iterator[str]:
    """Yield the texts in nested mappings and lists, keys included; however deep they are."""
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if isinstance(here, str):
            yield here
        elif isinstance(here, Mapping):
            waiting += [*here.keys(), *here.values()]
        elif isinstance(here, (list, tuple)):
            waiting += here
