"""Documents that visitors send: checked, renamed safely, and put into a folder."""

from __future__ import annotations

import os
import re
import secrets
import stat
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

TYPES = (".csv", ".docx", ".htm", ".html", ".markdown", ".md", ".pdf", ".txt")
"""What the knowledge base reads."""
_LONGEST = 100
_BLOCK = 1 << 20
# No link is followed, and nobody waits for the other end of a pipe.
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*\u200e\u200f\u202a-\u202e\u2066-\u2069]')


@dataclass
class Taken:
    """What became of documents that were sent."""

    added: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    """The key of the reason in the page's texts, and the name as sent."""


@dataclass(frozen=True)
class Limits:
    """How much is taken."""

    max_bytes: int
    max_files: int


def documents_in(folder: Path) -> list[str]:
    """Return the names of the documents that lie in a folder."""
    if not folder.is_dir():
        return []
    return sorted(each.name for each in folder.iterdir() if each.is_file() and _readable(each.name))


def _readable(name: str) -> bool:
    return Path(name).suffix.lower() in TYPES and not name.startswith(".")


def safe_name(sent: str) -> str | None:
    """Return the name that a document gets here; None where nothing of it can be used.

    The last part of a path counts, whatever the system of the sender; characters that hide or
    reverse others go, and so does a leading dot.
    """
    last = unicodedata.normalize("NFC", sent).replace("\\", "/").rpartition("/")[2]
    plain = _UNSAFE.sub("", last).strip().lstrip(".").strip()
    stem, suffix = os.path.splitext(plain)
    stem = stem.rstrip(". ")[: _LONGEST - len(suffix)]
    if not stem or not any(each.isalnum() for each in stem):
        return None
    return stem + suffix


def take_in(sent: Sequence[Path], folder: Path, limits: Limits) -> Taken:
    """Copy documents into ``folder``, which is made; one of the same name is replaced.

    Nothing but plain files is taken: no link is followed, no folder entered.
    """
    taken = Taken()
    for path in sent:
        name = safe_name(path.name)
        problem = _problem(path, name, folder, limits)
        if problem is None and name is not None:
            folder.mkdir(parents=True, exist_ok=True)
            problem = _copy(path, folder / name, limits.max_bytes)
        if problem is None and name is not None:
            taken.added.append(name)
        else:
            taken.refused.append((problem or "bad_name", path.name))
    return taken


def _problem(path: Path, name: str | None, folder: Path, limits: Limits) -> str | None:
    if name is None:
        return "bad_name"
    if not _readable(name):
        return "bad_type"
    held = documents_in(folder)
    if name not in held and len(held) >= limits.max_files:
        return "too_many"
    return None


def _copy(source: Path, target: Path, most: int) -> str | None:
    """Copy a plain file of ``most`` bytes at most; return why not."""
    partial = target.with_name(f".{secrets.token_hex(6)}.partial")
    try:
        opened = os.open(source, _FLAGS)
    except OSError:
        return "bad_file"
    about = os.fstat(opened)
    if not stat.S_ISREG(about.st_mode):
        os.close(opened)
        return "bad_file"
    with os.fdopen(opened, "rb") as file:
        if about.st_size == 0:
            return "empty_file"
        if about.st_size > most:
            return "too_large"
        try:
            with partial.open("wb") as out:
                while block := file.read(_BLOCK):
                    out.write(block)
            partial.replace(target)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
    return None
