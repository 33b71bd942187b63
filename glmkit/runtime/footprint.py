"""How much memory the weights of a model take, foretold from its shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from ..models.causal import CausalModel, ModelConfig
from .headers import PREFIX, leaves
from .quantize import GROUP

TOKENS = 1_000


@dataclass(frozen=True)
class Memory:
    """Bytes that a model takes, without the activations of the moment."""

    weights: Mapping[str, int]
    """By dtype, and by ``quantize``, with half precision for what is not quantised then. The token
    table stays as it is stored, prefixes in single precision."""
    cache_per_1000_tokens: Mapping[str, int]
    """Keys and values of one answer, by dtype."""


@dataclass
class Numbers:
    """How many numbers a part of a model holds, by what becomes of them."""

    matrices: int = 0
    """In linears, which may be quantised."""
    rows: int = 0
    """Of these matrices."""
    small: int = 0
    """In norms and biases."""

    def size(self, each: int, quantize: str | None = None) -> int:
        """Return the bytes that the part takes.

        :param each: bytes of a number that is not quantised.
        :param quantize: ``"int8"`` (a scale for each row), ``"int4"`` (a scale and a minimum for
            each group) or None.
        """
        if quantize is None:
            return each * (self.matrices + self.small)
        if quantize == "int8":
            return self.matrices + 2 * self.rows + each * self.small
        return self.matrices // 2 + 2 * 2 * self.matrices // GROUP + each * self.small

    def take(self, module: nn.Module) -> None:
        """Count a module's own parameters."""
        total = sum(each.numel() for each in module.parameters(recurse=False))
        if isinstance(module, nn.Linear):
            self.matrices += module.weight.numel()
            self.rows += module.out_features
            total -= module.weight.numel()
        self.small += total


@dataclass
class Anatomy:
    """The parts of a model that may lie on different devices."""

    config: ModelConfig
    layer: Numbers = field(default_factory=Numbers)
    """One block; they are alike."""
    head: Numbers = field(default_factory=Numbers)
    norm: Numbers = field(default_factory=Numbers)
    """The last one, in front of the head."""
    prefix: int = 0
    """Numbers of a P-Tuning prefix."""
    linears: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The linears of one block by the last part of their names: columns, rows."""
    whole: bool = False
    """Prompts run whole; those of other models come in in pieces."""
    table: float | None = None
    """Bytes of a number of the token table, where it lies rounded too; None: as the others."""

    @property
    def scores(self) -> int:
        """Numbers of the token table, and of the head."""
        return self.config.vocab_size * self.config.hidden_size


def anatomy(model: CausalModel) -> Anatomy:
    """Return the parts of a model.

    :param model: on the meta device.
    """
    found = Anatomy(model.config, whole=not model.REUSABLE)
    for stem, module in leaves(model):
        if stem == model.EMBEDDING:
            continue
        if stem.startswith(PREFIX):
            found.prefix += sum(each.numel() for each in module.parameters(recurse=False))
        elif ".layers.0." in stem:
            found.layer.take(module)
            if isinstance(module, nn.Linear):
                size = (module.in_features, module.out_features)
                found.linears[stem.rpartition(".")[2]] = size
        elif stem == model.HEAD:
            found.head.take(module)
        elif ".layers." not in stem:
            found.norm.take(module)
    return found


def footprint(model: CausalModel, table: int) -> Memory:
    """Return what a model takes.

    :param model: on the meta device.
    :param table: bytes of the token table as it is stored.
    """
    parts = anatomy(model)
    config = model.config
    kept = table + 4 * parts.prefix
    plain = (("float32", 4), ("bfloat16", 2), ("float16", 2))
    return Memory(
        {dtype: _plain(parts, size, table) + kept for dtype, size in plain}
        | {bits: _blocks(parts, 2, bits) + parts.head.size(2, "int8") + kept for bits in _ROUNDED},
        {dtype: size * _cache(config) for dtype, size in (("float32", 4), ("float16", 2))},
    )


_ROUNDED = ("int8", "int4")
"""The head gets int8 also under int4: rounding it costs most quality."""


def _plain(parts: Anatomy, size: int, table: int) -> int:
    """Return bytes beside the token table; a tied head shares it where the dtype is the same."""
    shared = parts.config.tied_head and table == size * parts.scores
    return _blocks(parts, size, None) + (0 if shared else parts.head.size(size))


def _blocks(parts: Anatomy, size: int, quantize: str | None) -> int:
    return parts.config.layers * parts.layer.size(size, quantize) + parts.norm.size(size)


def _cache(config: ModelConfig) -> int:
    return cached_per_token(config) * config.layers * TOKENS


def cached_per_token(config: ModelConfig) -> int:
    """Return how many numbers a token leaves in the cache of one layer."""
    return 2 * config.kv_heads * config.head_dim
