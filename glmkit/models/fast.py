"""Original vocabularies as Hugging Face's `tokenizer.json`, which encodes to the same ids.

A vocabulary of byte pairs is a list of pieces in the order in which they are merged. The format
wants to know which two pieces each one is merged from: any two will do that are pieces themselves.

One thing cannot be the same. The original tokenizers of ChatGLM2 and ChatGLM3 never read special
tokens in text; a `tokenizer.json` does, unless it is asked not to (``split_special_tokens=True``).
Chat templates need that, so it stays on.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from .spelling import SPACE, byte_names

Text = TypeVar("Text", str, bytes)

RENAMED = {"sop": "<sop>", "eop": "<eop>"}
"""As they are, these names would be found inside words."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def from_pieces(file: Path, names: Mapping[str, int]) -> Tokenizer:
    """Express the SentencePiece vocabulary of ChatGLM2 and ChatGLM3.

    :param names: the special tokens that follow it, by name; see :data:`RENAMED`.
    """
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    pieces = {model.id_to_piece(at): at for at in range(model.get_piece_size())}
    silent = (model.is_byte, model.is_control, model.is_unknown, model.is_unused)
    plain = {piece: at for piece, at in pieces.items() if not any(test(at) for test in silent)}
    ordered = sorted(plain, key=lambda piece: -model.get_score(plain[piece]))
    fast = Tokenizer(
        models.BPE(
            pieces,
            list(_merges(ordered, plain)),
            unk_token=model.id_to_piece(model.unk_id()),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    # Each stretch of text between special tokens begins with a space of its own, as each message
    # does that the original encodes by itself.
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    known = [model.id_to_piece(at) for at in (model.unk_id(), model.bos_id(), model.eos_id())]
    _add(fast, [*known, *_in_order(names, len(pieces))])
    _frame(fast, end=model.id_to_piece(model.eos_id()))
    return fast


def from_ranks(file: Path, names: Mapping[str, int]) -> Tokenizer:
    """Express the tiktoken vocabulary of GLM-4-9B.

    :param names: the special tokens that follow it, by name.
    """
    lines = (line.split() for line in file.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(piece): int(rank) for piece, rank in lines}
    shown = byte_names()
    ordered = sorted(ranks, key=ranks.__getitem__)
    merges = [
        (left.decode("latin-1").translate(shown), right.decode("latin-1").translate(shown))
        for left, right in _merges(ordered, ranks)
    ]
    pieces = {piece.decode("latin-1").translate(shown): rank for piece, rank in ranks.items()}
    fast = Tokenizer(models.BPE(pieces, merges, ignore_merges=True))
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    _add(fast, _in_order(names, len(pieces)))
    _frame(fast, end="<|endoftext|>")
    return fast


def to_ranks(fast: Tokenizer) -> bytes | None:
    """Return the tiktoken file of a byte-level `tokenizer.json`; None where it is no such one."""
    bytes_of = {name: value for value, name in byte_names().items()}
    table = fast.get_vocab(with_added_tokens=False)
    ordered = sorted(table, key=table.__getitem__)
    if [table[each] for each in ordered] != list(range(len(ordered))):
        return None
    if not set("".join(ordered)) <= set(bytes_of):
        return None
    data = (bytes(bytes_of[each] for each in piece) for piece in ordered)
    return b"".join(b"%s %d\n" % (base64.b64encode(each), at) for at, each in enumerate(data))


def _merges(ordered: Iterable[Text], known: Mapping[Text, int]) -> Iterator[tuple[Text, Text]]:
    """Yield, for each piece in its order, the two pieces that it may be merged from."""
    for piece in ordered:
        cuts = [at for at in range(1, len(piece)) if piece[:at] in known and piece[at:] in known]
        cuts.sort(key=lambda at: (known[piece[:at]], known[piece[at:]]))
        for at in cuts:
            yield piece[:at], piece[at:]


def _in_order(names: Mapping[str, int], start: int) -> list[str]:
    """Return the special tokens, renamed, that fill the ids from ``start`` on."""
    after = {number: name for name, number in names.items() if number >= start}
    return [RENAMED.get(after[at], after[at]) for at in range(start, start + len(after))]


def _add(fast: Tokenizer, names: Sequence[str]) -> None:
    fast.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in names])


def _frame(fast: Tokenizer, *, end: str) -> None:
    """Put [gMASK] <sop> before each text, and ``end`` behind a pair."""
    fast.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A",
        pair=f"[gMASK] <sop> $A $B {end}",
        special_tokens=[(each, fast.token_to_id(each)) for each in ("[gMASK]", "<sop>", end)],
    )
