"""One linear layer with the changes of adapters beside it.

Shapes: B rows of a batch, T tokens, R the sum of the ranks of the adapters in play.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from .adapters import LowRank
from .linears import Int4Linear, Int8Linear
from .probing import rounded

Choice = str | Mapping[str, float] | None
"""An adapter, or several with their weights; None: what is active, or where it is set: none."""
Mix = tuple[tuple[str, float], ...]
"""Adapters and their weights, in order of names, none of weight 0."""

_READY = 32
"""Mixes that a layer keeps ready."""


@dataclass
class Worn:
    """What the next run of the model wears; shared by all layers."""

    now: tuple[Mix, ...] = ((),)
    """One for all rows of the batch, or one for each."""


class LoraLinear(nn.Module):
    """A linear layer with low-rank changes beside it.

    :param base: any layer that takes (..., in) and gives (..., out).
    """

    def __init__(self, base: nn.Module, worn: Worn) -> None:
        super().__init__()
        self.base = base
        self.parts: dict[str, LowRank] = {}
        self._worn = worn
        self._gains: dict[str, Tensor] = {}
        """DoRA: how much of each row of the matrix an adapter adds."""
        self._ready: dict[tuple[Mix, ...], _Ready | None] = {}
        self._plain: Tensor | None = None

    def put(self, name: str, part: LowRank) -> None:
        """Add the change of one adapter."""
        if part.magnitude is not None:
            part, gain = part.over(plain_matrix(self.base).to(part.a.device))
            if gain is not None:
                self._gains[name] = gain
        self.parts[name] = part
        self._ready.clear()

    def drop(self, name: str) -> None:
        """Forget the change of one adapter."""
        self.parts.pop(name, None)
        self._gains.pop(name, None)
        self._ready.clear()

    def project(
        self, x: Tensor, norm: Tensor | None, eps: float, gated: bool, onto: Tensor | None
    ) -> Tensor | None:
        """Let the base do all in one call where nothing is worn; see ``models/causal.py``."""
        fused = getattr(self.base, "project", None)
        if fused is None or self._active() is not None:
            return None
        return cast("Tensor | None", fused(x, norm, eps, gated, onto))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) for ``x`` (..., in), in the dtype of ``x``."""
        out = cast(Tensor, self.base(x))
        active = self._active()
        if active is None:
            return out
        a, b, weights, gain = active
        if x.dim() == 2 and weights.dim() == 3:  # (B, in): the last token of each row
            weights = weights[:, 0]
            gain = None if gain is None else gain[:, 0]
        low = F.linear(x.to(a.dtype), a) * weights  # (..., R)
        if gain is not None:
            bias = getattr(self.base, "bias", None)
            out = out + ((out if bias is None else out - bias) * gain).to(out.dtype)
        return out + F.linear(low, b).to(out.dtype)

    def _active(self) -> _Ready | None:
        now = self._worn.now
        if now == ((),):
            return None
        if now not in self._ready:
            if len(self._ready) >= _READY:
                self._ready.clear()
            self._ready[now] = self._prepare(now)
        return self._ready[now]

    def _prepare(self, now: tuple[Mix, ...]) -> _Ready | None:
        names = sorted({name for mix in now for name, _ in mix if name in self.parts})
        if not names:
            return None
        parts = [self.parts[name] for name in names]
        rows = []
        for mix in now:
            given = dict(mix)
            scales = [given.get(n, 0.0) * p.scale for n, p in zip(names, parts, strict=True)]
            rows.append([s for s, p in zip(scales, parts, strict=True) for _ in range(p.rank)])
        weights = torch.tensor(rows, device=parts[0].a.device)
        weights = weights[0] if len(now) == 1 else weights[:, None]
        a, b = torch.cat([p.a for p in parts]), torch.cat([p.b for p in parts], dim=1)
        return _Ready(a, b, weights, self._gain(now))

    def _gain(self, now: tuple[Mix, ...]) -> Tensor | None:
        """Return how much of the matrix's own rows mixes add; None: nothing."""
        if not any(name in self._gains for mix in now for name, _ in mix):
            return None
        none = torch.zeros_like(next(iter(self._gains.values())))
        rows = [sum((w * self._gains.get(n, none) for n, w in mix), start=none) for mix in now]
        return rows[0] if len(now) == 1 else torch.stack(rows)[:, None]

    def merge(self, mix: Mix, name: str = "a matrix") -> bool:
        """Add a mix to the matrix itself; the plain one is kept for :meth:`unmerge`.

        :param name: of the matrix, for messages.
        :return: whether a number changed.
        :raises CheckpointError: if a sum is too large for the matrix's dtype.
        """
        if not isinstance(self.base, nn.Linear):
            raise UsageError(
                "adapters cannot be merged into quantised weights: load the model without "
                "quantising, or leave the adapter unmerged"
            )
        chosen = [(w, self.parts[name]) for name, w in mix if name in self.parts]
        if not chosen:
            return False
        plain = self.base.weight
        whole = plain.detach().float()
        gain = self._gain((mix,))
        whole = whole if gain is None else whole * (1 + gain)[:, None]
        for weight, part in chosen:
            whole = whole + weight * part.delta()
        merged = rounded(whole, plain.dtype, name)
        self._plain = plain
        self.base.weight = nn.Parameter(merged, requires_grad=False)
        return not torch.equal(merged, plain)

    def unmerge(self) -> None:
        """Put the plain matrix back, bit for bit."""
        if self._plain is not None and isinstance(self.base, nn.Linear):
            self.base.weight = cast(nn.Parameter, self._plain)
            self._plain = None


class _Ready(NamedTuple):
    """What mixes come to."""

    a: Tensor
    """(R, in)."""
    b: Tensor
    """(out, R)."""
    weights: Tensor
    """(R), or (B, 1, R)."""
    gain: Tensor | None
    """How much of the matrix's own rows is added, (out) or (B, 1, out)."""


def plain_matrix(base: nn.Module) -> Tensor:
    """Return the matrix (out, in) of a linear layer as ordinary numbers."""
    if isinstance(base, (Int4Linear, Int8Linear)):
        return base.matrix.expand(torch.float32)
    return base.get_parameter("weight").detach()
