"""FSDP2: every process keeps a part of all weights, gradients and states of the optimizer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ..errors import UsageError
from ..models.causal import Stack
from ..runtime.parting import PARTED, Parting
from .config import TrainConfig
from .crew import set_parameters
from .processes import Launched, Several, alike

if TYPE_CHECKING:
    from accelerate import FullyShardedDataParallelPlugin

log = logging.getLogger(__name__)

_FEW = 1 << 30
"""Bytes of whole gradients that a process may keep, to send them once in a step."""


@dataclass(frozen=True)
class Sharding:
    """How weights are parted."""

    reshard: bool = True
    """Drop the parts of others behind each block's pass, and fetch them again to go back."""
    offload: bool = False
    """Keep a process's own part in the processor's memory."""
    checkpointing: bool = False
    """Work the inside of blocks out again when gradients need it."""

    @classmethod
    def of(cls, config: TrainConfig, launched: Launched) -> Sharding:
        """Take what accelerate's launcher was told, else what the configuration says."""
        if not launched.fsdp:
            return cls(offload=config.offload)
        from accelerate import FullyShardedDataParallelPlugin

        # In version 1, sharding has names; what they say of version 2 is only whether to reshard.
        return cls._from(FullyShardedDataParallelPlugin(fsdp_version=2, reshard_after_forward=None))

    @classmethod
    def _from(cls, plugin: FullyShardedDataParallelPlugin) -> Sharding:
        return cls(
            reshard=bool(plugin.reshard_after_forward),
            offload=isinstance(plugin.cpu_offload, CPUOffloadPolicy),
            checkpointing=bool(plugin.activation_checkpointing),
        )


