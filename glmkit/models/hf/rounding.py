"""Layers with rounded weights, in the layout of the official int4 and int8 folders.

A row of a matrix has one scale; a value is ``integer * scale``. Of four bits a byte holds column 2j
in its high and column 2j + 1 in its low half, both signed. The matrix is expanded whenever it is
used: that saves memory and costs time. (``glmkit.load`` has faster kernels for the same folders.)
Gradients go through a rounded layer, so that LoRA can be trained over it.

Shapes: N rows, K columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UsageError

_LINEARS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


class RoundedLinear(nn.Linear):
    """A linear layer over integers of 8 or 4 bits."""

    def __init__(self, inputs: int, outputs: int, bits: int, *, bias: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bits = inputs, outputs, bits
        _register(self, outputs, inputs, bits)
        self.register_parameter("bias", nn.Parameter(torch.empty(outputs)) if bias else None)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Return (..., N) for ``input`` (..., K)."""
        weight = expanded(self.weight, self.weight_scale, self.bits, input.dtype)
        return F.linear(input, weight, self.bias)


class RoundedEmbedding(nn.Embedding):
    """A token table of integers; only the rows asked for are expanded."""

    def __init__(self, rows: int, columns: int, bits: int) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim, self.bits = rows, columns, bits
        self.padding_idx = None
        _register(self, rows, columns, bits)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Look ids up."""
        scale: Tensor = self.weight_scale  # type: ignore[assignment]
        flat = input.reshape(-1)
        found = expanded(self.weight[flat], scale[flat], self.bits, scale.dtype)
        return found.view(*input.shape, -1)


def _register(module: nn.Module, rows: int, columns: int, bits: int) -> None:
    if columns * bits % 8:
        raise UsageError(f"{columns} columns of {bits} bits do not fill whole bytes")
    integers = torch.zeros(rows, columns * bits // 8, dtype=torch.int8)
    module.register_buffer("weight", integers)
    module.register_buffer("weight_scale", torch.ones(rows, dtype=torch.float16))


def expanded(integers: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Return the numbers (N, K) that integers (N, K * bits / 8) with scales (N) stand for."""
    if bits == 4:
        low = integers << 4 >> 4
        integers = torch.stack((integers >> 4, low), dim=-1).flatten(1)
    return integers.to(dtype) * scale.to(dtype)[:, None]


def rounded(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return the integers and scales that come nearest to a matrix (N, K).

    It divides in the matrix' own dtype, as the original does: official files come out bit for bit.
    """
    steps = 2 ** (bits - 1) - 1
    weight = weight.detach()
    scale = (weight.abs().amax(-1) / steps).half()
    unit = torch.where(scale > 0, scale, torch.ones_like(scale)).to(weight.dtype)[:, None]
    integers = (weight / unit).round().clamp(-steps - 1, steps).to(torch.int8)
    if bits == 4:
        high, low = integers.unflatten(-1, (-1, 2)).unbind(-1)
        integers = (high << 4) | (low & 15)
    return integers, scale


def round_blocks(model: nn.Module, bits: int, tables: tuple[str, ...] = ()) -> None:
    """Replace the linears of all blocks, and the ``tables``, by rounded ones, in place.

    :param tables: names of the token table and the head, where they are rounded too.
    :raises UsageError: if ``bits`` is neither 4 nor 8.
    """
    if bits not in (4, 8):
        raise UsageError(f"quantize({bits!r}): a number has 4 or 8 bits")
    for name, module in list(model.named_modules()):
        inside = ".layers." in name and name.rpartition(".")[2] in _LINEARS
        if (inside or name in tables) and isinstance(module, (nn.Linear, nn.Embedding)):
            model.set_submodule(name, _rounded_module(module, bits))


def unshare(model: nn.Module) -> None:
    """Give each rounded layer storage of its own: files cannot be written otherwise."""
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, (RoundedLinear, RoundedEmbedding)):
            for name in ("weight", "weight_scale"):
                tensor: Tensor = getattr(module, name)
                if not tensor.is_meta and tensor.data_ptr() in seen:
                    setattr(module, name, tensor.clone())
                seen.add(tensor.data_ptr())


def _rounded_module(module: nn.Linear | nn.Embedding, bits: int) -> nn.Module:
    new: RoundedEmbedding | RoundedLinear
    if isinstance(module, nn.Embedding):
        new = RoundedEmbedding(module.num_embeddings, module.embedding_dim, bits)
    else:
        sizes = (module.in_features, module.out_features)
        new = RoundedLinear(*sizes, bits, bias=module.bias is not None)
        new.bias = module.bias
    if module.weight.is_meta:
        return new
    integers, scale = rounded(module.weight, bits)
    new.weight, new.weight_scale = integers, scale
    return new
