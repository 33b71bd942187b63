"""What a model or an adapter holds: two that lie at the same path at different times differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_NAMED = ("config.json", "adapter_config.json", "generation_config.json", "glmkit.json")
"""Files beside the weights that change what a model says."""
_VOCABULARY = ("tokenizer", "vocab", "merges", "ice_text", "special_tokens", "chat_template")
_WHOLE = 256 << 20
"""Bytes up to which a file is read whole; of a larger one the beginning is, and its time counts."""
_BLOCK = 1 << 20


def state_of(path: Path) -> str:
    """Return a digest of the files of a model or an adapter; empty where there are none.

    :param path: a folder, of which the checkpoints below are left out, or a single file.
    """
    whole = hashlib.sha256()
    files = list(_files(path))
    for file in files:
        size = file.stat().st_size
        whole.update(f"{file.name} {size} {_digest(file, size)}\n".encode())
    return whole.hexdigest() if files else ""


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (each for each in sorted(path.iterdir()) if each.is_file() and _counts(each))
    elif path.is_file():
        yield path


def _counts(file: Path) -> bool:
    return file.suffix in _WEIGHTS or file.name in _NAMED or file.name.startswith(_VOCABULARY)


def _digest(file: Path, size: int) -> str:
    found = hashlib.sha256()
    with file.open("rb") as stream:
        if size > _WHOLE:
            found.update(stream.read(_BLOCK))
            return f"{found.hexdigest()} {file.stat().st_mtime_ns}"
        while block := stream.read(_BLOCK):
            found.update(block)
    return found.hexdigest()
