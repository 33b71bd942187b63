"""GLM generations 2, 3 and 4, and every Llama-shaped model that is re-expressed as one.

The parameter names are those of the original ChatGLM2/3 checkpoints, so that their weights and
adapters load as they are; `layouts.py` maps other layouts onto them. Bottom-up: configuration,
rotary positions, attention, feed-forward, block, model.

Shapes: B rows, T new tokens, S tokens seen so far (cached and new), H query heads, G key/value
heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from .attention import Past, mixed
from .causal import CausalModel, Placer, Stack, Start, project, visible
from .limits import check_numbers, check_sizes
from .prefix import PrefixConfig, PrefixEncoder


@dataclass(frozen=True)
class GlmConfig:
    """The shape of a model."""

    vocab_size: int
    hidden_size: int
    ffn_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context_length: int
    rotary_dim: int
    """How many of each head's components turn with the position; even, up to ``head_dim``."""
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    position_scale: float = 1.0
    """Positions are divided by this: 16 for chatglm2-6b-32k, 1 elsewhere."""
    qkv_bias: bool = False
    tied_head: bool = False
    """The head is the embedding, not a tensor of its own."""
    sandwich: bool = False
    """What each half of a block gives is normed once more before it is added (GLM-4-0414)."""
    prefix: PrefixConfig | None = None

    def __post_init__(self) -> None:
        check_sizes(self, ("vocab_size", "hidden_size", "ffn_size", "layers", "heads", "kv_heads"))
        check_sizes(self, ("head_dim", "context_length"))
        check_numbers(self, ("norm_eps", "rope_theta", "position_scale"))
        self._check_heads()

    def _check_heads(self) -> None:
        if self.heads % self.kv_heads:
            raise CheckpointError(
                f"config.json: {self.heads} attention heads cannot share {self.kv_heads} "
                "key/value heads; the first must be a multiple of the second"
            )
        if type(self.rotary_dim) is not int or not 0 < self.rotary_dim <= self.head_dim:
            raise CheckpointError(
                f"config.json: {self.rotary_dim!r} rotary components do not fit a head "
                f"of {self.head_dim}"
            )
        if self.rotary_dim % 2 or self.head_dim % 2:
            raise CheckpointError(
                f"config.json: head size {self.head_dim} and rotary size {self.rotary_dim} "
                "must be even"
            )

    @property
    def parameters(self) -> int:
        """How many numbers the model's matrices hold; norms and biases are left out."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        block = self.hidden_size * (qkv + self.heads * self.head_dim + 3 * self.ffn_size)
        tables = 1 if self.tied_head else 2
        return self.layers * block + tables * self.vocab_size * self.hidden_size


@dataclass(frozen=True)
class Seen:
    """What the new tokens of one step may look at; the same for every layer."""

    turns: Tensor
    """Rotation of each new token, complex (B, T, 1, rotary_dim / 2)."""
    mask: Tensor | None
    """True where a query may see a key, (B, 1, T, S); None: all, or causal."""
    causal: bool
    past: Past | None

    def to(self, *args: Any, **kwargs: Any) -> Seen:  # noqa: ANN401
        """Return the same on another device, for layers that are spread over several."""
        mask = None if self.mask is None else self.mask.to(*args, **kwargs)
        return Seen(self.turns.to(*args, **kwargs), mask, self.causal, self.past)


def rotations(config: GlmConfig, positions: Tensor) -> Tensor:
    """Return the rotation of each position as complex numbers (B, T, 1, rotary_dim / 2).

    Angles are taken in float32 whatever the model's dtype is: half precision would confuse
    positions beyond a few hundred.

    :param positions: (B, T), from 0.
    """
    exponent = torch.arange(0, config.rotary_dim, 2, device=positions.device).float()
    inverse = 1.0 / config.rope_theta ** (exponent / config.rotary_dim)
    angles = (positions.float() / config.position_scale)[..., None, None] * inverse
    return torch.polar(torch.ones_like(angles), angles)


def rotate_(heads: Tensor, turns: Tensor) -> None:
    """Turn the leading components of each head, pair by pair, in place.

    :param heads: (B, T, heads, D).
    :param turns: complex (B, T, 1, rotary_dim / 2).
    """
    size = turns.shape[-1] * 2
    front = heads if size == heads.shape[-1] else heads[..., :size]
    pairs = front.unflatten(-1, (-1, 2))  # type: ignore[no-untyped-call]
    if heads.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(turns)
    else:
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()).mul_(turns)))


class RmsNorm(nn.Module):
    """Scale each vector to unit mean square; the square is taken in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (..., size) normed."""
        if x.dtype == torch.float32:
            return _rms_norm(x, self.weight, self.eps)
        return _rms_norm(x.float(), self.weight.float(), self.eps).to(x.dtype)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Norm float32 vectors.

    torch has no fused RMS norm on processors, but a fused LayerNorm: of ``x`` beside ``-x`` the
    mean is 0 and the variance is the mean square. For few vectors the calls cost more than the
    arithmetic, and this halves them.
    """
    size = x.shape[-1]
    if x.numel() > _FEW * size or x.device.type != "cpu" or torch.is_grad_enabled():
        return F.rms_norm(x, (size,), weight, eps)
    both = torch.cat((x, x.neg()), dim=-1)
    return F.layer_norm(both, (2 * size,), None, None, eps)[..., :size] * weight


_FEW = 16


