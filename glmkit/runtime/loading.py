"""From a folder to a model that runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, UsageError
from ..models.glm import Embedding, Glm, GlmConfig, RmsNorm
from ..models.layouts import Layout, recognise
from .linears import Int4Linear, Int8Linear, QuantizedEmbedding
from .quantize import (
    GROUP,
    Int4Weight,
    Int8Weight,
    QuantizedWeight,
    has_int4_kernel,
    has_own_kernel,
    int4_kernel,
    int8_kernel,
    quantize_int4,
    quantize_int8,
)
from .weights import Weights, read_json

if TYPE_CHECKING:
    from .engines.local import LocalModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
QUANTIZATIONS = ("int4", "int8")

_KEEP_UP_TO = 1 << 30
"""Bytes: models up to this size keep what a long prompt expanded, for the next prompt."""

_EXPAND_UP_TO = 2 << 30
"""Bytes: where the processor has no int4 kernel, models up to this size run expanded."""


def load_local(
    path: Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    adapter: str | None = None,
    name: str | None = None,
    languages: frozenset[str] | None = None,
) -> LocalModel:
    """Load the model in a folder.

    :param device: as torch names it; None: the first CUDA device, else the processor.
    :param dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``. Given, every matrix is multiplied
        in it, also one that lies quantised on disk; None picks what is fast here.
    :param quantize: ``"int4"`` or ``"int8"``: round the linears while loading; None keeps them.
    :param name: what the model calls itself; None: the folder's name.
    :param languages: ISO 639-1 codes it answers in; None: as the folder says.
    :raises UsageError: if an argument has none of these values.
    :raises CheckpointError: if the folder is no model that glmkit runs.
    """
    from .engines.local import LocalModel

    if adapter is not None:
        raise UsageError(
            f"adapter {adapter!r}: this version of glmkit does not load adapters; "
            "merge it into the base model first, or leave it out"
        )
    folder = Path(path)
    plan = _planned(folder, device=device, dtype=dtype, quantize=quantize)
    use_physical_cores()
    model = build(plan)
    return LocalModel.open(model, folder, name=name or folder.name, languages=languages)


@dataclass(frozen=True)
class Plan:
    """What is loaded, and how."""

    folder: Path
    layout: Layout
    config: GlmConfig
    device: torch.device
    dtype: torch.dtype
    """Of activations, norms and matrices that are not quantised."""
    expand: bool
    """Quantised matrices become ordinary ones."""
    quantize: str | None


def _planned(folder: Path, *, device: str | None, dtype: str | None, quantize: str | None) -> Plan:
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise UsageError(f"quantize must be one of {', '.join(QUANTIZATIONS)}, got {quantize!r}")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder that holds config.json")
    raw = read_json(folder / "config.json")
    layout = recognise(raw)
    config = layout.shape(raw)
    where = _device(device)
    return Plan(
        folder,
        layout,
        config,
        where,
        _dtype(dtype, where, config, raw),
        expand=dtype is not None and quantize is None,
        quantize=quantize,
    )


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} cannot be used ({reason}); try 'cpu'") from error
    return device


def _dtype(
    name: str | None, device: torch.device, config: GlmConfig, raw: dict[str, Any]
) -> torch.dtype:
    """Choose the dtype: as asked, else what the device multiplies fast and has memory for."""
    if name is not None:
        full = _SHORT.get(name, name)
        if full not in DTYPES:
            allowed = ", ".join([*DTYPES, *_SHORT])
            raise UsageError(f"dtype must be one of {allowed}, got {name!r}")
        return DTYPES[full]
    if device.type == "cpu":
        fits = 4 * config.parameters < _memory() // 2
        return torch.float32 if fits or "quantization_config" in raw else torch.bfloat16
    stored = DTYPES.get(str(raw.get("torch_dtype", raw.get("dtype"))), torch.float16)
    return torch.float16 if stored == torch.float32 else stored


def _memory() -> int:
    """Return the machine's memory in bytes; a large number where it will not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 40


def use_physical_cores() -> None:
    """Let torch use no more threads than there are cores: siblings only get in each other's way."""
    cores = physical_cores()
    if torch.get_num_threads() > cores:
        torch.set_num_threads(cores)


