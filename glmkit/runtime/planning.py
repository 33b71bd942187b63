"""What a job takes on given devices, whether it fits, and what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import UsageError
from ..models.layouts import located, read_model
from ..models.published import ROUNDED_TABLE, Shape, architecture
from .demand import Job, demand
from .footprint import Anatomy, anatomy
from .memory import readable
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
            need = worst.parts.total - worst.device.size
            return f"does not fit: {worst.device.name} lacks {readable(need)}"
        if kept:
            return (
                f"does not fit, but runs: {len(kept)} of {len(self.placement.homes)} layers are "
                "kept elsewhere and brought in for every pass, which is slow"
            )
        least = min(each.device.size - each.parts.total for each in used)
        return f"fits, with {readable(least)} left on the fullest device"


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
    site = _Site(parts, tuple(devices), tuple(split))
    placed = site.placed(job, spare=spare)
    helps = () if placed.fits else tuple(_helps(site, job))
    return Forecast(job, site.devices, placed, helps)


@dataclass(frozen=True)
class _Site:
    """A model, and what jobs with it run on."""

    parts: Anatomy
    devices: tuple[Device, ...]
    split: tuple[int, ...] = ()

    def placed(self, job: Job, *, spare: int = 0, carry: bool = True) -> Placement:
        """Return where the layers go.

        :raises UsageError: if the split is not that of the model and the devices.
        """
        needed, split = demand(self.parts, job), self.split
        if not split:
            return place(needed, self.devices, spare=spare, carry=carry and job.train is None)
        if len(split) != len(self.devices) or sum(split) != needed.layers or min(split) < 0:
            raise UsageError(
                f"the split {','.join(map(str, split))} is for {_counted(len(split))} and "
                f"{sum(split)} layers; the plan has {_counted(len(self.devices))} and "
                f"{needed.layers} layers"
            )
        return placed_by(needed, self.devices, split)

    def fits(self, job: Job) -> bool:
        """Tell whether all layers of a job find room where they are computed."""
        return self.placed(job, carry=False).fits


def _counted(devices: int) -> str:
    return f"{devices} device{'' if devices == 1 else 's'}"


_UNSPLIT = "leave out --split"


def _helps(site: _Site, job: Job) -> Iterator[str]:
    """Yield the changes that make a job fit, those first that cost least."""
    free, also = replace(site, split=()), f", and {_UNSPLIT}" if site.split else ""
    if site.split and free.fits(job):
        yield _UNSPLIT
        yield from _alone(site, job)
        return
    for ways in (_alone, _together):
        found = [*ways(site, job)] or [each + also for each in ways(free, job)]
        if found:
            yield from found
            break
    yield from (each + also for each in _another_card(free, job))


def _alone(site: _Site, job: Job) -> Iterator[str]:
    """Yield changes each of which makes a job fit by itself."""
    yield from (flag for flag, other in _changes(job) if site.fits(other))
    yield from _smaller(site, job)


def _together(site: _Site, job: Job) -> Iterator[str]:
    """Yield several changes that make a job fit together, as few as are found one by one."""
    flags: dict[str, str] = {}
    while changes := list(_changes(job)):
        flag, job = changes[0]
        flags[flag.split(" ")[0]] = flag  # a later one of a kind replaces the earlier: int8, int4
        fits = site.fits(job)
        smaller = "" if fits else next(_smaller(site, job), "")
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


def _smaller(site: _Site, job: Job) -> Iterator[str]:
    """Yield the largest batch, and the greatest length, that fit."""
    batch = job.batch // 2
    while batch and not site.fits(replace(job, batch=batch)):
        batch //= 2
    if batch:
        yield f"--batch {batch}"
    length = job.length // 2
    while length >= _SHORTEST and not site.fits(replace(job, length=length)):
        length //= 2
    if length >= _SHORTEST:
        yield f"--length {length}"


def _another_card(site: _Site, job: Job) -> Iterator[str]:
    """Yield how many cards like the last one would do."""
    more = site.devices
    if more[-1].is_processor:
        return
    while len(more) < _MOST_CARDS:
        more = (*more, Device(f"cuda:{len(more)}", more[-1].size))
        if replace(site, devices=more).fits(job):
            yield f"--gpus {written([each.size for each in more])}"
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
    if isinstance(own, dict) and own.get("quant_method") == "glmkit":
        parts.table = ROUNDED_TABLE
    return parts, f"int{bits}" if bits in (4, 8) else None
