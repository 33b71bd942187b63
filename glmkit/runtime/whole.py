"""A whole stack of GLM blocks in one call of our extension, where all that it is made of allows it.

For one token, calling the kernels one after the other takes as long as their arithmetic. What the
call needs (addresses of matrices and norms) is gathered once for a model and looked after from then
on: where a part was replaced, as adapters do, or has a hook, the blocks run one by one again.
Parts, their forward, norms, biases, kernels and their widths may change; the shape that a block was
made with may not.

Shapes: as in `models/glm.py`; L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from ..models.causal import Stack
from ..models.glm import Block, Mlp, RmsNorm, SelfAttention
from .kernels import BLOCK, OwnKernel, has_own_kernel
from .linears import Int4Linear, Int8Linear

Linear = Int4Linear | Int8Linear


@dataclass(frozen=True, eq=False)
class Plan:
    """What the extension needs of a stack."""

    steps: Tensor
    """int64 (L, 4, 5): addresses of norm, matrix, its bits, bits of tokens, address of bias."""
    heads: int
    inner: int
    """Width of the gated unit."""
    eps: float
    kernels: list[OwnKernel | None]
    """What the addresses of matrices belong to."""


class _Verdict:
    """The plan of a stack, or that there is none, and what must be as it was then."""

    def __init__(self, stack: Stack) -> None:
        modules = list(stack.modules())
        self._homes = [
            cast("dict[str, object]", home)
            for each in modules
            for home in (each._modules, each._parameters)
        ]
        self._parts = list(chain.from_iterable(map(dict.values, self._homes)))
        self._settings = [
            (home, name, home.get(name)) for home, names in _settings(modules) for name in names
        ]
        self._weights = [(each, each.detach()) for each in _weights(modules)]
        self._hooks = [_global_forward_hooks, _global_forward_pre_hooks]
        for each in modules:
            self._hooks += each._forward_hooks, each._forward_pre_hooks
        self.plan = _planned(stack) if has_own_kernel() and _plain(stack) else None

    def holds(self) -> bool:
        """Tell whether the stack is still what it was, but for hooks."""
        parts = chain.from_iterable(map(dict.values, self._homes))
        return (
            sum(map(len, self._homes)) == len(self._parts)
            and all(map(is_, parts, self._parts))
            and all(home.get(name) is value for home, name, value in self._settings)
            and all(now.data_ptr() == then.data_ptr() for now, then in self._weights)
        )

    def hooked(self) -> bool:
        """Tell whether anybody wants to know of the modules' calls."""
        return any(self._hooks)


def plan_of(stack: Stack) -> Plan | None:
    """Return the plan of a stack; None where its blocks have to run one by one."""
    if stack.turns:
        return None
    verdict = _verdicts.get(stack)
    if verdict is None or not verdict.holds():
        verdict = _verdicts[stack] = _Verdict(stack)
    return None if verdict.hooked() else verdict.plan


_verdicts: WeakKeyDictionary[Stack, _Verdict] = WeakKeyDictionary()


def _settings(modules: list[nn.Module]) -> Iterator[tuple[dict[str, object], tuple[str, ...]]]:
    """Yield where settings of modules are kept, and the names of those that count."""
    for each in modules:
        yield vars(each), ("forward",)  # one of an instance's own
        if isinstance(each, RmsNorm):
            yield vars(each), ("eps",)
        if isinstance(each, Linear):
            yield vars(each), ("own", "bias")
            if each.own is not None:
                yield vars(each.own), ("width",)


def _weights(modules: list[nn.Module]) -> Iterator[Tensor]:
    """Yield norms and biases, whose addresses the extension gets."""
    for each in modules:
        found = (getattr(each, name, None) for name in ("weight", "bias"))
        yield from (part for part in found if isinstance(part, Tensor) and part.ndim == 1)


def _plain(stack: Stack) -> bool:
    """Tell whether every part is of the kind that the extension knows."""
    if any("forward" in vars(each) for each in stack.modules()):
        return False
    if not all(type(each) is Block and not each.sandwich for each in stack.layers):
        return False
    blocks = cast("list[Block]", list(stack.layers))
    return (
        all(type(each.self_attention) is SelfAttention for each in blocks)
        and all(type(each.mlp) is Mlp for each in blocks)
        and all(type(norm) is RmsNorm for each in blocks for norm in _norms(each))
        and len({norm.eps for each in blocks for norm in _norms(each)}) == 1
        and all(_fits(norm.weight) for each in blocks for norm in _norms(each))
        and all(_multiplies(linear) for each in blocks for linear in _linears(each))
        and all(_ends_well(each) for each in blocks)
    )


def _multiplies(linear: object) -> bool:
    """Tell whether our kernel multiplies by a layer's matrix."""
    if not isinstance(linear, Linear) or linear.own is None:
        return False
    return linear.bias is None or _fits(linear.bias)


def _ends_well(block: Block) -> bool:
    """Tell whether no bias stands where the kernel adds or gates."""
    _, *others = _linears(block)
    return all(each.bias is None for each in others) and not others[1].out_features % (2 * BLOCK)


def _fits(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous()


def _norms(block: Block) -> list[RmsNorm]:
    return [block.input_layernorm, block.post_attention_layernorm]


def _linears(block: Block) -> list[Linear]:
    attention, mlp = block.self_attention, block.mlp
    found = [attention.query_key_value, attention.dense, mlp.dense_h_to_4h, mlp.dense_4h_to_h]
    return cast("list[Linear]", found)


def _planned(stack: Stack) -> Plan:
    blocks = cast("list[Block]", list(stack.layers))
    linears = _linears(blocks[0])
    return Plan(
        torch.tensor([_steps(each) for each in blocks]),
        blocks[0].self_attention.heads,
        linears[3].in_features,
        blocks[0].input_layernorm.eps,
        [linear.own for block in blocks for linear in _linears(block)],
    )


def _steps(block: Block) -> list[list[int]]:
    before, between = (norm.weight.data_ptr() for norm in _norms(block))
    return [
        [norm, *linear.own.form, 0 if linear.bias is None else linear.bias.data_ptr()]
        for norm, linear in zip((before, 0, between, 0), _linears(block), strict=True)
        if linear.own is not None
    ]


def runs(stack: Stack, x: Tensor) -> Plan | None:
    """Return the plan to send ``x`` (B, T, hidden) through a stack; None where there is none."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_grad_enabled():
        return None
    return plan_of(stack)
