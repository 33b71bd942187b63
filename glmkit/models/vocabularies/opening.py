"""Finding and checking the vocabulary of a folder."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

from ...errors import CheckpointError
from ..families import Facts, decide
from ..files import is_file, read_json_if_there
from ..layouts import family_of
from ..tokenizers import Tokenizer
from .described import Described
from .icetext import IceText
from .pieces import NAMES, ROLES, Pieces
from .ranks import SPECIALS, Ranks

Raw = Mapping[str, Any]

IMAGES = 20_000
"""Image tokens of the earliest ChatGLM-6B checkpoints; all other ids follow them."""
_SPARE = 2_048
"""A model has at most this many more rows than its vocabulary: they fill it up to a round size."""
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
_POINTER = b"version https://git-lfs"
_LARGEST = 64 << 20
_PUBLISHED = {36474: "▁你", 54591: "好", 35666: "清华大学"}
"""Some pieces of the file that ChatGLM2 and ChatGLM3 share; CodeGeeX2's has the same size."""
_PUBLISHED_SIZE = 64_789


def find(
    folder: Path, *, family: str | None = None, vocab_size: int | None = None
) -> Tokenizer | None:
    """Return the folder's vocabulary; see :meth:`Tokenizer.open`."""
    raw = read_json_if_there(folder / "config.json")
    if vocab_size is None:
        said = raw.get("padded_vocab_size", raw.get("vocab_size"))
        vocab_size = said if type(said) is int else None
    found = _found(folder, raw, family, vocab_size)
    if found is not None and vocab_size is not None and found[1].size > vocab_size:
        file, tokenizer = found
        raise CheckpointError(
            f"{folder}: the vocabulary has {tokenizer.size:,} tokens, the model {vocab_size:,}; "
            f"{file.name} belongs to another model"
        )
    return found[1] if found else None


def _found(
    folder: Path, raw: Raw, family: str | None, vocab_size: int | None
) -> tuple[Path, Tokenizer] | None:
    ice, model, described = (
        folder / name for name in ("ice_text.model", "tokenizer.model", "tokenizer.json")
    )
    if is_file(ice):
        return ice, _ice_text(ice, raw, vocab_size)
    if is_file(model):
        original = _original(model, raw, family, vocab_size)
        if original is not None:
            return model, original
    return (described, _described(described)) if is_file(described) else None


def _ice_text(file: Path, raw: Raw, vocab_size: int | None) -> IceText:
    inner = _sentencepiece(file)
    if not _knows(file, inner, "[gMASK]"):
        raise CheckpointError(
            f"{file} has no token [gMASK]: it is not ChatGLM-6B's vocabulary; fetch it again"
        )
    shift = _images(file.parent, inner.get_piece_size(), vocab_size)
    with _clear(file):
        tokenizer = IceText(inner, shift=shift)
    _refuse_spare(file, tokenizer, vocab_size)
    said = raw.get("bos_token_id", tokenizer.bos_id)
    if said != tokenizer.bos_id:
        raise CheckpointError(
            f"{file}: <sop> is token {tokenizer.bos_id}, config.json says {said}; "
            "the folder mixes two models"
        )
    return tokenizer


def _images(folder: Path, pieces: int, vocab_size: int | None) -> int:
    """Return how many image tokens come first: the model's size tells, else the settings."""
    if vocab_size is not None:
        return IMAGES if vocab_size >= pieces + IMAGES else 0
    said = read_json_if_there(folder / "tokenizer_config.json").get("num_image_tokens", IMAGES)
    return said if type(said) is int and 0 <= said <= IMAGES else IMAGES


def _original(file: Path, raw: Raw, family: str | None, vocab_size: int | None) -> Tokenizer | None:
    """Read a `tokenizer.model`; None where its kind is not the family's own."""
    data = _content(file)
    ranks = _RANK_LINE.match(data) is not None
    if family is None:
        family = _family(file.parent, raw, ranks)
    if family == "glm4" and (ranks or not is_file(file.with_suffix(".json"))):
        return _ranks(file, data, vocab_size)
    if family in ("chatglm2", "chatglm3"):
        return _pieces(file, raw, family, vocab_size)
    if family == "chatglm":
        raise CheckpointError(
            f"{file.parent} holds no ice_text.model, which is ChatGLM-6B's vocabulary; "
            "its tokenizer.model belongs to another model"
        )
    return None


def _family(folder: Path, raw: Raw, ranks: bool) -> str:
    if raw:
        return family_of(folder, raw)
    return "glm4" if ranks else decide(Facts({}, folder), ("chatglm2", "chatglm3")).family


