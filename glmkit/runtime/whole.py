"""A whole stack of GLM blocks in one call of our extension, where all that it is made of allows it.

For one token, calling the kernels one after the other takes as long as their arithmetic. What the
call needs (addresses of matrices and norms) is gathered once for a model and looked after from then
on: where a part was replaced, as adapters do, or has a hook, the blocks run one by one again.

Shapes: as in `models/glm.py`; L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..models.causal import Stack
from ..models.glm import Block, Mlp, RmsNorm, SelfAttention
from .kernels import BLOCK, OwnKernel, has_own_kernel
from .linears import Int4Linear, Int8Linear

Linear = Int4Linear | Int8Linear


@dataclass(frozen=True, eq=False)
class Plan:
    """What the extension needs of a stack, and what must be as it was then."""

    steps: Tensor
    """int64 (L, 4, 5): addresses of norm, matrix, its bits, bits of tokens, address of bias."""
    heads: int
    inner: int
    """Width of the gated unit."""
    eps: float
    parts: list[tuple[dict[str, object], str, object]]
    """Where a part of the model is kept, its name there, and what it is."""
    weights: list[tuple[Tensor, Tensor]]
    """Norms and biases, and the numbers that the addresses belong to."""
    hooks: list[dict[int, object]]
    kernels: list[OwnKernel | None]
    """What the addresses of matrices belong to; a loaded layer keeps its kernel for good."""

    def holds(self) -> bool:
        """Tell whether the stack is still what it was."""
        return (
            all(home.get(name) is part for home, name, part in self.parts)
            and all(now.data_ptr() == then.data_ptr() for now, then in self.weights)
            and not any(self.hooks)
        )


def plan_of(stack: Stack) -> Plan | None:
    """Return the plan of a stack; None where its blocks have to run one by one."""
    plan = _plans.get(stack)
    if plan is not None and plan.holds() and not stack.turns:
        return plan
    if stack.turns or not has_own_kernel() or not _plain(stack):
        return None
    plan = _plans[stack] = _planned(stack)
    return plan if plan.holds() else None


_plans: WeakKeyDictionary[Stack, Plan] = WeakKeyDictionary()


def _plain(stack: Stack) -> bool:
    """Tell whether every part is of the kind that the extension knows."""
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
        _parts(stack),
        [(each, each.detach()) for block in blocks for each in _weights(block)],
        [
            cast("dict[int, object]", each)
            for module in stack.modules()
            for each in (module._forward_hooks, module._forward_pre_hooks)
        ],
        [linear.own for block in blocks for linear in _linears(block)],
    )


def _steps(block: Block) -> list[list[int]]:
    before, between = (norm.weight.data_ptr() for norm in _norms(block))
    return [
        [norm, *linear.own.form, 0 if linear.bias is None else linear.bias.data_ptr()]
        for norm, linear in zip((before, 0, between, 0), _linears(block), strict=True)
        if linear.own is not None
    ]


def _weights(block: Block) -> list[Tensor]:
    biases = [each.bias for each in _linears(block) if each.bias is not None]
    return [*(norm.weight for norm in _norms(block)), *biases]


def _parts(stack: Stack) -> list[tuple[dict[str, object], str, object]]:
    homes: list[dict[str, object]] = []
    for module in stack.modules():
        homes.append(cast("dict[str, object]", module._modules))
        homes.append(cast("dict[str, object]", module._parameters))
    parts = [(home, name, part) for home in homes for name, part in home.items()]
    return [each for each in parts if each[2] is not None]


def runs(stack: Stack, x: Tensor) -> Plan | None:
    """Return the plan to send ``x`` (B, T, hidden) through a stack; None where there is none."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_grad_enabled():
        return None
    return plan_of(stack)
