"""The loss of next tokens and their log-probabilities, a few tokens at a time: no table of all
scores is ever held.

Scores of a thousand tokens among 150 thousand take 600 MB in single precision, and their gradient
as much again. Here they are made, compared with what follows, turned into gradients and dropped,
part by part; a token that nobody asks for costs nothing.

Letters: N tokens that count, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..models.causal import CausalModel
from .rounded import QUANTISED, Rounded, Rounding, rounded_of

ROOM = 7 << 20
"""Scores that are held at a time on a processor: 28 MB of them. From 32 MB on, the system's memory
would come and go with each part."""

ROOM_ELSEWHERE = 1 << 27
"""The same on other devices, which want large matrices."""


def next_token_loss(
    model: CausalModel, hidden: Tensor, wanted: Tensor, weights: Tensor, *, room: int | None = None
) -> Tensor:
    """Return the weighted sum of the losses of tokens, in nats, of which gradients can be taken.

    :param hidden: (N, H), not normed yet, of the tokens before those that are foretold.
    :param wanted: int64 (N), what follows.
    :param weights: (N).
    :param room: scores that are held at a time; None: as the device wants.
    """
    rows = _rows(hidden, model.config.vocab_size, room)
    wanted, weights = wanted.to(hidden.device), weights.to(hidden.device)
    head = model.get_submodule(model.HEAD)
    if _is_plain(head):
        return _by_parts(*_as_computed(model.norm(hidden), _table(head)), wanted, weights, rows)
    if _multiplies(head, hidden):
        return _by_parts(model.norm(hidden), None, wanted, weights, rows, rounded_of(head))
    return _by_checkpoints(model, hidden, wanted, weights, rows)


class Likely(NamedTuple):
    """How likely tokens are, each behind those before it."""

    log_probs: Tensor
    """(N,), in nats, of which gradients can be taken; float32, or float64 as the model is."""
    entropies: Tensor
    """(N,), of what else might have stood there; without gradients. Empty where nobody asked."""


def token_log_probs(
    model: CausalModel,
    hidden: Tensor,
    wanted: Tensor,
    *,
    temperature: float = 1.0,
    room: int | None = None,
) -> Tensor:
    """Return the log-probability (N,) of each token, in nats, of which gradients can be taken.

    :param hidden: (N, H), not normed yet, of the tokens before those that are asked for.
    :param wanted: int64 (N), the tokens.
    :param temperature: scores are divided by it, as they are where answers are sampled.
    :param room: scores that are held at a time; None: as the device wants.
    """
    return _likely(model, hidden, wanted, temperature, room, entropies=False).log_probs


def token_likelihoods(
    model: CausalModel,
    hidden: Tensor,
    wanted: Tensor,
    *,
    temperature: float = 1.0,
    room: int | None = None,
) -> Likely:
    """Return the same and the entropy of what might have stood there, which takes a little more.

    The parameters are those of :func:`token_log_probs`.
    """
    return _likely(model, hidden, wanted, temperature, room, entropies=True)


def _likely(
    model: CausalModel,
    hidden: Tensor,
    wanted: Tensor,
    temperature: float,
    room: int | None,
    *,
    entropies: bool,
) -> Likely:
    rows = _rows(hidden, model.config.vocab_size, room)
    wanted = wanted.to(hidden.device)
    head = model.get_submodule(model.HEAD)
    if _is_plain(head):
        normed, table = _as_computed(model.norm(hidden) / temperature, _table(head))
        return _likely_by_parts(normed, table, wanted, rows, None, entropies)
    if _multiplies(head, hidden):
        normed = model.norm(hidden) / temperature
        return _likely_by_parts(normed, None, wanted, rows, rounded_of(head), entropies)
    return _likely_by_checkpoints(model, hidden, wanted, temperature, rows)


def _table(head: nn.Module) -> Tensor:
    table = cast(Tensor, head.weight)
    return table if torch.is_grad_enabled() else table.detach()


def _likely_by_parts(*given: Any) -> Likely:  # noqa: ANN401
    return Likely(*_HeadLogProbs.apply(*given))  # type: ignore[no-untyped-call]


def _likely_by_checkpoints(
    model: CausalModel, hidden: Tensor, wanted: Tensor, temperature: float, rows: int
) -> Likely:
    """Do the same with any head; its scores are made twice."""

    def part(some: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logs = F.log_softmax(model.scores(some) / temperature, dim=-1)
        entropy = -(logs.detach().exp() * logs.detach()).nan_to_num().sum(-1)
        return logs.gather(-1, ids[:, None])[:, 0], entropy

    parts = zip(torch.split(hidden, rows), torch.split(wanted, rows), strict=True)
    found = [checkpoint(part, *some, use_reentrant=False) for some in parts]
    return Likely(*(torch.cat(each) for each in zip(*found, strict=True)))


def _as_computed(*factors: Tensor) -> Iterator[Tensor]:
    """Yield the factors of a product as autocast would give them to torch's own."""
    for each in factors:
        kind = each.device.type
        half = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        wanted = torch.get_autocast_dtype(kind) if half else each.dtype
        yield each.to(wanted)


