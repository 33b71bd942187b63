"""How a training is shared: alone, by replicas, by shards, by DeepSpeed; whoever launched it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import UsageError
from ..models.causal import CausalModel
from ..runtime.devices import devices_of
from ..runtime.loading import physical_cores
from .config import TrainConfig
from .crew import Alone, Crew
from .processes import Launched, Replicas, Several, joined


@contextmanager
def crew_of(config: TrainConfig) -> Iterator[Crew]:
    """Join the processes that were launched together; alone, do without them.

    When one of them fails, the others end with its error.

    :raises UsageError: if the configuration is none that several processes can share.
    :raises WorkerLostError: if another process failed.
    """
    launched = Launched.here()
    mode = mode_of(config, launched)
    devices = devices_of(config.device)
    if launched.world == 1 and (mode == "ddp" or (mode == "fsdp" and not config.offload)):
        yield Alone(devices[0])
        return
    device = _own_device(config.device, devices, launched)
    with joined(launched, device):
        yield _crew(mode, config, launched, device)


def mode_of(config: TrainConfig, launched: Launched) -> str:
    """Return ``ddp``, ``fsdp`` or ``zero``: what the launcher was told counts before the config."""
    if launched.deepspeed:
        return "zero"
    if launched.fsdp:
        return "fsdp"
    return "zero" if config.parallel.startswith("zero") or config.deepspeed else config.parallel


def _crew(mode: str, config: TrainConfig, launched: Launched, device: torch.device) -> Crew:
    if mode == "zero":
        from .zero import Zero

        return Zero(device, config, launched)
    if mode == "fsdp":
        from .shards import Sharding, Shards

        return Shards(device, Sharding.of(config, launched))
    return Replicas(device)


def _own_device(said: str | None, devices: list[torch.device], launched: Launched) -> torch.device:
    """Return the device of this process, and see that nobody else takes it."""
    if said is not None and ("," in said or devices[0].index):
        raise UsageError(
            f"each of several processes has a card of its own, so --device {said!r} cannot be; "
            "leave it out (CUDA_VISIBLE_DEVICES chooses cards), or run one process (--nproc 1) "
            "to spread the layers of one model over cards"
        )
    if devices[0].type == "cpu":
        torch.set_num_threads(max(1, physical_cores() // launched.local_world))
        return devices[0]
    count = torch.accelerator.device_count()
    if launched.local_world > count:
        raise UsageError(
            f"{launched.local_world} processes were started on this machine, which has {count} "
            f"card{'s' * (count != 1)}; start {count}, or take --device cpu"
        )
    torch.accelerator.set_device_index(launched.local_rank)
    return torch.device(devices[0].type, launched.local_rank)


def home_of(config: TrainConfig, crew: Crew, *, quantize: str | None) -> str | None:
    """Return where a model is loaded, as ``--device`` says it.

    What is parted begins on the processor, so that no card holds it whole; quantised matrices are
    small, are no parameters and stay whole.
    """
    if not isinstance(crew, Several):
        return config.device
    return str(crew.device) if quantize else crew.home


def agreed(dtype: torch.dtype, crew: Crew) -> torch.dtype:
    """Return one dtype for all processes, though each has measured for itself what is fast."""
    order = [torch.float32, torch.float16, torch.bfloat16]
    votes = crew.summed(*(float(each == dtype) for each in order))
    return next(each for each, vote in zip(order, votes, strict=True) if vote)


def refuse_carried(model: CausalModel) -> None:
    """Refuse to train layers whose weights are brought in for each pass only.

    Their gradients need them once more when they are gone, and what is trained has to stay.

    :raises UsageError: if there are such layers.
    """
    turns = model.stack.turns
    carried = sum(each.carried for each in turns)
    if carried:
        raise UsageError(
            f"{carried} of {len(turns)} layers have no room on the devices, and what is trained "
            "cannot be brought in for each pass; name more devices (--device cuda:0,cuda:1), raise "
            "--max-memory, round the weights (glmkit finetune qlora), or part them over processes "
            "(--nproc 2 --parallel fsdp --offload)"
        )
