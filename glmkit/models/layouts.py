"""Which files on disk are which model: a table of layouts, tried in order.

A layout says how to recognise a parsed config.json, which families are written so, how to read
the model's shape, and where each of our tensors lies under other names. What glmkit knows of but
cannot run is refused here, by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import CheckpointError
from . import shapes
from .families import Facts, Finding, decide
from .files import read_json

if TYPE_CHECKING:
    from .causal import CausalModel, ModelConfig

Raw = Mapping[str, Any]
OWN = ("chatglm", "glm", "glm4")
"""The ``model_type`` of what glmkit runs by itself."""


@dataclass(frozen=True)
class Layout:
    """One way in which checkpoints are written."""

    name: str
    matches: Callable[[Raw], bool]
    families: tuple[str, ...]
    """Which families are written so; the last one is taken where nothing gives a hint."""
    architecture: str
    """``"module.class"`` of the model, imported when it is needed: who reads no weights, but texts,
    does without torch."""
    reader: Callable[[Raw, str], ModelConfig]
    """Takes a parsed config.json and the family, returns the shape."""
    keys: Mapping[str, tuple[str, ...]]
    """Stems of our names -> stems of theirs, ``#`` being a layer's number; several are stacked
    in this order. Empty: the names are the same."""
    unused: tuple[str, ...] = ()
    """Tensors that files hold and nobody needs, as regular expressions."""

    @property
    def model(self) -> Callable[[Any], CausalModel]:
        """The class of the model."""
        module, _, name = self.architecture.partition(".")
        return cast(
            "Callable[[Any], CausalModel]", getattr(import_module(f".{module}", __package__), name)
        )

    def shape(self, raw: Raw, family: str | None = None) -> ModelConfig:
        """Read the model's shape.

        :param family: None: as the hints in ``raw`` say; see :func:`family_of` for a folder.
        :raises CheckpointError: if a field is missing or out of range.
        """
        return self.reader(raw, decide(Facts(raw), self.families, family).family)

    def sources(self, stem: str) -> tuple[str, ...]:
        """Return the stems on disk that make up our module ``stem``."""
        if not self.keys:
            return (stem,)
        number = re.search(r"\.(\d+)\.", stem)
        pattern = stem if number is None else stem.replace(number[0], ".#.", 1)
        layer = number[1] if number else ""
        return tuple(each.replace("#", layer) for each in self.keys[pattern])

    def ignores(self, key: str) -> bool:
        """Tell whether the tensor ``key`` on disk is known to be of no use."""
        return any(re.fullmatch(each, key) for each in self.unused)


def recognise(raw: Raw) -> Layout:
    """Return the layout that a parsed config.json describes.

    :raises CheckpointError: if it is none that glmkit runs; says which it is where that is known.
    """
    for found, reason in _REFUSED:
        if found(raw):
            raise CheckpointError(reason)
    for layout in LAYOUTS:
        if layout.matches(raw):
            return layout
    known = ", ".join(layout.name for layout in LAYOUTS)
    kind = shapes.shown(raw.get("model_type"))
    raise CheckpointError(
        f"config.json: model_type {kind} is no layout that glmkit runs; it runs {known}"
    )


def identify(folder: Path | None, raw: Raw, family: str | None = None) -> Finding:
    """Return the family of a folder's model, and how it is known.

    :param folder: where the hints lie; None: only ``raw`` gives any.
    :param raw: its parsed config.json.
    :param family: what the user says, which settles it.
    :raises CheckpointError: if it is no model that glmkit runs.
    :raises UsageError: if ``family`` is none, or its config.json cannot be of that family.
    """
    return decide(Facts(raw, folder), recognise(raw).families, family)


def family_of(folder: Path | None, raw: Raw, family: str | None = None) -> str:
    """Return the name of the family; see :func:`identify` and :mod:`glmkit.models.families`."""
    return identify(folder, raw, family).family


@dataclass(frozen=True)
class Recognised:
    """What the config.json of a folder says."""

    raw: dict[str, Any]
    layout: Layout
    finding: Finding
    config: ModelConfig


def read_model(folder: Path, family: str | None = None) -> Recognised:
    """Read a folder's config.json.

    :param family: what the user says, which settles it.
    :raises CheckpointError: if it is no model that glmkit runs; names the file.
    :raises UsageError: if ``family`` is none, or its config.json cannot be of that family.
    """
    raw = read_json(folder / "config.json")
    with located(folder):
        layout = recognise(raw)
        finding = decide(Facts(raw, folder), layout.families, family)
        return Recognised(raw, layout, finding, layout.shape(raw, finding.family))


@contextmanager
def located(folder: Path) -> Iterator[None]:
    """Let errors over the parsed config.json of a folder say which folder that is."""
    try:
        yield
    except CheckpointError as error:
        said = str(error)
        # Most of them begin with the name of the file: the path goes in front of it.
        where = f"{folder}{os.sep}" if said.startswith("config.json") else f"{folder}: "
        raise CheckpointError(where + said) from error


_HUB_KEYS = {
    "transformer.embedding.word_embeddings": ("model.embed_tokens",),
    "transformer.encoder.layers.#.input_layernorm": ("model.layers.#.input_layernorm",),
    "transformer.encoder.layers.#.self_attention.query_key_value": (
        "model.layers.#.self_attn.q_proj",
        "model.layers.#.self_attn.k_proj",
        "model.layers.#.self_attn.v_proj",
    ),
    "transformer.encoder.layers.#.self_attention.dense": ("model.layers.#.self_attn.o_proj",),
    "transformer.encoder.layers.#.post_attention_layernorm": (
        "model.layers.#.post_attention_layernorm",
    ),
    "transformer.encoder.layers.#.mlp.dense_h_to_4h": ("model.layers.#.mlp.gate_up_proj",),
    "transformer.encoder.layers.#.mlp.dense_4h_to_h": ("model.layers.#.mlp.down_proj",),
    "transformer.encoder.final_layernorm": ("model.norm",),
    "transformer.output_layer": ("lm_head",),
}


_SANDWICH_KEYS = _HUB_KEYS | {
    f"transformer.encoder.layers.#.{norm}": (f"model.layers.#.{norm}",)
    for norm in ("post_self_attn_layernorm", "post_mlp_layernorm")
}


def _is_chatglm(raw: Raw) -> bool:
    return raw.get("model_type") == "chatglm"


def _is_first_generation(raw: Raw) -> bool:
    return _is_chatglm(raw) and ("inner_hidden_size" in raw or "position_encoding_2d" in raw)


_REFUSED: tuple[tuple[Callable[[Raw], bool], str], ...] = (
    (
        lambda raw: "vision_config" in raw,
        "this checkpoint reads images (vision_config), which glmkit does not run",
    ),
)

HUB = Layout(
    "glm (Hugging Face layout)",
    matches=lambda raw: raw.get("model_type") == "glm",
    families=("glm4", "chatglm2", "chatglm3", "llama", "glm"),
    architecture="glm.Glm",
    reader=shapes.hub,
    keys=_HUB_KEYS,
    unused=(r".*\.rotary_emb\.inv_freq",),
)

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "chatglm-6b (original layout of generation 1)",
        matches=_is_first_generation,
        families=("chatglm",),
        architecture="chatglm.ChatGlm",
        reader=shapes.first,
        keys={},
        unused=(r"transformer\.layers\.\d+\.attention\.rotary_emb\.inv_freq",),
    ),
    HUB,
    Layout(
        "glm4 (Hugging Face layout of GLM-4-0414)",
        matches=lambda raw: raw.get("model_type") == "glm4",
        families=("glm4-0414",),
        architecture="glm.Glm",
        reader=shapes.hub_sandwich,
        keys=_SANDWICH_KEYS,
        unused=(r".*\.rotary_emb\.inv_freq",),
    ),
    Layout(
        "chatglm (original layout of ChatGLM2, ChatGLM3 and GLM-4-9B)",
        matches=_is_chatglm,
        families=("glm4", "chatglm2", "chatglm3"),
        architecture="glm.Glm",
        reader=shapes.original,
        keys={},
        unused=(r"transformer\.rotary_pos_emb\.inv_freq",),
    ),
)