def _rows(hidden: Tensor, vocabulary: int, room: int | None) -> int:
    if room is None:
        room = ROOM if hidden.device.type == "cpu" else ROOM_ELSEWHERE
    return max(1, room // vocabulary)


def _is_plain(head: nn.Module) -> bool:
    """Tell whether a head is one matrix that lies here whole; others are asked for their scores."""
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return False
    spread = hasattr(head.weight, "ds_id") or hasattr(head.weight, "full_tensor")
    return not spread and type(head.weight) in (nn.Parameter, Tensor)


def _multiplies(head: nn.Module, hidden: Tensor) -> TypeGuard[Rounding]:
    """Tell whether a head lies rounded, and our kernel multiplies such numbers by it."""
    if not isinstance(head, QUANTISED) or head.bias is not None or head.own is None:
        return False
    return hidden.dtype == torch.float32 and hidden.device.type == "cpu"


def _by_parts(*given: Any) -> Tensor:  # noqa: ANN401
    return cast(Tensor, _HeadLoss.apply(*given))  # type: ignore[no-untyped-call]


def _by_checkpoints(
    model: CausalModel, hidden: Tensor, wanted: Tensor, weights: Tensor, rows: int
) -> Tensor:
    """Do the same with any head; its scores are made twice."""

    def part(some: Tensor, ids: Tensor, weight: Tensor) -> Tensor:
        return (F.cross_entropy(model.scores(some), ids, reduction="none") * weight).sum()

    total = weights.new_zeros(())
    parts = [torch.split(each, rows) for each in (hidden, wanted, weights)]
    for some in zip(*parts, strict=True):
        total = total + cast(Tensor, checkpoint(part, *some, use_reentrant=False))
    return total


class _HeadLoss(torch.autograd.Function):
    """Head, softmax and cross-entropy; gradients are made on the way there."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden: Tensor,
        table: Tensor | None,
        wanted: Tensor,
        weights: Tensor,
        rows: int,
        rounded: Rounded | None = None,
    ) -> Tensor:
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        exact = torch.promote_types(hidden.dtype, torch.float32)
        to_table = None
        if table is not None and ctx.needs_input_grad[1]:
            to_table = torch.zeros_like(table, dtype=exact)
        head = cast(Rounded, rounded) if table is None else _Plain(table)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        room = torch.empty((min(rows, len(hidden)), head.count), dtype=exact, device=hidden.device)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            scores = head.write(hidden[part], room[: len(hidden[part])])
            total += _lost_(scores, wanted[part], weights[part].to(exact))
            small = scores.to(hidden.dtype)
            if to_hidden is not None:
                to_hidden[part] = head.back(small)
            if to_table is not None:
                to_table += torch.mm(small.t(), hidden[part])
        ctx.save_for_backward(to_hidden, None if to_table is None else to_table.to(hidden.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        to_hidden, to_table = (
            None if each is None else each * grad.to(each.dtype) for each in ctx.saved_tensors
        )
        return to_hidden, to_table, None, None, None, None


class _HeadLogProbs(torch.autograd.Function):
    """Head and log-softmax of single tokens.

    Where the head is frozen, gradients are made on the way there: the gradient of a token's
    log-probability is a multiple of a vector that is known then. Where it learns, its scores are
    made again on the way back.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden: Tensor,
        table: Tensor | None,
        wanted: Tensor,
        rows: int,
        rounded: Rounded | None,
        entropies: bool,
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        learns = table is not None and ctx.needs_input_grad[1]
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] and not learns else None
        head = cast(Rounded, rounded) if table is None else _Plain(table)
        found = torch.empty(len(hidden), dtype=exact, device=hidden.device)
        spread = torch.empty(len(hidden) if entropies else 0, dtype=exact, device=hidden.device)
        room = torch.empty((min(rows, len(hidden)), head.count), dtype=exact, device=hidden.device)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            scores = head.write(hidden[part], room[: len(hidden[part])])
            found[part] = _probable_(scores, wanted[part])
            if entropies:
                spread[part] = torch.special.entr(scores).sum(-1)
            if slopes is not None:
                slopes[part] = head.back(_slopes_(scores, wanted[part]).to(hidden.dtype))
        ctx.rows, ctx.learns = rows, learns
        ctx.save_for_backward(*((hidden, table, wanted) if learns else (slopes,)))
        ctx.mark_non_differentiable(spread)
        return found, spread

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        if not ctx.learns:
            (slopes,) = ctx.saved_tensors
            to_hidden = None if slopes is None else slopes * grad[:, None].to(slopes.dtype)
            return to_hidden, None, None, None, None, None
        hidden, table, wanted = ctx.saved_tensors
        head, exact = _Plain(table), grad.dtype
        to_hidden, to_table = torch.empty_like(hidden), torch.zeros_like(table, dtype=exact)
        room = torch.empty(
            (min(ctx.rows, len(hidden)), head.count), dtype=exact, device=hidden.device
        )
        for start in range(0, len(hidden), ctx.rows):
            part = slice(start, start + ctx.rows)
            scores = head.write(hidden[part], room[: len(hidden[part])])
            _probable_(scores, wanted[part])
            small = _slopes_(scores, wanted[part]).mul_(grad[part, None]).to(hidden.dtype)
            to_hidden[part] = head.back(small)
            to_table += torch.mm(small.t(), hidden[part])
        return to_hidden, to_table.to(table.dtype), None, None, None, None


