"""From a folder to a model that runs."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UsageError
from ..models.causal import ModelConfig
from ..models.layouts import Recognised, located, read_model
from ..models.shapes import doubts
from .demand import Job, demand
from .devices import cache_room, devices_of, homes_of, limits_of, spread
from .filling import Plan, build
from .footprint import anatomy
from .headers import check_folder
from .official import bits_of
from .pages import available_memory

if TYPE_CHECKING:
    from .engines.adapted import AdapterReader
    from .engines.local import LocalModel

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
QUANTIZATIONS = ("int4", "int8")


def load_local(
    path: Path,
    *,
    device: str | None = None,
    max_memory: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    adapter: Path | str | None = None,
    adapter_alpha: float | None = None,
    reader: AdapterReader | None = None,
    family: str | None = None,
    name: str | None = None,
    languages: frozenset[str] | None = None,
    job: Job | None = None,
) -> LocalModel:
    """Load the model in a folder.

    :param device: as torch names it, or several that share the layers: ``"cuda:0,cuda:1"``,
        ``"cuda:0,cpu"``; None or ``"auto"``: as many CUDA devices as it takes, else the processor.
    :param max_memory: most that the model and its job may take: ``"0=10GiB,cpu=30GiB"``, or
        ``"10GiB,12GiB"`` in the order of the devices. What has no room is kept in the processor's
        memory, then on the disk.
    :param dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``. Given, every matrix is multiplied
        in it, also one that lies quantised on disk; None picks what is fast here.
    :param quantize: ``"int4"`` or ``"int8"``: round the linears while loading; None keeps them.
    :param adapter: a LoRA adapter or a P-Tuning prefix to put on.
    :param adapter_alpha: LoRA's alpha, for files that record none.
    :param reader: what reads adapters, also later ones; None: the formats that glmkit knows.
    :param family: what the model is, of :data:`glmkit.models.families.FAMILIES`; None: as the
        folder's files say.
    :param name: what the model calls itself; None: the folder's name.
    :param languages: ISO 639-1 codes it answers in; None: as the folder says.
    :param job: what layers are spread for; those of a training all stay on the devices. None: to
        answer.
    :raises UsageError: if an argument has none of these values.
    :raises CheckpointError: if the folder is no model that glmkit runs.
    """
    if adapter is None and adapter_alpha is not None:
        raise UsageError(f"adapter_alpha {adapter_alpha!r} is given without an adapter")
    folder = Path(path)
    check_folder(folder)
    found = read_model(folder, family)
    plan = _planned(folder, found, device=device, dtype=dtype, quantize=quantize)
    local = _opened(_spread(plan, found, device, max_memory, job), found, name, languages)
    local.adapter_reader = reader or local.adapter_reader
    if adapter is not None:
        local.load_adapter(adapter, alpha=adapter_alpha)
    return local


def _opened(
    plan: Plan, found: Recognised, name: str | None, languages: frozenset[str] | None
) -> LocalModel:
    """Build the model of a plan, and what it talks with."""
    from .engines.local import LocalModel

    use_physical_cores()
    local = LocalModel.open(
        build(plan),
        plan.folder,
        name=name or plan.folder.name,
        languages=languages,
        family=found.finding.family,
    )
    if plan.cache_room is not None:
        local.bound_cache(plan.cache_room)
    # Only now: of what does not load, the error alone matters.
    _warn(plan.folder, found)
    return local


def _warn(folder: Path, found: Recognised) -> None:
    """Say what of a folder was guessed, and what in it is known to go wrong."""
    if not found.finding.certain:
        log.warning(
            "%s: taken for %s (%s); if it is another, say so with --family",
            folder.name,
            found.finding.family,
            found.finding.why,
        )
    for doubt in doubts(found.raw):
        log.warning("%s: %s", folder.name, doubt)


def _planned(
    folder: Path,
    found: Recognised,
    *,
    device: str | None,
    dtype: str | None,
    quantize: str | None,
) -> Plan:
    raw = found.raw
    bits = _bits(folder, raw, quantize)
    devices = devices_of(device)
    rounded = quantize is not None or bits is not None or "quantization_config" in raw
    return Plan(
        folder,
        found.layout,
        found.config,
        devices[-1],
        _dtype(dtype, devices[0], found.config, raw, rounded=rounded),
        expand=dtype is not None and quantize is None,
        quantize=quantize,
        bits=bits,
    )


def _bits(folder: Path, raw: dict[str, Any], quantize: str | None) -> int | None:
    """Return the bits of what others quantised, where it may be loaded so."""
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise UsageError(f"quantize must be one of {', '.join(QUANTIZATIONS)}, got {quantize!r}")
    with located(folder):
        bits = bits_of(raw)
    _refuse_again(folder, quantize, bits or _own_bits(raw))
    return bits


def _spread(
    plan: Plan, found: Recognised, device: str | None, limits: str | None, job: Job | None
) -> Plan:
    """Say where each layer goes, where there is a choice or a bound."""
    devices = devices_of(device)
    if limits is None and len(devices) == 1 and devices[0].type != "cuda":
        return plan
    with torch.device("meta"):
        parts = anatomy(plan.layout.model(plan.config))
    bits = plan.bits or _own_bits(found.raw)
    quantize = plan.quantize or (f"int{bits}" if bits and not plan.expand else None)
    if job is None:
        length = min(plan.config.context_length, _FORESEEN)
        job = Job(length=length, dtype=str(plan.dtype).removeprefix("torch."), quantize=quantize)
    needed = demand(parts, job, table=plan.dtype.itemsize)
    auto = device is None or device == "auto"
    bounds = limits_of(limits, devices)
    placed = spread(needed, devices, bounds, fewest=auto, carry=job.train is None)
    homes = homes_of(placed, devices[-1])
    last = torch.device(homes[-1].device) if homes else devices[-1]
    return replace(plan, homes=homes, device=last, cache_room=cache_room(placed, bounds))


_FORESEEN = 2_048
"""Tokens of an answer that layers are spread for; more of them still find room where there is."""


def _refuse_again(folder: Path, quantize: str | None, bits: int | None) -> None:
    """Refuse to round to other bits what lies rounded; to the same, it rounds what is left."""
    if quantize is not None and bits is not None and quantize != f"int{bits}":
        raise UsageError(
            f"{folder} is quantised to {bits} bits already and stays so: quantize={quantize!r} "
            "would do nothing; leave it out, or take the model that is not quantised"
        )


def _own_bits(raw: dict[str, Any]) -> int | None:
    """Return the bits of what glmkit itself quantised, None of anything else."""
    said = raw.get("quantization_config")
    bits = said.get("bits") if isinstance(said, dict) else None
    return bits if bits in (4, 8) else None


def device_of(name: str | None) -> torch.device:
    """Return the device of a name; None is the first CUDA device, else the processor.

    :raises UsageError: if it cannot be used, or several are named.
    """
    if name is not None and "," in name:
        raise UsageError(f"one device is needed here, got {name!r}; name one of them")
    return devices_of(name)[0]


def _dtype(
    name: str | None,
    device: torch.device,
    config: ModelConfig,
    raw: dict[str, Any],
    *,
    rounded: bool,
) -> torch.dtype:
    """Choose the dtype: as asked, else what the device multiplies fast and has memory for.

    On a processor that is float32 where the matrices take up to half of the memory that is left,
    or are integers anyway; else the half precision that they are stored in, which needs no copy.
    """
    if name is not None:
        full = _SHORT.get(name, name)
        if full not in DTYPES:
            allowed = ", ".join([*DTYPES, *_SHORT])
            raise UsageError(f"dtype must be one of {allowed}, got {name!r}")
        return DTYPES[full]
    stored = DTYPES.get(str(raw.get("torch_dtype", raw.get("dtype"))), torch.float16)
    if device.type == "cpu" and (rounded or 4 * config.parameters <= available_memory() // 2):
        return torch.float32
    return torch.float16 if stored == torch.float32 else stored


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
