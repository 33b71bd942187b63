"""ChatGLM-6B, generation 1.

What sets it apart: positions count along two axes, the context before ``<sop>`` is seen from both
sides, queries, keys and values lie interleaved by head, the residual is taken from the normed
stream and scaled, every linear layer has a bias, and the head is the token table.

Shapes: B rows, T new tokens, S tokens seen so far (cached and new), H heads, D head size,
V vocabulary. Parameter names are those of the original checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, UsageError
from .attention import Past, mixed
from .causal import CausalModel, Placer, Stack, Start, project
from .limits import check_numbers, check_sizes
from .prefix import PrefixConfig, PrefixEncoder

ALPHA = (2 * 28) ** 0.5
"""Scale of the residual. Always of 28 layers: published code never passes the real number on."""


@dataclass(frozen=True)
class ChatGlmConfig:
    """The shape of a generation 1 model."""

    vocab_size: int
    hidden_size: int
    ffn_size: int
    layers: int
    heads: int
    context_length: int
    norm_eps: float = 1e-5
    bos: int = 130004
    """``<sop>``: ends the context, begins the answer."""
    mask: int = 130000
    """``[MASK]``: a blank inside the text."""
    gmask: int = 130001
    """``[gMASK]``: a blank at its end."""
    planar: bool = True
    """Positions count along two axes, each turning half of a head."""
    prefix: PrefixConfig | None = None
    tied_head: bool = True

    def __post_init__(self) -> None:
        check_sizes(
            self, ("vocab_size", "hidden_size", "ffn_size", "layers", "heads", "context_length")
        )
        check_numbers(self, ("norm_eps",))
        if self.hidden_size % (4 * self.heads):
            raise CheckpointError(
                f"config.json: hidden size {self.hidden_size} does not part into {self.heads} "
                "heads that can be turned along two axes (multiples of 4)"
            )
        for name in ("bos", "mask", "gmask"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < self.vocab_size:
                raise CheckpointError(
                    f"config.json: the id of {name} is {value!r}; expected 0 to "
                    f"{self.vocab_size - 1}"
                )

    @property
    def head_dim(self) -> int:
        """D."""
        return self.hidden_size // self.heads

    @property
    def kv_heads(self) -> int:
        """Every head has keys and values of its own."""
        return self.heads

    @property
    def parameters(self) -> int:
        """How many numbers the model's matrices hold; norms and biases are left out."""
        block = self.hidden_size * (4 * self.hidden_size + 2 * self.ffn_size)
        return self.layers * block + self.vocab_size * self.hidden_size


class Turns(NamedTuple):
    """Rotation of each new token: (B, T, 1, axes, n), n being half an axis' share of a head."""

    cos: Tensor
    sin: Tensor


class Seen(NamedTuple):
    """What the new tokens of one step may look at; the same for every layer."""

    turns: Turns
    mask: Tensor | None
    causal: bool
    past: Past | None

    def to(self, *args: object, **kwargs: object) -> Seen:
        """Return the same on another device, for layers that are spread over several."""
        turns = Turns(*(each.to(*args, **kwargs) for each in self.turns))  # type: ignore[call-overload]
        mask = None if self.mask is None else self.mask.to(*args, **kwargs)  # type: ignore[call-overload]
        return Seen(turns, mask, self.causal, self.past)


def frequencies(size: int) -> Tensor:
    """Return the angle per position, float32 (size / 2), of an axis that turns ``size`` components.

    They are rounded to half precision, as the original module is built with them and trained.
    """
    exponent = torch.arange(0, size, 2).float() / size
    return (1.0 / 10_000.0**exponent).half().float()