def _probable_(scores: Tensor, wanted: Tensor) -> Tensor:
    """Return log-probabilities (n,), and put all probabilities where the scores (n, V) were."""
    scores.sub_(scores.amax(-1, keepdim=True))
    right = scores.gather(-1, wanted[:, None])[:, 0]
    total = scores.exp_().sum(-1, keepdim=True)
    scores.div_(total)
    return right - total[:, 0].log()


def _slopes_(probabilities: Tensor, wanted: Tensor) -> Tensor:
    """Turn probabilities (n, V) into the gradient that a log-probability has in the scores."""
    slopes = probabilities.neg_()
    return slopes.scatter_add_(-1, wanted[:, None], torch.ones_like(slopes[:, :1]))


class _Plain:
    """A head that is a matrix of ordinary numbers, (V, H); :class:`Rounded` is the other kind."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.count = table, len(table)

    def write(self, hidden: Tensor, out: Tensor) -> Tensor:
        """Write the scores (n, V) of a part to ``out``, the same memory for all parts."""
        if hidden.dtype == out.dtype:
            return torch.mm(hidden, self.table.t(), out=out)
        return out.copy_(torch.mm(hidden, self.table.t()))

    def back(self, grad: Tensor) -> Tensor:
        """Return the gradient (n, H) of what the scores were made of."""
        return torch.mm(grad, self.table)


def _lost_(scores: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of losses, and put its gradient where the scores (n, V) were."""
    scores.sub_(scores.amax(-1, keepdim=True))
    at = wanted[:, None]
    right = scores.gather(-1, at)
    total = scores.exp_().sum(-1, keepdim=True)
    losses = total.log() - right
    weight = weights[:, None]
    scores.mul_(weight / total).scatter_add_(-1, at, -weight)
    return (losses * weight).sum()
