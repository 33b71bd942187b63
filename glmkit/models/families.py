"""Which family a model belongs to: what decides its vocabulary, its prompts and its stop tokens.

The layout of a folder narrows the families down; what is left open is decided by hints, a table
tried in order. ChatGLM2 and ChatGLM3 in particular have the same fields and the same tensors:
nothing but such hints tells them apart, and whoever knows better says so with ``family``.

=============  ==============================================================================
``chatglm``    ChatGLM-6B, generation 1
``chatglm2``   ChatGLM2-6B, its 32k version, CodeGeeX2
``chatglm3``   ChatGLM3-6B, its 32k and 128k versions
``glm4``       GLM-4-9B, in its original layout or in Hugging Face's `glm`; CodeGeeX4
``glm4-0414``  GLM-4-0414 and GLM-Z1 (Hugging Face's `glm4`)
``llama``      a Llama-shaped model that is re-expressed as `glm`, such as the embedded default
``glm``        any other model in Hugging Face's `glm` layout
=============  ==============================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import CheckpointError, UnknownNameError, UsageError
from .files import is_file, read_json_if_there

Raw = Mapping[str, Any]

FAMILIES = ("chatglm", "chatglm2", "chatglm3", "glm4", "glm4-0414", "llama", "glm")
GLM4_VOCABULARY = 151_552
_VOCABULARY = 65_024
"""Of ChatGLM2 and ChatGLM3."""
_MOST_CODE = 1 << 18


@dataclass(frozen=True)
class Finding:
    """The family of a model, and how it is known."""

    family: str
    why: str
    """For a person: what settled it."""
    certain: bool = True
    """False where the hint that settled it is weak: better say ``family``."""


@dataclass(frozen=True)
class Facts:
    """What the hints look at: config.json, and the files beside it where there is a folder."""

    raw: Raw
    folder: Path | None = None
    _cache: dict[str, Raw] = field(default_factory=dict, repr=False)

    def table(self, name: str) -> Raw:
        """Return the object in a JSON file, empty where it is absent or damaged.

        Whoever needs the file itself reports the damage.
        """
        if name not in self._cache:
            try:
                found = read_json_if_there(self.folder / name) if self.folder else {}
            except CheckpointError:
                found = {}
            self._cache[name] = found
        return self._cache[name]

    def has(self, pattern: str) -> bool:
        """Tell whether the folder has a file of that kind."""
        return self.folder is not None and next(self.folder.glob(pattern), None) is not None

    @cached_property
    def tokenizer_code(self) -> str:
        """The text of the original tokenizer's source, where it lies beside; it is never run."""
        file = self.folder / "tokenization_chatglm.py" if self.folder else None
        if file is None or not is_file(file):
            return ""
        with file.open("rb") as stream:
            return stream.read(_MOST_CODE).decode("utf-8", "replace")

    @cached_property
    def name(self) -> str:
        """The folder's name; of a snapshot in Hugging Face's cache the repository's."""
        if self.folder is None:
            return ""
        folder = self.folder.absolute()
        return folder.parents[1].name if folder.parent.name == "snapshots" else folder.name

    @cached_property
    def rope(self) -> Raw:
        """The rotary settings of Hugging Face's layouts."""
        rope = self.raw.get("rope_parameters")
        return rope if isinstance(rope, Mapping) else self.raw


_NAMES = {
    "chatglm2": re.compile(r"chatglm[-_]?2|codegeex[-_]?2"),
    "chatglm3": re.compile(r"chatglm[-_]?3"),
    "glm4": re.compile(r"glm[-_]?4|codegeex[-_]?4"),
}


def family_in(name: object) -> str | None:
    """Return the family that a hub id or path names, its last part first."""
    if not isinstance(name, str):
        return None
    for part in reversed(PurePosixPath(name.lower().replace("\\", "/")).parts):
        found = [family for family, pattern in _NAMES.items() if pattern.search(part)]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _vocabulary_size(facts: Facts) -> object:
    return facts.raw.get("padded_vocab_size", facts.raw.get("vocab_size"))


def _by_shape(facts: Facts) -> str | None:
    """Recognise GLM-4-9B by its vocabulary, its stop ids or its uncommon epsilon."""
    stops = facts.raw.get("eos_token_id")
    epsilon = facts.raw.get("layernorm_epsilon", facts.raw.get("rms_norm_eps"))
    late = isinstance(stops, list) and any(type(each) is int and each > 151_328 for each in stops)
    same = _vocabulary_size(facts) == GLM4_VOCABULARY
    return "glm4" if same or late or epsilon == 1.5625e-07 else None


