"""What a job takes on given devices, whether it fits, and what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import UsageError
from ..models.layouts import located, read_model
from ..models.published import Shape, architecture
from .demand import Job, demand
from .footprint import Anatomy, anatomy
from .official import bits_of
from .placement import GIB, Device, Placement, place, placed_by

_SHORTEST = 128
_MOST_CARDS = 16


@dataclass(frozen=True)
class Forecast:
    """What is known of a job before anything is loaded."""

    job: Job
    devices: tuple[Device, ...]
    placement: Placement
    helps: tuple[str, ...]
    """Flags that make it fit, each by itself; where none does, one entry with several."""

    @property
    def verdict(self) -> str:
        """One line."""
        used, kept = self.placement.uses, [each for each in self.placement.homes if each.kept]
        over = [each for each in used if not each.fits]
        if over:
            worst = max(over, key=lambda each: each.parts.total - each.device.size)
            need = (worst.parts.total - worst.device.size) / GIB
            return f"does not fit: {worst.device.name} lacks {need:.2f} GiB"
        if kept:
            return (
                f"does not fit, but runs: {len(kept)} of {len(self.placement.homes)} layers are "
                "kept elsewhere and brought in for every pass, which is slow"
            )
        least = min(each.device.size - each.parts.total for each in used)
        return f"fits, with {least / GIB:.2f} GiB left on the fullest device"


def forecast(
    parts: Anatomy,
    job: Job,
    devices: Sequence[Device],
    *,
    split: Sequence[int] = (),
    spare: int = 0,
) -> Forecast:
    """Plan a job.

    :param split: how many layers each device gets; empty: as even as can be.
    :param spare: bytes of the processor's memory for layers that have no room.
    :raises UsageError: if ``split`` is not that of the model and the devices.
    """
    placed = _placed(parts, job, devices, split=split, spare=spare)
    helps = () if placed.fits else tuple(_helps(parts, job, devices))
    return Forecast(job, tuple(devices), placed, helps)


def _placed(
    parts: Anatomy,
    job: Job,
    devices: Sequence[Device],
    *,
    split: Sequence[int] = (),
    spare: int = 0,
) -> Placement:
    needed = demand(parts, job)
    if not split:
        return place(needed, devices, spare=spare, carry=job.train is None)
    if len(split) != len(devices) or sum(split) != needed.layers or min(split) < 0:
        raise UsageError(
            f"the split {','.join(map(str, split))} is for {len(split)} devices and {sum(split)} "
            f"layers; there are {len(devices)} devices and {needed.layers} layers"
        )
    return placed_by(needed, devices, split)


def _fits(parts: Anatomy, job: Job, devices: Sequence[Device]) -> bool:
    return place(demand(parts, job), devices, carry=False).fits


def _helps(parts: Anatomy, job: Job, devices: Sequence[Device]) -> Iterator[str]:
    """Yield the changes that make a job fit, those first that cost least."""
    found = [flag for flag, other in _changes(job) if _fits(parts, other, devices)]
    found += _smaller(parts, job, devices)
    yield from found or _together(parts, job, devices)
    yield from _another_card(parts, job, devices)


def _together(parts: Anatomy, job: Job, devices: Sequence[Device]) -> Iterator[str]:
    """Yield several changes that make a job fit together, as few as are found one by one."""
    flags: dict[str, str] = {}
    while changes := list(_changes(job)):
        flag, job = changes[0]
        flags[flag.split(" ")[0]] = flag  # a later one of a kind replaces the earlier: int8, int4
        fits = _fits(parts, job, devices)
        smaller = "" if fits else next(_smaller(parts, job, devices), "")
        if fits or smaller:
            yield " ".join([*flags.values(), smaller]).rstrip()
            return


def _changes(job: Job) -> Iterator[tuple[str, Job]]:
    """Yield flags, and the job with each."""
    if job.dtype == "float32":
        yield "--dtype float16", replace(job, dtype="float16")
    if job.train and not job.checkpointing:
        yield "--checkpointing", replace(job, checkpointing=True)
    if job.train == "full":
        yield "--train lora", replace(job, train="lora")
        if job.optimizer != "adamw_8bit":
            yield "--optimizer adamw_8bit", replace(job, optimizer="adamw_8bit")
        return
    if job.quantize is None:
        yield "--quantize int8", replace(job, quantize="int8")
    if job.quantize != "int4":
        yield "--quantize int4", replace(job, quantize="int4")


def _smaller(parts: Anatomy, job: Job, devices: Sequence[Device]) -> Iterator[str]:
    """Yield the largest batch, and the greatest length, that fit."""
    batch = job.batch // 2
    while batch and not _fits(parts, replace(job, batch=batch), devices):
        batch //= 2
    if batch:
        yield f"--batch {batch}"
    length = job.length // 2
    while length >= _SHORTEST and not _fits(parts, replace(job, length=length), devices):
        length //= 2
    if length >= _SHORTEST:
        yield f"--length {length}"


def _another_card(parts: Anatomy, job: Job, devices: Sequence[Device]) -> Iterator[str]:
    """Yield how many cards like the last one would do."""
    last = devices[-1]
    if last.is_processor:
        return
    more = list(devices)
    while len(more) < _MOST_CARDS:
        more.append(Device(f"cuda:{len(more)}", last.size))
        if _fits(parts, job, more):
            sizes = [each.size for each in more]
            yield f"--gpus {written(sizes)}"
            return


def written(sizes: Sequence[int]) -> str:
    """Write sizes of cards as ``--gpus`` takes them."""
    alike = len(set(sizes)) == 1
    names = [_size(each) for each in (sizes[:1] if alike else sizes)]
    return f"{len(sizes)}x{names[0]}" if alike and len(sizes) > 1 else ",".join(names)


def _size(size: int) -> str:
    for unit, one in (("GiB", GIB), ("GB", 10**9), ("MiB", 1 << 20)):
        if size % one == 0:
            return f"{size // one}{unit}"
    return f"{size / GIB:.2f}GiB"


def of_shape(shape: Shape) -> Anatomy:
    """Return the parts of a model of a shape."""
    with torch.device("meta"):
        return anatomy(architecture(shape)(shape))


def of_folder(folder: Path, family: str | None = None) -> tuple[Anatomy, str | None]:
    """Return the parts of a folder's model by its config.json alone, and how they lie rounded.

    :raises CheckpointError: if it is no model that glmkit runs.
    """
    found = read_model(folder, family)
    with located(folder):
        bits = bits_of(found.raw)
    own = found.raw.get("quantization_config")
    bits = bits or (own.get("bits") if isinstance(own, dict) else None)
    with torch.device("meta"):
        parts = anatomy(found.layout.model(found.config))
    return parts, f"int{bits}" if bits in (4, 8) else None
