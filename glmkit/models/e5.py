"""The multilingual-e5 encoder: a BERT stack, mean pooling and unit vectors.

Shapes: B texts, T tokens of the longest, D hidden size, H heads, F inner size, V vocabulary.
Parameter names are those of Hugging Face's ``BertModel``, except that query, key and value are one
projection, and that a 4-bit table keeps its blocks as ``<name>.nibbles`` and ``<name>.scales``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError

BLOCK = 32
"""Weights that share one scale."""

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True)
class E5Config:
    """The sizes of one encoder."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise CheckpointError(f"encoder {field.name} must be above 0, got {value!r}")
        if self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            raise CheckpointError(
                f"hidden size {self.hidden_size} does not divide by {heads} heads"
            )
        if self.hidden_size % BLOCK or self.intermediate_size % BLOCK:
            sizes = f"{self.hidden_size} and {self.intermediate_size}"
            raise CheckpointError(
                f"hidden and inner size must be multiples of {BLOCK}, got {sizes}"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> E5Config:
        """Return the sizes named in a ``config.json``.

        :raises CheckpointError: if one is missing or out of range.
        """
        missing = [each.name for each in fields(cls) if each.name not in values]
        if missing:
            raise CheckpointError(f"encoder config lacks {', '.join(missing)}; pull it again")
        return cls(**{each.name: values[each.name] for each in fields(cls)})


def dequantize(nibbles: Tensor, scales: Tensor) -> Tensor:
    """Return the weights of 4-bit rows, float32.

    :param nibbles: uint8 (..., n / 2); in a block of 32, byte j holds weight j in its low half and
        weight j + 16 in its high half, both offset by 8.
    :param scales: float16 (..., n / 32), one per block.
    """
    blocks = nibbles.reshape(*scales.shape, BLOCK // 2)
    levels = torch.cat((blocks & 15, blocks >> 4), dim=-1).float().sub_(8.0)
    return levels.mul_(scales.float().unsqueeze(-1)).flatten(-2)


class Linear(nn.Linear):
    """A linear layer that is always filled from a checkpoint."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are: filling them with noise first takes time."""


class Embedding(nn.Embedding):
    """A table that is always filled from a checkpoint."""

    def reset_parameters(self) -> None:
        """Leave the rows as they are."""


class PackedEmbedding(nn.Module):
    """A table of 4-bit rows; only the rows asked for are ever expanded."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        nibbles = torch.empty(rows, width // 2, dtype=torch.uint8)
        self.nibbles = nn.Parameter(nibbles, requires_grad=False)
        scales = torch.empty(rows, width // BLOCK, dtype=torch.float16)
        self.scales = nn.Parameter(scales, requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return rows (..., D) of ``ids`` (...), float32."""
        return dequantize(self.nibbles[ids], self.scales[ids])


class Embeddings(nn.Module):
    """Word, position and (always the first) type vectors, added and normalised."""

    def __init__(self, config: E5Config) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = PackedEmbedding(config.vocab_size, width)
        self.position_embeddings = Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (B, T, D) of ids (B, T)."""
        place = (
            self.position_embeddings.weight[: ids.shape[1]] + self.token_type_embeddings.weight[0]
        )
        words: Tensor = self.word_embeddings(ids).to(place.dtype)
        normed: Tensor = self.LayerNorm(words + place)
        return normed


class Layer(nn.Module):
    """Attention and feed-forward, each followed by residual and norm."""

    def __init__(self, config: E5Config) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.qkv = Linear(width, 3 * width)
        self.attention_output = Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.intermediate = Linear(width, inner)
        self.output = Linear(inner, width)
        self.output_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return (B, T, D); ``mask`` (B, 1, 1, T) is true where there is a token."""
        x = self.attention_norm(self.attention_output(self._attend(x, mask)) + x)
        normed: Tensor = self.output_norm(self.output(F.gelu(self.intermediate(x))) + x)
        return normed

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        qkv = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1)
        q, k, v = (each.transpose(1, 2) for each in qkv.unbind(2))  # (B, H, T, D / H)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return mixed.transpose(1, 2).flatten(2)


class E5Model(nn.Module):
    """Token ids to unit vectors."""

    def __init__(self, config: E5Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return unit vectors (B, D), float32.

        :param ids: (B, T), filled up on the right with any id.
        :param lengths: (B,), tokens of each text, 1 or more.
        """
        real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        mask = None if bool(real.all()) else real[:, None, None, :]
        x = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x, mask)
        total = (x.float() * real[..., None]).sum(dim=1)
        return F.normalize(total, dim=-1)  # the mean points where the sum points


def expected_shapes(config: E5Config) -> Shapes:
    """Return shape and type of each tensor in a checkpoint of these sizes."""
    width, inner = config.hidden_size, config.intermediate_size
    shapes = {
        **_table("embeddings.word_embeddings", config.vocab_size, width),
        "embeddings.position_embeddings.weight": (
            (config.max_position_embeddings, width),
            torch.float32,
        ),
        "embeddings.token_type_embeddings.weight": ((config.type_vocab_size, width), torch.float32),
        **_pair("embeddings.LayerNorm", width),
    }
    for index in range(config.num_hidden_layers):
        start = f"layers.{index}."
        shapes |= _pair(f"{start}attention_norm", width) | _pair(f"{start}output_norm", width)
        for name, rows, columns in (
            ("qkv", 3 * width, width),
            ("attention_output", width, width),
            ("intermediate", inner, width),
            ("output", width, inner),
        ):
            shapes |= _table(start + name, rows, columns)
            shapes[f"{start}{name}.bias"] = ((rows,), torch.float32)
    return shapes


def _table(name: str, rows: int, columns: int) -> Shapes:
    return {
        f"{name}.nibbles": ((rows, columns // 2), torch.uint8),
        f"{name}.scales": ((rows, columns // BLOCK), torch.float16),
    }


def _pair(name: str, width: int) -> Shapes:
    return {f"{name}.{kind}": ((width,), torch.float32) for kind in ("weight", "bias")}