def _by_template(facts: Facts) -> str | None:
    table = facts.table("tokenizer_config.json")
    if table.get("tokenizer_class") == "ChatGLM4Tokenizer":
        return "glm4"
    named = family_in(table.get("name_or_path"))
    if named:
        return named
    said = str([table.get("chat_template"), table.get("added_tokens_decoder")])
    if "<|assistant|>" in said:
        return "chatglm3"
    return "chatglm2" if "[Round" in said else None


def _by_code(facts: Facts) -> str | None:
    code = facts.tokenizer_code
    if "class ChatGLM4Tokenizer" in code:
        return "glm4"
    if "class ChatGLMTokenizer" not in code:
        return None
    return "chatglm3" if "<|observation|>" in code else "chatglm2"


def _is_second_or_third(facts: Facts) -> bool:
    """Tell whether only ChatGLM2 and ChatGLM3 are in question."""
    return facts.raw.get("model_type") == "chatglm" or _vocabulary_size(facts) == _VOCABULARY


def _by_length(facts: Facts) -> str | None:
    """Tell by what was published: 32k from the start was ChatGLM2, 8k ChatGLM3."""
    if not _is_second_or_third(facts):
        return None
    ratio = facts.raw.get("rope_ratio", 1)
    if ratio not in (1, None):
        return "chatglm2" if ratio == 16 else "chatglm3"
    length = facts.raw.get("seq_length", facts.raw.get("max_position_embeddings"))
    known = {32_768: "chatglm2", 8_192: "chatglm3"}
    return known.get(length) if type(length) is int else None


def _by_weights(facts: Facts) -> str | None:
    if not _is_second_or_third(facts):
        return None
    if facts.raw.get("quantization_bit"):
        return "chatglm2"
    if facts.has("*.safetensors"):
        return "chatglm3"
    return "chatglm2" if facts.has("pytorch_model*.bin") else None


@dataclass(frozen=True)
class Hint:
    """One thing that may tell the family."""

    why: str
    find: Callable[[Facts], str | None]
    certain: bool = True


HINTS: tuple[Hint, ...] = (
    Hint("glmkit.json names it", lambda facts: facts.table("glmkit.json").get("family")),
    Hint(
        "whole heads turn with the position",
        lambda facts: "llama" if facts.rope.get("partial_rotary_factor") == 1 else None,
    ),
    Hint("vocabulary size, stop ids or epsilon of GLM-4-9B", _by_shape),
    Hint("config.json: _name_or_path", lambda facts: family_in(facts.raw.get("_name_or_path"))),
    Hint("tokenizer_config.json: class, name, tokens or template", _by_template),
    Hint("tokenization_chatglm.py beside it", _by_code),
    Hint("the folder's name", lambda facts: family_in(facts.name)),
    Hint("context length and rope_ratio as published", _by_length, certain=False),
    Hint("kind of weight files as published", _by_weights, certain=False),
)
"""Tried in order; a hint at a family that the layout rules out says nothing."""


def decide(facts: Facts, allowed: Sequence[str], family: str | None = None) -> Finding:
    """Return the family, out of those that a layout allows.

    :param allowed: the last one is taken where nothing gives a hint.
    :param family: what the user says; it settles the matter.
    :raises UnknownNameError: if ``family`` is no family.
    :raises UsageError: if the layout rules ``family`` out.
    """
    if family is not None:
        return Finding(_checked(family, allowed, facts.folder), "as you said")
    if len(allowed) == 1:
        return Finding(allowed[0], "the fields of config.json")
    for hint in HINTS:
        found = hint.find(facts)
        if found in allowed:
            return Finding(str(found), hint.why, hint.certain)
    return Finding(allowed[-1], "nothing says otherwise", certain=allowed[-1] == "glm")


def _checked(family: str, allowed: Sequence[str], folder: Path | None) -> str:
    if family not in FAMILIES:
        raise UnknownNameError("family", family, FAMILIES)
    if family not in allowed:
        *others, last = allowed
        kinds = f"{', '.join(others)} or {last}" if others else last
        whose = f"{folder} has the config.json" if folder else "this is the config.json"
        raise UsageError(f"{whose} of a {kinds} model; --family {family} does not fit")
    return family