class SelfAttention(nn.Module):
    """Grouped-query attention with one fused projection."""

    def __init__(self, config: GlmConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.head_dim = config.head_dim
        width = (config.heads + 2 * config.kv_heads) * config.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.dense = nn.Linear(config.heads * config.head_dim, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, seen: Seen, *, norm: RmsNorm, onto: Tensor | None = None
    ) -> Tensor:
        """Return what ``x`` (B, T, hidden), normed, may see, mixed by attention; add ``onto``."""
        rows, tokens, _ = x.shape
        qkv = project(self.query_key_value, x, norm=norm).view(rows, tokens, -1, self.head_dim)
        known = None
        if seen.past is not None and seen.mask is None:
            known = seen.past.attend(self.layer, qkv, seen.turns)
        return project(self.dense, self._mixed(qkv, seen) if known is None else known, onto=onto)

    def _mixed(self, qkv: Tensor, seen: Seen) -> Tensor:
        """Return what each token of (B, T, H + 2G, D) sees, mixed by torch: (B, T, H D)."""
        rotate_(qkv[:, :, : self.heads + self.kv_heads], seen.turns)
        q, kv = qkv.split_with_sizes((self.heads, 2 * self.kv_heads), dim=2)
        return mixed(q, kv, layer=self.layer, mask=seen.mask, causal=seen.causal, past=seen.past)


class Mlp(nn.Module):
    """The gated feed-forward layer; one matrix holds the gate's rows, then the values'."""

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_size, bias=False)
        self.dense_4h_to_h = nn.Linear(config.ffn_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, *, norm: RmsNorm, onto: Tensor | None = None) -> Tensor:
        """Return what each token of ``x`` (B, T, hidden), normed, makes of itself; add ``onto``."""
        wide = project(self.dense_h_to_4h, x, norm=norm, gated=True)
        return project(self.dense_4h_to_h, wide, onto=onto)


class Block(nn.Module):
    """One layer: norm, attention, norm, feed-forward, each added to the stream."""

    def __init__(self, config: GlmConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.norm_eps)
        self.self_attention = SelfAttention(config, layer)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.norm_eps)
        self.mlp = Mlp(config)
        self.sandwich = config.sandwich
        if config.sandwich:
            self.post_self_attn_layernorm = RmsNorm(config.hidden_size, config.norm_eps)
            self.post_mlp_layernorm = RmsNorm(config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, seen: Seen) -> Tensor:
        """Return the stream (B, T, hidden) after this layer."""
        if self.sandwich:
            mixed = self.self_attention(x, seen, norm=self.input_layernorm)
            x = x + self.post_self_attn_layernorm(mixed)
            made = self.mlp(x, norm=self.post_attention_layernorm)
            return cast(Tensor, x + self.post_mlp_layernorm(made))
        x = self.self_attention(x, seen, norm=self.input_layernorm, onto=x)
        return cast(Tensor, self.mlp(x, norm=self.post_attention_layernorm, onto=x))


class Embedding(nn.Module):
    """The token table, under its original name."""

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        # Given a table, Embedding draws no random one: on the meta device that draw costs seconds,
        # because it imports torch's compiler.
        size = (config.vocab_size, config.hidden_size)
        self.word_embeddings: nn.Module = nn.Embedding(size[0], size[1], _weight=torch.empty(size))

    def forward(self, ids: Tensor) -> Tensor:
        """Look ``ids`` (B, T) up: (B, T, hidden)."""
        return cast(Tensor, self.word_embeddings(ids))


class Encoder(Stack):
    """The stack of blocks and the last norm."""

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config, each) for each in range(config.layers))
        self.final_layernorm = RmsNorm(config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, seen: Seen) -> Tensor:
        """Return the final hidden states (B, T, hidden), not normed yet."""
        if seen.past is not None and seen.mask is None:
            done = seen.past.run(self, x, seen.turns)
            if done is not None:
                return done
        return self.through(x, seen)


class Transformer(nn.Module):
    """Embedding, blocks and head, under their original names."""

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self.embedding = Embedding(config)
        self.encoder = Encoder(config)
        self.output_layer: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.prefix_encoder = PrefixEncoder(config.prefix) if config.prefix else None

    def forward(self, ids: Tensor, seen: Seen) -> Tensor:
        """Return the hidden states (B, T, hidden) of ``ids`` (B, T), not normed yet."""
        return cast(Tensor, self.encoder(self.embedding(ids), seen))


class Glm(CausalModel):
    """A GLM language model."""

    EMBEDDING: ClassVar[str] = "transformer.embedding.word_embeddings"
    HEAD: ClassVar[str] = "transformer.output_layer"

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self.config: GlmConfig = config
        self.transformer: Transformer = Transformer(config)

    @property
    def norm(self) -> nn.Module:
        """The last norm."""
        return self.transformer.encoder.final_layernorm

    @property
    def stack(self) -> Stack:
        """What holds the blocks."""
        return self.transformer.encoder

    def start(self, ids: Tensor, real: Tensor | None = None) -> Start:
        """Place whole rows: positions (B, T), real tokens counted from 0."""
        if real is None or bool(real.all()):
            return Start(torch.arange(ids.shape[1], device=ids.device).expand_as(ids), None)
        return Start((real.cumsum(-1) - 1).clamp(min=0), visible(real.bool()))

    def placer(self, prompt: Sequence[int]) -> Placer:
        """Return what places the tokens that follow a prompt: where they stand."""
        return int

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        past: Past | None = None,
    ) -> Tensor:
        """Return the hidden states (B, T, hidden) of new tokens, not normed yet.

        :param positions: (B, T), each token's place in its own row, from 0.
        """
        seen = Seen(rotations(self.config, positions), mask, causal, past)
        return cast(Tensor, self.transformer(ids, seen))

    def scores(self, hidden: Tensor) -> Tensor:
        """Return next-token scores, float32 (..., V), of hidden states (..., hidden)."""
        return project(self.transformer.output_layer, hidden, norm=self.norm).float()