def physical_cores() -> int:
    """Count the cores that this process may run on, hyper-threads not counted."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    base = Path("/sys/devices/system/cpu")
    try:
        siblings = {
            (base / f"cpu{each}/topology/thread_siblings_list").read_text() for each in allowed
        }
    except OSError:
        return len(allowed)
    return len(siblings)


def build(plan: Plan) -> Glm:
    """Build the model and fill it from disk.

    Nothing is allocated before the tensors on disk are known to have the shapes that the
    configuration promises.

    :raises CheckpointError: if tensors are missing, left over or of another shape.
    """
    with torch.device("meta"):
        model = Glm(plan.config)
    return _Filling(plan, Weights(plan.folder)).fill(model)


class _Filling:
    """Puts tensors from disk into a model that has none yet."""

    def __init__(self, plan: Plan, weights: Weights) -> None:
        self.plan, self.weights = plan, weights
        self.taken: set[str] = set()

    def fill(self, model: Glm) -> Glm:
        """Fill every leaf of the model."""
        for stem, module in list(_leaves(model)):
            if stem == _HEAD and self.plan.config.tied_head:
                continue
            model.set_submodule(stem, self._filled(stem, module))
        if self.plan.config.tied_head:
            model.transformer.output_layer = self._tied(model.transformer.embedding)
            self.taken.update(key for key in self.weights if key.startswith(_HEADS))
        self._refuse_left_over()
        return model.eval().requires_grad_(False)

    def _filled(self, stem: str, module: nn.Module) -> nn.Module:
        stems = self.plan.layout.sources(stem)
        shape = tuple(module.get_parameter("weight").shape)
        if isinstance(module, RmsNorm):
            module.weight = nn.Parameter(self._plain(stems, "weight", shape), requires_grad=False)
            return module
        weight = self._matrix(stems, shape)
        if isinstance(module, nn.Embedding):
            return self._embedding(weight)
        bias = None
        if getattr(module, "bias", None) is not None:
            bias = self._plain(stems, "bias", shape[:1])
        return self._linear(weight, bias, head=stem == _HEAD)

    def _matrix(self, stems: tuple[str, ...], shape: tuple[int, ...]) -> Tensor | QuantizedWeight:
        """Read a matrix as it lies on disk, or expanded where the plan says so."""
        if f"{stems[0]}.weight_scale" not in self.weights:
            return self._plain(stems, "weight", shape)
        weight = self._quantized(stems)
        if weight.shape != shape:
            raise CheckpointError(self._misfit(stems, weight.shape, shape))
        return weight.expand(self.plan.dtype).to(self.plan.device) if self._expands else weight

    @property
    def _expands(self) -> bool:
        if self.plan.expand or self.plan.device.type != "cpu":
            return True
        return (
            not (has_own_kernel() or has_int4_kernel())
            and 4 * self.plan.config.parameters <= _EXPAND_UP_TO
        )

    def _quantized(self, stems: tuple[str, ...]) -> QuantizedWeight:
        first = self._take(f"{stems[0]}.weight")
        names = ("weight", "weight_scale", "weight_min")
        try:
            if first.dtype == torch.uint8:
                return Int4Weight.stack(
                    [Int4Weight(*(self._take(f"{s}.{n}") for n in names)) for s in stems]
                )
            return Int8Weight.stack(
                [Int8Weight(*(self._take(f"{s}.{n}") for n in names[:2])) for s in stems]
            )
        except RuntimeError as error:
            raise CheckpointError(f"{stems[0]}: quantised parts do not fit: {error}") from error

    def _plain(self, stems: tuple[str, ...], leaf: str, shape: tuple[int, ...]) -> Tensor:
        parts = [self._take(f"{stem}.{leaf}") for stem in stems]
        if any(part.shape[1:] != shape[1:] or part.dim() != len(shape) for part in parts):
            raise CheckpointError(self._misfit(stems, tuple(parts[0].shape), shape))
        if not all(part.is_floating_point() for part in parts):
            raise CheckpointError(f"{stems[0]}.{leaf} holds {parts[0].dtype} without scales")
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        if tuple(whole.shape) != shape:
            raise CheckpointError(self._misfit(stems, tuple(whole.shape), shape))
        return whole.to(self.plan.device, self.plan.dtype)

    def _take(self, key: str) -> Tensor:
        if key not in self.weights:
            raise CheckpointError(
                f"{self.plan.folder} lacks the tensor {key}; the weights are incomplete or belong "
                "to another model than config.json"
            )
        self.taken.add(key)
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
        if isinstance(weight, Int4Weight):
            keep = 4 * self.plan.config.parameters <= _KEEP_UP_TO
            return Int4Linear(weight, bias, kernel=int4_kernel(weight), keep=keep)
        if isinstance(weight, Int8Weight):
            return Int8Linear(weight, bias, kernel=int8_kernel(weight))
        return _dense(weight, bias)

    def _rounded(self, weight: Tensor, how: str | None) -> Tensor | QuantizedWeight:
        if self.plan.quantize is None:
            return weight
        if how == "int4" and weight.shape[1] % GROUP == 0:
            return quantize_int4(weight)
        return quantize_int8(weight)

    def _embedding(self, weight: Tensor | QuantizedWeight) -> nn.Module:
        if isinstance(weight, Tensor):
            table = nn.Embedding(weight.shape[0], weight.shape[1], _weight=weight)
            return table.requires_grad_(False)
        return QuantizedEmbedding(weight, self.plan.dtype)

    def _tied(self, embedding: Embedding) -> nn.Module:
        table = embedding.word_embeddings
        if isinstance(table, QuantizedEmbedding):
            return self._linear(table.table, None, head=True)
        return self._linear(table.get_parameter("weight").detach(), None, head=True)

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


_HEAD = "transformer.output_layer"
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
