"""Puts tensors from disk into a model that has none yet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..models.causal import CausalModel, ModelConfig
from ..models.layouts import Layout
from .carrying import Carried, Leaves, Staying, from_memory
from .headers import check_headers, refuse_parts
from .kernels import has_int4_kernel, has_own_kernel, int4_kernel, int8_kernel
from .linears import (
    Int4Linear,
    Int8Linear,
    QuantizedEmbedding,
    StoredEmbedding,
    choose_widths,
)
from .official import from_official
from .placement import CPU, DISK, Home
from .quantize import GROUP, Int4Weight, Int8Weight, QuantizedWeight, quantize_int4, quantize_int8
from .weights import Weights

_KEEP_UP_TO = 1 << 30
"""Bytes: models up to this size keep what a long prompt expanded, for the next prompt."""

_EXPAND_UP_TO = 2 << 30
"""Bytes: where the device has no int4 kernel, models up to this size run expanded; the matrices of
larger ones stay in integers and are expanded one at a time, whenever they are multiplied."""


@dataclass(frozen=True)
class Plan:
    """What is loaded, and how."""

    folder: Path
    layout: Layout
    config: ModelConfig
    device: torch.device
    """Where the last norm and the head are."""
    dtype: torch.dtype
    """Of activations, norms and matrices that are not quantised."""
    expand: bool
    """Quantised matrices become ordinary ones."""
    quantize: str | None
    bits: int | None = None
    """What config.json says of an official quantised checkpoint."""
    homes: tuple[Home, ...] = ()
    """Where each block is; empty: all of them are on ``device``."""
    cache_room: int | None = None
    """Bytes of keys and values that there is room for; None: nobody set a bound."""

    def home(self, stem: str) -> Home:
        """Return where the module called ``stem`` is; the token table is where the blocks begin."""
        number = re.search(r"\.layers\.(\d+)\.", stem)
        if self.homes and number is not None:
            return self.homes[int(number[1])]
        table = self.homes and stem.endswith(".word_embeddings")
        return Home(self.homes[0].device if table else str(self.device))


def build(plan: Plan) -> CausalModel:
    """Build the model and fill it from disk.

    Nothing is allocated before the tensors on disk are known to have the shapes that the
    configuration promises.

    :raises CheckpointError: if tensors are missing, left over or of another shape.
    """
    with torch.device("meta"):
        model = plan.layout.model(plan.config)
    weights = Weights(plan.folder)
    refuse_parts(weights)
    if plan.bits is not None and not any(key.endswith(".weight_scale") for key in weights):
        raise CheckpointError(
            f"{plan.folder}: config.json says quantization_bit {plan.bits}, but the weight files "
            "hold no scales; fetch the quantised files, or set quantization_bit to 0 and load with "
            f"quantize='int{plan.bits}'"
        )
    check_headers(weights, plan.layout, model)
    model = _Filling(plan, weights).fill(model)
    # An official file promises what its integers say, to single precision.
    if plan.bits is None:
        choose_widths(model)
    return model


class _Filling:
    """Puts tensors from disk into a model that has none yet."""

    def __init__(self, plan: Plan, weights: Weights) -> None:
        self.plan, self.weights = plan, weights
        self.taken: set[str] = set()
        self.here = self.runs = plan.device
        """Where the leaf that is being filled lies, and where it computes."""
        self._open: list[str] = []
        """What was read for the leaf that is being filled."""

    def fill(self, model: CausalModel) -> CausalModel:
        """Fill every leaf of the model."""
        head = model.HEAD
        for stem, module in list(_leaves(model)):
            if stem == head and self.plan.config.tied_head:
                continue
            if self._enter(stem, module) == DISK:
                self._leave_on_disk(stem)
                continue
            model.set_submodule(stem, self._filled(stem, module, head=stem == head))
            self._close()
        self.here = self.runs = self.plan.device
        if self.plan.config.tied_head:
            model.set_submodule(head, self._tied(model.get_submodule(model.EMBEDDING)))
            self._open.append(f"{self.plan.layout.sources(model.EMBEDDING)[0]}.weight")
            self._close()
            self.taken.update(key for key in self.weights if key.startswith(_HEADS))
        self._refuse_left_over()
        if self.plan.homes:
            model.stack.turns = [self._turn(model, each) for each in range(len(self.plan.homes))]
        return model.eval().requires_grad_(False)

    def _enter(self, stem: str, module: nn.Module) -> str:
        """Go where a leaf lies; return where its weights are kept, empty: there.

        Only linears are kept elsewhere: norms are small, and stay where their block computes.
        """
        home = self.plan.home(stem)
        kept = home.kept if hasattr(module, "in_features") else ""
        self.runs = torch.device(home.device)
        self.here = torch.device(CPU) if kept == CPU else self.runs
        return kept

    def _leave_on_disk(self, stem: str) -> None:
        stems = tuple(f"{each}." for each in self.plan.layout.sources(stem))
        self.taken.update(key for key in self.weights if key.startswith(stems))

    def _turn(self, model: CausalModel, number: int) -> Staying | Carried:
        """Return how a block runs."""
        home = self.plan.homes[number]
        device, block = torch.device(home.device), model.stack.layers[number]
        if not home.kept:
            return Staying(device)
        linears = {
            stem: each for stem, each in block.named_modules() if hasattr(each, "in_features")
        }
        if home.kept == CPU:
            return Carried(block, device, from_memory(linears, device))
        begin = next(stem for stem, each in model.named_modules() if each is block)
        return Carried(block, device, partial(self._from_disk, begin, linears))

    @contextmanager
    def _from_disk(self, begin: str, linears: Leaves) -> Iterator[Leaves]:
        """Fill the linears of a block as when it is loaded; let go of the files behind it."""
        try:
            leaves = {}
            for stem, meta in linears.items():
                self._enter(f"{begin}.{stem}", meta)
                leaves[stem] = self._filled(f"{begin}.{stem}", meta, head=False)
            yield leaves
        finally:
            self._close()

    def _close(self) -> None:
        """Let go of what a leaf was made from; what it kept is read again when it is used."""
        for key in self._open:
            self.weights.release(key)
        self._open.clear()

    def _filled(self, stem: str, module: nn.Module, *, head: bool) -> nn.Module:
        stems = self.plan.layout.sources(stem)
        if stem.startswith(_PREFIX) or not isinstance(module, (nn.Linear, nn.Embedding)):
            return self._small(stems, module, exact=stem.startswith(_PREFIX))
        table = isinstance(module, nn.Embedding)
        weight = self._matrix(stems, tuple(module.weight.shape), table=table)
        if isinstance(module, nn.Embedding):
            return self._embedding(weight)
        bias = None
        if module.bias is not None:
            bias = self._plain(stems, "bias", tuple(module.bias.shape))
        return self._linear(weight, bias, head=head)

    def _small(self, stems: tuple[str, ...], module: nn.Module, *, exact: bool) -> nn.Module:
        """Fill a norm, or a part of a prefix, which stays in float32 as it was trained."""
        for leaf, meta in list(module.named_parameters(recurse=False)):
            tensor = self._plain(stems, leaf, tuple(meta.shape), torch.float32 if exact else None)
            setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
        return module

    def _matrix(
        self, stems: tuple[str, ...], shape: tuple[int, ...], *, table: bool
    ) -> Tensor | QuantizedWeight:
        """Read a matrix as it lies on disk, or in the plan's dtype where it will be so used."""
        if f"{stems[0]}.weight_scale" not in self.weights:
            # Rows of a table are converted when they are looked up, matrices when they are rounded.
            on_disk = self.here.type == "cpu" if table else self.plan.quantize is not None
            dtype = self._take(f"{stems[0]}.weight").dtype if on_disk else None
            return self._plain(stems, "weight", shape, dtype)
        weight = self._quantized(stems, shape)
        if weight.shape != shape:
            raise CheckpointError(self._misfit(stems, weight.shape, shape))
        weight = weight.to(self.here)
        return weight.expand(self.plan.dtype) if self._expands else weight

    @property
    def _expands(self) -> bool:
        if self.plan.expand:
            return True
        if self.runs.type == "cpu" and (has_own_kernel() or has_int4_kernel()):
            return False
        return 4 * self.plan.config.parameters <= _EXPAND_UP_TO

    def _quantized(self, stems: tuple[str, ...], shape: tuple[int, ...]) -> QuantizedWeight:
        first = self._take(f"{stems[0]}.weight")
        scale = self._take(f"{stems[0]}.weight_scale")
        if first.dtype == torch.int8 and scale.dim() == 1:
            return from_official(stems[0], first, scale, shape, self.plan.bits)
        try:
            return self._own(stems, first.dtype)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{stems[0]}: quantised parts do not fit each other: {error}"
            ) from error

    def _own(self, stems: tuple[str, ...], dtype: torch.dtype) -> QuantizedWeight:
        """Read a matrix of the form that glmkit itself writes.

        :raises ValueError: if its parts do not fit.
        """
        four, eight = ("weight", "weight_scale", "weight_min"), ("weight", "weight_scale")
        parts: list[list[Tensor]] = [
            [self._take(f"{stem}.{leaf}") for leaf in (four if dtype == torch.uint8 else eight)]
            for stem in stems
        ]
        if dtype == torch.uint8:
            weight: QuantizedWeight = Int4Weight.stack([Int4Weight(*each) for each in parts])
        else:
            weight = Int8Weight.stack([Int8Weight(*each) for each in parts])
        weight.check()
        return weight

    def _plain(
        self,
        stems: tuple[str, ...],
        leaf: str,
        shape: tuple[int, ...],
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        parts = [self._take(f"{stem}.{leaf}") for stem in stems]
        if not all(part.is_floating_point() for part in parts):
            raise CheckpointError(
                f"{self.plan.folder}: {stems[0]}.{leaf} holds {parts[0].dtype} and there is no "
                f"{stems[0]}.{leaf}_scale; the weights are incomplete, fetch them again"
            )
        got = (sum(part.shape[0] for part in parts if part.dim()), *parts[0].shape[1:])
        if got != shape or any(part.shape[1:] != shape[1:] for part in parts):
            raise CheckpointError(self._misfit(stems, got, shape))
        return self._joined(parts, shape, dtype or self.plan.dtype)

    def _joined(self, parts: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Put parts on top of each other without a second copy of any."""
        if len(parts) == 1:
            return parts[0].to(self.here, dtype)
        whole = torch.empty(shape, device=self.here, dtype=dtype)
        start = 0
        for part in parts:
            whole[start : start + len(part)] = part
            start += len(part)
        return whole

    def _take(self, key: str) -> Tensor:
        if key not in self.weights:
            raise CheckpointError(
                f"{self.plan.folder} lacks the tensor {key}; the weights are incomplete or belong "
                "to another model than config.json"
            )
        self.taken.add(key)
        self._open.append(key)
        return self.weights[key]

    def _misfit(self, stems: tuple[str, ...], got: tuple[int, ...], want: tuple[int, ...]) -> str:
        return (
            f"{self.plan.folder}: {stems[0]}.weight has shape {list(got)}, config.json says "
            f"{list(want)}; the files belong to different models"
        )

    def _linear(
        self, weight: Tensor | QuantizedWeight, bias: Tensor | None, *, head: bool = False
    ) -> nn.Module:
        if isinstance(weight, Tensor):
            # A rounded head costs most quality for its size: it gets the finer steps.
            weight = self._rounded(weight, "int8" if head else self.plan.quantize)
        # An official file promises what its integers say, to single precision.
        fine = self.plan.bits is not None
        same = self.here == self.runs
        if isinstance(weight, Int4Weight):
            keep = 4 * self.plan.config.parameters <= _KEEP_UP_TO
            return Int4Linear(
                weight, bias, kernel=int4_kernel(weight) if same else None, keep=keep, fine=fine
            )
        if isinstance(weight, Int8Weight):
            return Int8Linear(weight, bias, kernel=int8_kernel(weight) if same else None, fine=fine)
        return _dense(weight, bias)

    def _rounded(self, weight: Tensor, how: str | None) -> Tensor | QuantizedWeight:
        if self.plan.quantize is None:
            return weight
        if how == "int4" and weight.shape[1] % GROUP == 0:
            return quantize_int4(weight)
        return quantize_int8(weight)

    def _embedding(self, weight: Tensor | QuantizedWeight) -> nn.Module:
        if isinstance(weight, Tensor):
            return StoredEmbedding(weight, self.plan.dtype)
        return QuantizedEmbedding(weight, self.plan.dtype)

    def _tied(self, table: nn.Module) -> nn.Module:
        if isinstance(table, QuantizedEmbedding):
            return self._linear(table.table.to(self.here), None, head=True)
        weight = table.get_parameter("weight").detach()
        weight = weight.to(self.here)
        if self.plan.quantize is None:
            weight = weight.to(self.plan.dtype)
        return self._linear(weight, None, head=True)

    def _refuse_left_over(self) -> None:
        left = [
            key
            for key in self.weights
            if key not in self.taken and not self.plan.layout.ignores(key)
        ]
        if left:
            raise CheckpointError(
                f"{self.plan.folder} holds {len(left)} tensors that its config.json has no place "
                f"for, such as {left[0]}; the files belong to different models"
            )


_PREFIX = "transformer.prefix_encoder."
_HEADS = ("transformer.output_layer.", "lm_head.")


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that hold tensors of their own."""
    for stem, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            yield stem, module


def _dense(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