class Shards(Several):
    """Every process keeps its part, and borrows those of the others block by block.

    :param sharding: how.
    """

    def __init__(self, device: torch.device, sharding: Sharding) -> None:
        super().__init__(device)
        self.sharding = sharding
        offloads = sharding.offload and device.type != "cpu"
        self.parting: Parting | None = Parting(self.world, elsewhere=PARTED if offloads else ())
        self.home = "cpu"
        """Blocks go to the card when they have been parted, so that none holds the whole model."""
        self._once = True

    def prepare(self, learner: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Part the weights, block by block, and let the optimizer know the parts.

        :raises UsageError: if weights that are trained together have several dtypes, or the
            optimizer cannot work on parts.
        """
        _refuse_optimizer(optimizer)
        whole = dict(learner.named_parameters())
        _refuse_mixed(learner)
        trained = [each for each in whole.values() if each.requires_grad]
        self._once = sum(each.nbytes for each in trained) <= _FEW
        alike(learner, self.device)
        self._part(learner)
        parts = dict(learner.named_parameters())
        now = {each: parts[name] for name, each in whole.items()}
        for group in optimizer.param_groups:
            group["params"] = [now[each] for each in group["params"]]
        return learner, optimizer

    def _part(self, learner: nn.Module) -> None:
        mesh = init_device_mesh(self.device.type, (self.world,))
        offloads = self.sharding.offload and self.device.type != "cpu"
        policy = CPUOffloadPolicy() if offloads else OffloadPolicy()
        # Parts are exact; what others lend for a pass, they lend rounded.
        mixed = MixedPrecisionPolicy(
            param_dtype=getattr(learner, "computing", None),
            reduce_dtype=torch.float32 if getattr(learner, "computing", None) else None,
            cast_forward_inputs=False,
        )
        shard = partial(fully_shard, mesh=mesh, offload_policy=policy, mp_policy=mixed)
        for stack in _stacks(learner):
            stack.gradient_checkpointing |= self.sharding.checkpointing
            for block in stack.layers:
                reshard = self.sharding.reshard
                shard(block, reshard_after_forward=reshard)
        shard(learner)

    @contextmanager
    def turn(self, learner: nn.Module, *, last: bool) -> Iterator[None]:
        """Let gradients meet in the last pass only, where whole ones are small enough to keep."""
        if isinstance(learner, FSDPModule):
            learner.set_requires_gradient_sync(last or not self._once)
        with warnings.catch_warnings():
            # What a block gives may be a view; the next one does not change it in place.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
            yield

    def backward(self, loss: Tensor) -> None:
        """Take gradients; FSDP takes their mean, and we want the sum."""
        (loss * self.world).backward()  # type: ignore[no-untyped-call]

    def clipped(self, learner: nn.Module, most: float) -> float:
        """Return the norm of all gradients, and scale them down to ``most``; 0: only measure."""
        grown = [each for each in learner.parameters() if each.grad is not None]
        norm = nn.utils.clip_grad_norm_(grown, most or float("inf"))
        return float(_whole(norm, self.device))

    def trained(self, learner: nn.Module) -> dict[str, Tensor]:
        """Return whole trained parameters by name, on the processor; empty but in process 0."""
        return self._kept({name: each.detach() for name, each in _trained(learner)})

    def set_trained(self, learner: nn.Module, state: dict[str, Tensor]) -> None:
        """Set trained parameters, given whole to every process.

        :raises CheckpointError: if they are not those of this learner.
        """
        own = dict(_trained(learner))
        parted = {name: _like(own[name], each) for name, each in state.items() if name in own}
        set_parameters(learner, {**state, **parted})

    def optimizer_state(self, learner: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state by parameter name, on the processor; empty but in process 0."""
        found: dict[str, Any] = {}
        for name, each in _trained(learner):
            if each in optimizer.state:
                state = self._kept(optimizer.state[each])
                found |= {name: state} if not self.rank else {}
        return found

    def set_optimizer_state(
        self, learner: nn.Module, optimizer: Optimizer, state: dict[str, Any]
    ) -> None:
        """Set what :meth:`optimizer_state` returned, given whole to every process."""
        for name, each in _trained(learner):
            values = state.get(name, {})
            optimizer.state[each] = {key: _like(each, value) for key, value in values.items()}

    def _kept(self, values: dict[str, Any]) -> dict[str, Any]:
        """Bring the parts of values together, one value after another; keep them in process 0."""
        kept: dict[str, Any] = {}
        for name, each in values.items():
            value = _whole(each, self.device).cpu().clone() if isinstance(each, Tensor) else each
            kept |= {name: value} if not self.rank else {}
        return kept


def _trained(learner: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield parts of trained parameters; what an evaluation fetched of others is dropped."""
    for module in learner.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for name, each in learner.named_parameters():
        if each.requires_grad:
            yield name, each


def _whole(value: Tensor, device: torch.device) -> Tensor:
    """Bring the parts of a tensor together; all processes call it."""
    if not isinstance(value, DTensor):
        return value
    return cast(DTensor, value.to(device)).full_tensor()


def _like(own: Tensor, value: Any) -> Any:  # noqa: ANN401
    """Part a value as a parameter is parted; steps, which are counted, stay whole."""
    if not isinstance(value, Tensor) or value.shape != own.shape or not isinstance(own, DTensor):
        return value
    mesh, there = own.device_mesh, own.to_local().device
    parted = distribute_tensor(value.to(mesh.device_type), mesh, own.placements, src_data_rank=None)
    return parted.to(there)


def _stacks(learner: nn.Module) -> Iterator[Stack]:
    return (each for each in learner.modules() if isinstance(each, Stack))


def _refuse_mixed(learner: nn.Module) -> None:
    dtypes = {each.dtype for each in learner.parameters() if each.requires_grad}
    if len(dtypes) > 1:
        names = ", ".join(sorted(str(each).removeprefix("torch.") for each in dtypes))
        raise UsageError(
            f"FSDP sends gradients of one dtype, and what is trained here has {names}; take "
            "--parallel ddp"
        )


def _refuse_optimizer(optimizer: Optimizer) -> None:
    if type(optimizer).__module__.startswith("bitsandbytes"):
        raise UsageError(
            "8-bit optimizers work on whole weights, and FSDP parts them; take --optimizer adamw, "
            "or --parallel ddp"
        )
