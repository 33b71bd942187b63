"""Processes that train together: how they meet and fail, and replicas of a model (DDP).

Whoever launched them (``--nproc``, torchrun, accelerate, deepspeed) says by environment variables
who is who; torch and accelerate read those.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import HashStore, PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..errors import GlmkitError, WorkerLostError
from .crew import Alone

log = logging.getLogger(__name__)

_PATIENCE = timedelta(hours=1)
"""How long a process waits for another that neither comes nor ends: large checkpoints take time."""
_FAILED = "failed"
_MEETINGS = count()
"""What one meeting wrote into the store is none of the next one's."""
_MET: list[Store] = []
"""What the processes of this meeting read and write."""
_LOOKS = timedelta(seconds=10)
"""Between two looks whether process 0 has failed, while others wait for it."""


@dataclass(frozen=True)
class Launched:
    """What a launcher told this process."""

    world: int = 1
    rank: int = 0
    local_rank: int = 0
    local_world: int = 1
    fsdp: bool = False
    """accelerate's launcher was told to use FSDP; its settings are in its own variables."""
    deepspeed: bool = False
    """The same of DeepSpeed."""

    @classmethod
    def here(cls) -> Launched:
        """Read it, by accelerate's readers of environment variables."""
        from accelerate.utils import get_int_from_env, parse_flag_from_env

        return cls(
            world=get_int_from_env(["WORLD_SIZE"], 1),
            rank=get_int_from_env(["RANK"], 0),
            local_rank=get_int_from_env(["LOCAL_RANK"], 0),
            local_world=get_int_from_env(["LOCAL_WORLD_SIZE", "LOCAL_SIZE"], 1),
            fsdp=parse_flag_from_env("ACCELERATE_USE_FSDP"),
            deepspeed=parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"),
        )


@contextmanager
def joined(launched: Launched, device: torch.device) -> Iterator[None]:
    """Meet the others; when one of us fails, all end with its error.

    :raises WorkerLostError: if another process failed.
    """
    store = _met(launched, device)
    _MET[:] = [store]
    with _together(store):
        yield
        dist.barrier()  # who keeps the store may not leave before the others are done with it
    dist.destroy_process_group()


def _met(launched: Launched, device: torch.device) -> Store:
    """Return what all of us read and write."""
    store = PrefixStore(f"glmkit/{next(_MEETINGS)}", _store(launched.world))
    dist.init_process_group(
        # Two ways to meet, for what is on cards and for what is not.
        backend="gloo" if device.type == "cpu" else None,
        store=store,
        rank=launched.rank,
        world_size=launched.world,
        timeout=_PATIENCE,
        device_id=None if device.type == "cpu" else device,
    )
    return store


@cache
def _store(world: int) -> Store:
    """Return the store of all meetings; opened anew, one process may still find the old one."""
    if world == 1:
        return HashStore()
    store: Store = next(rendezvous("env://", timeout=_PATIENCE))[0]
    return store


@contextmanager
def _together(store: Store) -> Iterator[None]:
    """Tell the others of an error, and take theirs for the consequences that it has here."""
    try:
        yield
    except RuntimeError as error:
        blamed = _blamed(store, error)
        if blamed is not None:
            raise blamed from error
        _tell(store, error)
        raise
    except BaseException as error:
        _tell(store, error)
        raise


def _await(store: Store, key: str) -> None:
    """Return when a key is there, however long that takes.

    :raises WorkerLostError: if a process failed.
    """
    while not store.check([key]):
        if store.check([_FAILED]):
            raise _ended(*json.loads(store.get(_FAILED)))
        with suppress(dist.DistStoreError):
            store.wait([key], _LOOKS)


def _tell(store: Store, error: BaseException) -> None:
    """Write down who failed first, and of what."""
    if isinstance(error, GeneratorExit):
        return
    said = json.dumps([dist.get_rank(), type(error).__name__, str(error)])
    try:
        store.compare_set(_FAILED, "", said)
    except (RuntimeError, ValueError):  # who kept the store is gone
        log.debug("nobody is left to be told of %s", said)


def _blamed(store: Store, error: RuntimeError) -> GlmkitError | None:
    """Return what another process failed of, None where the error is of our own."""
    if not _of_meeting(error):
        return None
    try:
        rank, kind, said = json.loads(_told(store))
    except (RuntimeError, ValueError):
        return _lost(error)
    return None if rank == dist.get_rank() else _ended(rank, kind, said)