def _pieces(file: Path, raw: Raw, family: str, vocab_size: int | None) -> Pieces:
    inner = _sentencepiece(file)
    if _knows(file, inner, "[gMASK]"):
        raise CheckpointError(
            f"{file} is ChatGLM-6B's ice_text.model under another name; "
            f"fetch the tokenizer.model of {family}"
        )
    settings = read_json_if_there(file.parent / "tokenizer_config.json")
    with _clear(file):
        _refuse_namesake(file, inner, (raw.get("_name_or_path"), settings.get("name_or_path")))
    roles = family == "chatglm3"
    after = {name: inner.get_piece_size() + at for at, name in enumerate((*NAMES, *ROLES))}
    added = {
        name: number
        for name, number in _added(file.parent, settings).items()
        if roles and after.get(name) == number
    }
    with _clear(file):
        tokenizer = Pieces(inner, roles=roles, added=added)
    _refuse_spare(file, tokenizer, vocab_size)
    return tokenizer


def _refuse_namesake(
    file: Path, inner: sentencepiece.SentencePieceProcessor, names: tuple[object, object]
) -> None:
    """Refuse another vocabulary of the same size where the folder says that it is ChatGLM's."""
    said = " ".join(each.lower() for each in names if isinstance(each, str))
    if inner.get_piece_size() != _PUBLISHED_SIZE or "chatglm" not in said or "codegeex" in said:
        return
    if any(inner.id_to_piece(number) != piece for number, piece in _PUBLISHED.items()):
        raise CheckpointError(
            f"{file} has the size of ChatGLM's vocabulary and other pieces (CodeGeeX2's is such a "
            "one); fetch the file that belongs to the model"
        )


def _ranks(file: Path, data: bytes, vocab_size: int | None) -> Ranks:
    ranks = _read_ranks(file, data)
    settings = read_json_if_there(file.parent / "tokenizer_config.json")
    specials = _added(file.parent, settings)
    if not specials:
        specials = {name: len(ranks) + at for at, name in enumerate(SPECIALS)}
    missing = sorted(set(SPECIALS[:10]) - set(specials))
    if missing:
        raise CheckpointError(
            f"{file.parent / 'tokenizer_config.json'} lists no {', '.join(missing)}: "
            "it belongs to another model"
        )
    first = min(specials.values())
    if first != len(ranks):
        raise CheckpointError(
            f"{file} has {len(ranks):,} tokens, and tokenizer_config.json goes on from {first:,}; "
            "the file is cut short or belongs to another model: fetch it again"
        )
    tokenizer = Ranks(ranks, specials)
    _refuse_spare(file, tokenizer, vocab_size)
    return tokenizer


def _read_ranks(file: Path, data: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    try:
        for line in data.splitlines():
            piece, number = line.split()
            ranks[base64.b64decode(piece, validate=True)] = int(number)
    except (ValueError, binascii.Error) as error:
        raise CheckpointError(
            f"{file} is damaged at line {len(ranks) + 1} ({error}); fetch it again"
        ) from error
    alphabet = all(bytes([each]) in ranks for each in range(256))
    if sorted(ranks.values()) != list(range(len(ranks))) or not alphabet:
        raise CheckpointError(f"{file} is damaged: tokens are missing; fetch it again")
    return ranks


def _added(folder: Path, settings: Raw) -> dict[str, int]:
    """Return the tokens that `tokenizer_config.json` adds, by name."""
    listed = settings.get("added_tokens_decoder") or {}
    try:
        return {str(each["content"]): int(number) for number, each in listed.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: added_tokens_decoder is damaged; fetch it again"
        ) from error


def _refuse_spare(file: Path, tokenizer: Tokenizer, vocab_size: int | None) -> None:
    if vocab_size is not None and vocab_size - tokenizer.size > _SPARE:
        raise CheckpointError(
            f"{file} has {tokenizer.size:,} tokens, the model {vocab_size:,}; "
            "the file is cut short or belongs to another model: fetch it again"
        )


def _described(file: Path) -> Described:
    settings = read_json_if_there(file.parent / "tokenizer_config.json")
    try:
        return Described(tokenizers.Tokenizer.from_buffer(_content(file)), settings)
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise CheckpointError(f"{file} is damaged ({error}); fetch it again") from error


@contextmanager
def _clear(file: Path) -> Iterator[None]:
    """Turn what SentencePiece raises on damaged pieces into one clear error."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        raise CheckpointError(
            f"{file} is damaged or no SentencePiece model; fetch it again"
        ) from error


def _knows(file: Path, inner: sentencepiece.SentencePieceProcessor, piece: str) -> bool:
    with _clear(file):
        return not inner.is_unknown(inner.piece_to_id(piece))


def _sentencepiece(file: Path) -> sentencepiece.SentencePieceProcessor:
    data = _content(file)
    with _clear(file):
        inner = sentencepiece.SentencePieceProcessor(model_proto=data)
    if not inner.get_piece_size():
        raise CheckpointError(f"{file} holds no tokens; fetch it again")
    return inner


def _content(file: Path) -> bytes:
    try:
        size = file.stat().st_size
        if size > _LARGEST:
            raise CheckpointError(f"{file} has {size:,} bytes; no vocabulary is that large")
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error}); fetch it again") from error
    if not data:
        raise CheckpointError(f"{file} is empty; fetch it again")
    if data.startswith(_POINTER):
        raise CheckpointError(
            f"{file} is a Git LFS pointer, not the file itself; run: git lfs pull"
        )
    return data
