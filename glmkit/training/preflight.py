"""Whether a training fits, foretold before its model is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import OutOfMemoryError
from ..runtime.demand import Demand, Job, demand
from ..runtime.devices import limits_of
from ..runtime.kernels import has_own_kernel
from ..runtime.memory import memory_of, readable
from ..runtime.parting import Parting
from ..runtime.placement import CPU, Device
from ..runtime.planning import Forecast, forecast, of_folder
from .config import RunConfig, TrainConfig
from .losses import ROOM, ROOM_ELSEWHERE
from .rounded import turns_up_to
from .tuning import Tuning

_FLAGS = (
    (re.compile(r"--batch (\d+)"), r"--batch-size \1"),
    (re.compile(r"--length (\d+)"), r"--max-length \1"),
    (re.compile(r"--checkpointing"), "--gradient-checkpointing"),
    (re.compile(r"--train lora"), "the recipe lora"),
    (re.compile(r"--quantize (int[48])"), r"the recipe qlora with --quantize \1"),
    (re.compile(r"--gpus (\S+)"), r"more cards (\1)"),
    (re.compile(r"--dtype float16"), "--dtype bfloat16"),
)
"""What a flag of ``glmkit plan`` is called in training."""


def job_of(
    config: TrainConfig,
    tuning: Tuning,
    *,
    tokens: int,
    dtype: torch.dtype,
    quantize: str | None,
    device: torch.device,
    parting: Parting | None = None,
) -> Job:
    """Return what a training is to a forecast.

    :param tokens: of the longest pass.
    :param dtype: that the frozen weights have.
    :param device: that computes the loss.
    :param parting: how processes share what it holds.
    """
    length = max(1, min(tokens, config.max_length))
    job = Job(
        batch=-(-tokens // length),
        length=length,
        dtype=str(dtype).removeprefix("torch."),
        quantize=quantize,
        train=tuning.kind,  # type: ignore[arg-type]  # checked by Job
        checkpointing=config.gradient_checkpointing,
        optimizer=config.optimizer,
        room=ROOM if device.type == "cpu" else ROOM_ELSEWHERE,
        parting=_parting(parting, quantize),
    )
    return replace(job, **tuning.forecast)


def _parting(parting: Parting | None, quantize: str | None) -> Parting | None:
    """Return how it is shared; rounded weights stay whole, they are no parameters."""
    if parting is None or quantize is None:
        return parting
    parted, elsewhere = (
        tuple(each for each in names if each != "weights")
        for names in (parting.parted, parting.elsewhere)
    )
    return replace(parting, parted=parted, elsewhere=elsewhere)


def foresee(
    folder: Path, job: Job, devices: Sequence[torch.device], config: TrainConfig, *, beside: int = 1
) -> Forecast:
    """Plan a training on devices as they are now.

    :param beside: processes that share the memory of this machine.
    """
    parts, _ = of_folder(folder, config.family)
    if job.quantize is not None and devices[0].type == "cpu" and has_own_kernel():
        linears = parts.config.layers * parts.layer.matrices + parts.scores
        job = replace(job, turned=turns_up_to(linears))
    if job.parting is not None:
        _refuse_crowded(demand(parts, replace(job, parting=None)), job, devices[0], beside)
    limits = limits_of(config.max_memory, list(devices))
    return forecast(parts, job, [_sized(each, limits, beside) for each in devices])


def _refuse_crowded(whole: Demand, job: Job, device: torch.device, processes: int) -> None:
    """Refuse what the processor's memory cannot keep for all processes of this machine.

    That is what is offloaded and, where weights are parted, whole models while they are loaded.
    """
    if job.parting is None:
        return
    all_of_it = whole.on(whole.layers, first=True, last=True)
    loaded = all_of_it.weights if "weights" in job.parting.parted and not job.quantize else 0
    kept = 0 if device.type == "cpu" else job.parting.kept(all_of_it)
    needed, free = processes * max(loaded, kept), memory_of(torch.device("cpu"))
    if needed > free:
        what = "load the model" if loaded >= kept else "keep what is offloaded"
        raise OutOfMemoryError(
            f"{processes} processes would take {readable(needed)} of the processor's memory to "
            f"{what}, and {readable(free)} are free; start fewer on this machine (--nproc), take "
            "--dtype bfloat16, or the recipe qlora; --no-memory-check tries all the same"
        )


def _sized(device: torch.device, limits: Mapping[str, int], beside: int) -> Device:
    name = CPU if device.type == "cpu" else str(device)
    free = memory_of(device) // (beside if device.type == "cpu" else 1)
    return Device(name, min(free, limits.get(name, free)))


def refuse_too_large(found: Forecast) -> None:
    """Refuse a training that does not fit.

    :raises OutOfMemoryError: naming the flags that make it fit.
    """
    uses = found.placement.uses
    if all(each.fits for each in uses):
        return
    helps = [in_training(each) for each in found.helps]
    raise OutOfMemoryError(
        f"the training {found.verdict}: it would take "
        + ", ".join(f"{readable(each.parts.total)} of {each.device.name}" for each in uses)
        + ". "
        + (f"It fits with {', or '.join(helps)}" if helps else "No flag makes it fit")
        + "; --no-memory-check tries all the same"
    )


def in_training(flag: str) -> str:
    """Return what a flag of ``glmkit plan`` is called in training."""
    for pattern, other in _FLAGS:
        flag = pattern.sub(other, flag)
    return flag


def ran_out_in(config: TrainConfig, settings: Mapping[str, Any]) -> OutOfMemoryError:
    """Return the error for a training whose memory ran out all the same.

    :param settings: what else helps: ``quantize``, ``kind``.
    """
    helps = []
    if config.max_length > _SHORT:
        helps.append(f"--max-length {config.max_length // 2}")
    if settings.get("kind") == "full":
        helps.append("the recipe lora")
    elif settings.get("quantize") is None:
        helps.append("the recipe qlora")
    return out_of_memory(config, helps)


def out_of_memory(config: RunConfig, more: Sequence[str]) -> OutOfMemoryError:
    """Return the error that names what helps any run, and ``more``."""
    helps = []
    if config.batch_size > 1:
        helps.append(
            f"--batch-size {config.batch_size // 2} --gradient-accumulation "
            f"{2 * config.gradient_accumulation}"
        )
    if not config.gradient_checkpointing:
        helps.append("--gradient-checkpointing")
    helps += more
    return OutOfMemoryError(
        f"memory ran out while training; what helps: {', or '.join(helps) or 'a larger device'}. "
        "Go on from the last checkpoint with --resume (batch-size x gradient-accumulation must "
        "stay the same)"
    )


_SHORT = 256
