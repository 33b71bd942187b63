"""Carrying a vocabulary from one layout to the other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import CheckpointError
from ..models import fast
from ..models.files import read_json_if_there
from ..models.templates import TEMPLATES
from ..models.tokenizers import Tokenizer
from ..models.vocabularies import Pieces, Ranks

KEPT = "original"
"""Folder in a Hugging Face folder with what its layout has no place for: the way back finds it."""

_MODEL = "tokenizer.model"
_FAST = "tokenizer.json"
_TEMPLATE = "chat_template.jinja"
_SETTINGS = "tokenizer_config.json"
_BESIDE = (_SETTINGS, "special_tokens_map.json", "added_tokens.json")
_NONE = "there was no vocabulary; the result holds weights and settings only"


@dataclass(frozen=True)
class Model:
    """What a vocabulary needs to know of its model."""

    family: str
    vocab_size: int
    context_length: int


def to_hub(source: Path, target: Path, model: Model) -> list[str]:
    """Write the vocabulary of an original folder as transformers reads it.

    The original file goes along: glmkit prefers it, and so does the way back.

    :return: what a person should know.
    :raises CheckpointError: if the vocabulary is damaged or belongs to another model.
    """
    original = Tokenizer.open(source, family=model.family, vocab_size=model.vocab_size)
    if original is None:
        return [_NONE]
    if not isinstance(original, (Pieces, Ranks)):
        copy(source, target, (_FAST, _TEMPLATE, *_BESIDE))
        return []
    make = fast.from_ranks if isinstance(original, Ranks) else fast.from_pieces
    made = make(source / _MODEL, original.specials)
    _check(made, original)
    made.save(str(target / _FAST), pretty=False)
    copy(source, target, (_MODEL,))
    copy(source, target / KEPT, _BESIDE)
    settings = read_json_if_there(source / _SETTINGS)
    write_json(target / _SETTINGS, _settings(made, original, model))
    (target / _TEMPLATE).write_text(_template(settings, model.family), encoding="utf-8")
    if not (target / "generation_config.json").exists():
        write_json(target / "generation_config.json", _generation(original))
    if isinstance(original, Ranks):
        return []
    return [
        "in tokenizer.json the names of special tokens, typed in a text, become these tokens; "
        "the original takes them for text, as tokenizer(..., split_special_tokens=True) does"
    ]


_SAMPLES = (
    "你好，ChatGLM！ Hello  world\n\n\tdef f(x): return x == 12345.67  # 数字",
    " 👩‍👩‍👧 e\u0301 \u3000ﬁ ①   \r\n....====    ",
)


def _check(made: tokenizers.Tokenizer, original: Tokenizer) -> None:
    """Refuse to write a vocabulary that encodes differently."""
    for text in _SAMPLES:
        if made.encode(text, add_special_tokens=False).ids != original.encode(text):
            raise CheckpointError(
                "tokenizer.model is not built as ChatGLM's is: tokenizer.json would encode "
                "differently; move it out of the folder to convert the weights alone"
            )


def _settings(made: tokenizers.Tokenizer, original: Tokenizer, model: Model) -> dict[str, Any]:
    """Return the tokenizer_config.json."""
    names = {"pad_token": original.pad_id, "eos_token": original.eos_id}
    if isinstance(original, Pieces):
        names |= {"unk_token": original.pad_id, "bos_token": original.bos_id}
    named = {name: made.id_to_token(at) for name, at in names.items() if at is not None}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "padding_side": "left",
        "model_max_length": model.context_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }


def _template(settings: Mapping[str, Any], family: str) -> str:
    """Return the chat template: GLM-4-9B's own describes its built-in tools."""
    own = settings.get("chat_template")
    return own if family == "glm4" and isinstance(own, str) else TEMPLATES[family]


def _generation(original: Tokenizer) -> dict[str, Any]:
    """Return the settings that the original code answers with."""
    stops = [original.special(name) for name in ("<|user|>", "<|observation|>")]
    return {
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.8,
        "eos_token_id": [at for at in (original.eos_id, *stops) if at is not None],
        "pad_token_id": original.pad_id,
    }


def to_original(source: Path, target: Path, model: Model) -> list[str]:
    """Write the vocabulary of a `GlmForCausalLM` folder as the original code reads it.

    :return: what a person should know.
    :raises CheckpointError: if the vocabulary is damaged or belongs to another model.
    """
    if (source / _MODEL).is_file():
        copy(source, target, (_MODEL,))
        copy(source / KEPT, target, _BESIDE)
        return []
    described = Tokenizer.open(source, family=model.family, vocab_size=model.vocab_size)
    if described is None:
        return [_NONE]
    if model.family == "glm4" and _ranked(source, target, described):
        return []
    copy(source, target, (_FAST, _TEMPLATE, *_BESIDE))
    return [
        "there was no tokenizer.model to give back; the result keeps tokenizer.json, which "
        "glmkit reads and ChatGLM's own code does not"
    ]


def _ranked(source: Path, target: Path, described: Tokenizer) -> bool:
    """Write GLM-4-9B's vocabulary from its `tokenizer.json`; False where it is another."""
    table = fast.to_ranks(tokenizers.Tokenizer.from_file(str(source / _FAST)))
    names = described.specials
    known = {"<|endoftext|>", "[gMASK]", "<sop>"} <= set(names)
    if table is None or not known or min(names.values()) != table.count(b"\n"):
        return False
    (target / _MODEL).write_bytes(table)
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    added = {str(at): {"content": name, **flags, "special": True} for name, at in names.items()}
    settings = {
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "remove_space": False,
        "tokenizer_class": "ChatGLM4Tokenizer",
    }
    template = (source / _TEMPLATE).read_text("utf-8") if (source / _TEMPLATE).is_file() else None
    write_json(target / _SETTINGS, settings | ({"chat_template": template} if template else {}))
    original = Tokenizer.open(target, family="glm4")
    return original is not None and all(
        original.encode(each) == described.encode(each) for each in _SAMPLES
    )


def copy(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy those of the files that there are."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write an object as people read it."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