def _ended(rank: int, kind: str, said: str) -> WorkerLostError:
    return WorkerLostError(f"process {rank} ended ({kind}): {said or 'it says no more'}")


def _told(store: Store) -> bytes:
    """Return what somebody failed of.

    :raises RuntimeError: if nobody says so.
    """
    try:
        store.wait([_FAILED], timedelta(seconds=2))
    except RuntimeError:
        if not store.check([_FAILED]):  # a process that was halted meanwhile has waited too little
            raise
    return store.get(_FAILED)


def _of_meeting(error: RuntimeError) -> bool:
    """Tell whether an error is one of meeting others: of gloo, NCCL or their store."""
    return isinstance(error, dist.DistError) or any(each in str(error).lower() for each in _MEETING)


_MEETING = ("gloo", "nccl", "connection", "socket", "broken pipe", "tcpstore")


def _lost(error: RuntimeError) -> GlmkitError:
    return WorkerLostError(
        "another process of this run has ended without a word: it was killed, or its machine is "
        f"gone; --resume goes on from the last checkpoint ({str(error).splitlines()[0][:200]})"
    )


class Several:
    """What all ways of sharing a training have in common.

    :param device: of this process.
    """

    home: str | None
    """Where the model is loaded."""
    masters = False

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.device, self.home = device, str(device)
        self._firsts = 0

    def summed(self, *values: float) -> list[float]:
        """Return each value, summed over all processes."""
        numbers = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(numbers)
        return [float(each) for each in numbers.tolist()]

    def wait(self) -> None:
        """Return when all processes are here."""
        dist.barrier()

    @contextmanager
    def first(self) -> Iterator[None]:
        """Let process 0 go ahead; the others follow, and find what it left for them.

        It may take its time: whoever waits looks in the store, where no clock runs out.
        """
        store, self._firsts = _MET[-1], self._firsts + 1
        done = f"first/{self._firsts}"
        if self.rank:
            _await(store, done)
        yield
        if not self.rank:
            store.set(done, "1")


class Replicas(Several, Alone):
    """Every process has the whole model; gradients meet (DDP)."""

    def prepare(self, learner: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Begin with equal weights."""
        alike(learner, self.device)
        ids = None if self.device.type == "cpu" else [self.device]
        replica = DistributedDataParallel(
            learner,
            device_ids=ids,
            gradient_as_bucket_view=True,
            init_sync=False,  # which would send the frozen weights around
        )
        return replica, optimizer

    def turn(self, learner: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """Let gradients meet in the last pass only."""
        if last or not isinstance(learner, DistributedDataParallel):
            return nullcontext()
        return cast("AbstractContextManager[object]", learner.no_sync())

    def backward(self, loss: Tensor) -> None:
        """Take gradients; DDP takes their mean, and we want the sum."""
        (loss * self.world).backward()  # type: ignore[no-untyped-call]

    def trained(self, learner: nn.Module) -> dict[str, Tensor]:
        """Return trained parameters by name, on the processor; empty but in process 0."""
        return {} if self.rank else super().trained(bare(learner))

    def set_trained(self, learner: nn.Module, state: dict[str, Tensor]) -> None:
        """Set trained parameters."""
        super().set_trained(bare(learner), state)

    def optimizer_state(self, learner: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimizer's state by parameter name; empty but in process 0."""
        return {} if self.rank else super().optimizer_state(bare(learner), optimizer)

    def set_optimizer_state(
        self, learner: nn.Module, optimizer: Optimizer, state: dict[str, Any]
    ) -> None:
        """Set what :meth:`optimizer_state` returned."""
        super().set_optimizer_state(bare(learner), optimizer, state)


def bare(learner: nn.Module) -> nn.Module:
    """Return the learner that DDP or DeepSpeed wraps."""
    return getattr(learner, "module", learner)


def alike(learner: nn.Module, device: torch.device) -> None:
    """Give every process the trained weights of process 0; the frozen ones come from files.

    :param device: where processes meet.
    """
    for each in learner.parameters():
        if each.requires_grad:
            there = each.detach().to(device)
            dist.broadcast(there, 0)
            each.data.copy_(there)