def turns_of(config: ChatGlmConfig, positions: Tensor, dtype: torch.dtype) -> Turns:
    """Return cosines and sines; the angles are taken in float32 whatever ``dtype`` is.

    :param positions: (B, 2, T).
    """
    axes = 2 if config.planar else 1
    inverse = frequencies(config.head_dim // axes).to(positions.device)
    along = positions[:, :axes].transpose(1, 2)[:, :, None, :, None]  # (B, T, 1, axes, 1)
    angles = along.float() * inverse
    return Turns(angles.cos().to(dtype), angles.sin().to(dtype))


def rotate(heads: Tensor, turns: Turns) -> Tensor:
    """Turn (B, T, H, D): component i of an axis' share pairs with i + n.

    It is done in the dtype of ``turns`` and rounded once.
    """
    cos, sin = turns
    low, high = heads.to(cos.dtype).unflatten(-1, (cos.shape[-2], 2, cos.shape[-1])).unbind(-2)  # type: ignore[no-untyped-call]
    turned = torch.stack((low * cos - high * sin, high * cos + low * sin), dim=-2)
    return turned.flatten(-3).to(heads.dtype)


class SelfAttention(nn.Module):
    """Attention with one fused projection, interleaved by head: q, k, v of head 0, of head 1..."""

    def __init__(self, config: ChatGlmConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, config.heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, seen: Seen) -> Tensor:
        """Add to the scaled ``x`` (B, T, hidden), already normed, what it may see."""
        rows, tokens, _ = x.shape
        qkv = self.query_key_value(x).view(rows, tokens, self.heads, -1)
        q, k, v = qkv.chunk(3, dim=-1)
        q, k = rotate(q, seen.turns), rotate(k, seen.turns)
        known = None
        if seen.past is not None and seen.mask is None:
            known = seen.past.attend(self.layer, torch.cat((q, k, v), dim=2), None)
        if known is None:
            kv = torch.cat((k, v), dim=2)
            known = mixed(
                q, kv, layer=self.layer, mask=seen.mask, causal=seen.causal, past=seen.past
            )
        return project(self.dense, known, onto=ALPHA * x)


class Mlp(nn.Module):
    """The feed-forward layer, not gated."""

    def __init__(self, config: ChatGlmConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.ffn_size)
        self.dense_4h_to_h = nn.Linear(config.ffn_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Add to the scaled ``x`` (B, T, hidden), already normed, what each token makes of it."""
        wide = F.gelu(self.dense_h_to_4h(x), approximate="tanh")
        return project(self.dense_4h_to_h, wide, onto=ALPHA * x)


class Block(nn.Module):
    """One layer. Each half norms the stream, and adds to ALPHA times what it normed."""

    def __init__(self, config: ChatGlmConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.attention = SelfAttention(config, layer)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, seen: Seen) -> Tensor:
        """Return the stream (B, T, hidden) after this layer."""
        x = self.attention(self.input_layernorm(x), seen)
        return cast(Tensor, self.mlp(self.post_attention_layernorm(x)))


class Transformer(Stack):
    """Token table, blocks and the last norm."""

    def __init__(self, config: ChatGlmConfig) -> None:
        super().__init__()
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.word_embeddings: nn.Module = nn.Embedding(
            config.vocab_size, config.hidden_size, _weight=table
        )
        self.layers = nn.ModuleList(Block(config, each) for each in range(config.layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.prefix_encoder = PrefixEncoder(config.prefix) if config.prefix else None

    def forward(self, ids: Tensor, seen: Seen) -> Tensor:
        """Return the hidden states (B, T, hidden) of ``ids`` (B, T), not normed yet."""
        return self.through(self.word_embeddings(ids), seen)


class ChatGlm(CausalModel):
    """A generation 1 language model."""

    EMBEDDING: ClassVar[str] = "transformer.word_embeddings"
    HEAD: ClassVar[str] = "lm_head"
    REUSABLE: ClassVar[bool] = False  # the context is seen from both sides

    def __init__(self, config: ChatGlmConfig) -> None:
        super().__init__()
        self.config: ChatGlmConfig = config
        self.transformer: Transformer = Transformer(config)
        self.lm_head: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def norm(self) -> nn.Module:
        """The last norm."""
        return self.transformer.final_layernorm

    @property
    def stack(self) -> Stack:
        """What holds the blocks."""
        return self.transformer

    def start(self, ids: Tensor, real: Tensor | None = None) -> Start:
        """Place whole rows: positions (B, 2, T); the context before ``<sop>`` sees all of itself.

        :raises UsageError: if a row has no ``<sop>``, or no blank that the answer fills.
        """
        real = torch.ones_like(ids, dtype=torch.bool) if real is None else real.bool()
        place = (real.cumsum(-1) - 1).clamp(min=0)  # (B, T), counted without pads
        behind = place - self._first("<sop>", ids == self.config.bos, place)
        positions = torch.stack(
            (
                torch.where(behind < 0, place, self._first("[gMASK]", self._blanks(ids), place)),
                (behind + 1).clamp(min=0),
            ),
            dim=1,
        )
        key = torch.arange(ids.shape[1], device=ids.device)
        sees = (key[:, None] >= key) | (behind < 0)[:, None, :]
        mask = (sees & real[:, None]) | (key[:, None] == key)
        return Start(positions * real[:, None], mask[:, None])

    def _blanks(self, ids: Tensor) -> Tensor:
        """Return where the blanks are, (B, T): every ``[gMASK]``, or without any, ``[MASK]``."""
        gmask, mask = ids == self.config.gmask, ids == self.config.mask
        return torch.where(gmask.any(-1, keepdim=True), gmask, mask)

    def _first(self, name: str, found: Tensor, place: Tensor) -> Tensor:
        """Return the place of the first token found in each row, (B, 1)."""
        if not bool(found.any(-1).all()):
            raise UsageError(
                f"a row of token ids has no {name}: ChatGLM-6B answers behind [gMASK] <sop> "
                f"(ids {self.config.gmask}, {self.config.bos}); append them to the context"
            )
        return place.gather(-1, found.int().argmax(-1, keepdim=True))

    def placer(self, prompt: Sequence[int]) -> Placer:
        """Return what places the tokens that follow a prompt: the blank's place, then 2, 3, ..."""
        positions = self.start(torch.tensor([list(prompt)])).positions[0, :, -1].tolist()
        blank, block = positions
        length = len(prompt)
        return lambda index: (blank, block + 1 + index - length)

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        past: Past | None = None,
    ) -> Tensor:
        """Return the hidden states (B, T, hidden) of new tokens, not normed yet."""
        turns = turns_of(self.config, positions, torch.float32)
        return cast(Tensor, self.transformer(ids, Seen(turns, mask, causal, past)))

    def scores(self, hidden: Tensor) -> Tensor:
        """Return next-token scores, float32 (..., V), of hidden states (..., hidden)."""
        return cast(Tensor, self.lm_head(self.norm(hidden))).float()
