"""What a token adds to a text, in bytes: a character may be spread over several tokens."""

from __future__ import annotations

import re

SPACE = "▁"
"""How SentencePiece writes a space."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_names() -> dict[int, str]:
    """Return the character by which byte-level vocabularies write each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [each for each in range(256) if each not in set(plain)]
    return {each: chr(each) for each in plain} | {
        each: chr(256 + at) for at, each in enumerate(others)
    }


_BYTES = {name: value for value, name in byte_names().items()}


def of_piece(name: str) -> bytes:
    """Return the bytes of a SentencePiece token: a byte of its own, or text."""
    found = _BYTE.fullmatch(name)
    return bytes([int(found[1], 16)]) if found else name.replace(SPACE, " ").encode()


def of_byte_level(name: str) -> bytes:
    """Return the bytes of a token of a byte-level vocabulary; what is none of its is text."""
    known = [_BYTES.get(each) for each in name]
    return bytes(each for each in known if each is not None) if None not in known else name.encode()


def shown(spelling: bytes) -> str:
    """Return a token's bytes as text, or named where they are a part of a character."""
    try:
        return spelling.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{each:02x}" for each in spelling)
