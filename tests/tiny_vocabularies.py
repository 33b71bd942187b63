"""Tiny vocabularies of every original kind, trained on a few lines."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from pathlib import Path

LINES = (
    "The quick brown fox doesn't jump over the lazy dog. Hello, world!",
    "你好，请介绍一下清华大学。今天天气怎么样？",
    "[Round 1] 问：你是谁？答：我是一个人工智能助手。",
    "def f(x): return {'name': x, \"values\": [1, 2, 3]}",
)
GLM4_SPECIALS = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
)


def pieces_model(**settings: object) -> bytes:
    """Return a SentencePiece model with byte fallback, ids 0 to 2 as in ChatGLM2's."""
    from sentencepiece import SentencePieceTrainer

    writer = io.BytesIO()
    options: dict[str, object] = {
        "vocab_size": 420,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
    }
    SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 4), model_writer=writer, **(options | settings)
    )
    return writer.getvalue()


def ice_text_model() -> bytes:
    """Return a model with the special pieces of ChatGLM-6B's."""
    names = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
    blanks = [f"<|blank_{size}|>" for size in range(2, 81)]
    return pieces_model(
        vocab_size=520,
        normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=True,
        pad_id=3,
        control_symbols=names,
        user_defined_symbols=["<n>", "<|tab|>", *blanks],
    )


def ranks_model(more: Iterable[bytes] = (b"he", b"ll", b"hell", b" w", "你".encode())) -> bytes:
    """Return byte pairs by rank in tiktoken's form: all bytes, then some pairs."""
    pieces = [bytes([each]) for each in range(256)] + [b"\xe4\xbd", *more]
    lines = (f"{base64.b64encode(each).decode()} {at}\n" for at, each in enumerate(pieces))
    return "".join(lines).encode()


def write_ice_text(folder: Path) -> Path:
    """Write the vocabulary files of ChatGLM-6B."""
    return _write(folder, "ice_text.model", ice_text_model(), {"num_image_tokens": 0})


def write_pieces(folder: Path, name: str = "chatglm3-6b") -> Path:
    """Write the vocabulary files of ChatGLM2 or ChatGLM3."""
    settings = {"name_or_path": f"THUDM/{name}"}
    return _write(folder, "tokenizer.model", pieces_model(), settings)


def write_ranks(folder: Path) -> Path:
    """Write the vocabulary files of GLM-4-9B."""
    data = ranks_model()
    first = data.count(b"\n")
    added = {str(first + at): {"content": name} for at, name in enumerate(GLM4_SPECIALS)}
    settings = {"tokenizer_class": "ChatGLM4Tokenizer", "added_tokens_decoder": added}
    return _write(folder, "tokenizer.model", data, settings)


def write_described(folder: Path, **added: bool) -> Path:
    """Write a byte-level `tokenizer.json` with added tokens, special or not."""
    from tokenizers import AddedToken, Tokenizer as Library, decoders, models, pre_tokenizers

    names = ["<unk>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Library(models.BPE({name: at for at, name in enumerate(names)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_tokens([AddedToken(name, special=special) for name, special in added.items()])
    inner.save(str(folder / "tokenizer.json"))
    said = {"eos_token": {"content": "</s>"}, "pad_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def _write(folder: Path, name: str, data: bytes, settings: dict[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


KINDS = {
    "chatglm": write_ice_text,
    "chatglm2": lambda folder: write_pieces(folder, "chatglm2-6b"),
    "chatglm3": write_pieces,
    "glm4": write_ranks,
}
"""What writes a small vocabulary of each kind into a folder."""
