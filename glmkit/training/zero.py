"""DeepSpeed's ZeRO: states of the optimizer (1), gradients (2) and weights (3) are parted.

DeepSpeed's own checkpoints are pickles, one for each process. What is kept here is whole, and the
same as every other way of training keeps: a run may go on with other processes, or alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import MissingExtraError, UsageError
from ..runtime.parting import Parting
from .config import TrainConfig
from .crew import set_parameters
from .processes import Launched, Several, alike, bare
from .zero_config import Filling, parting_of, zero_plugin

log = logging.getLogger(__name__)


class Zero(Several):
    """Processes that part what they hold as DeepSpeed's ZeRO does."""

    masters = True

    def __init__(self, device: torch.device, config: TrainConfig, launched: Launched) -> None:
        super().__init__(device)
        try:
            import deepspeed.ops
        except ImportError as error:
            raise MissingExtraError("--parallel zero", "deepspeed", "deepspeed") from error
        if device.type == "cpu":
            # Or it would start a compiler for a faster gloo.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.config = config
        self.plugin = zero_plugin(config, launched)
        self.stage = int(self.plugin.zero_stage)
        self.parting: Parting | None = parting_of(self.plugin, self.world)
        self._engine: Any = None
        if self.stage == 3:
            self.home = "cpu"

    def prepare(self, learner: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Part what the stage says, and let DeepSpeed step.

        :raises UsageError: if the optimizer cannot work on parts.
        """
        import deepspeed

        if type(optimizer).__module__.startswith("bitsandbytes"):
            raise UsageError(
                "8-bit optimizers work on whole weights, and ZeRO parts them; take --optimizer "
                "adamw, or --parallel ddp"
            )
        alike(learner, self.device)
        trained = next(each for each in learner.parameters() if each.requires_grad)
        filled = Filling.of(self.config, self.world, learner, trained.dtype).filled(self.plugin)
        engine, _, _, _ = deepspeed.initialize(
            model=learner, optimizer=optimizer, config=filled, dist_init_required=False
        )
        self._engine = engine
        self._base = optimizer
        return engine, _Stepped(optimizer)

    def turn(self, learner: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """Tell DeepSpeed whether the step ends with this pass."""
        tell = getattr(learner, "set_gradient_accumulation_boundary", None)
        if tell is not None:
            tell(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Take gradients; DeepSpeed takes their mean, and we want the sum."""
        self._engine.backward(loss * self.world, scale_wrt_gas=False)

    def clipped(self, learner: nn.Module, most: float) -> float:
        """Do the step, with gradients scaled down; return the norm that they had."""
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return 0.0 if norm is None else float(norm)

    def trained(self, learner: nn.Module) -> dict[str, Tensor]:
        """Return whole trained parameters by name, on the processor; empty but in process 0."""
        from deepspeed.utils import safe_get_full_fp32_param

        return dict(self._gathered(learner, safe_get_full_fp32_param))

    def set_trained(self, learner: nn.Module, state: dict[str, Tensor]) -> None:
        """Set trained parameters, given whole to every process.

        :raises CheckpointError: if they are not those of this learner.
        """
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(_trained(learner).values()), modifier_rank=0):
            set_parameters(bare(learner), state)
        for name, each in _trained(learner).items():
            self._set(each, None, state[name])

    def optimizer_state(self, learner: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state by parameter name, on the processor; empty but in process 0."""
        from deepspeed.utils import safe_get_full_optimizer_state

        found: dict[str, Any] = {}
        steps = self._steps()
        for key in self._keys():
            read = partial(safe_get_full_optimizer_state, optim_state_key=key)
            for name, value in self._gathered(learner, read):
                found.setdefault(name, {})[key] = value
                if steps is not None:
                    found[name]["step"] = steps.clone()
        return found

    def set_optimizer_state(
        self, learner: nn.Module, optimizer: Optimizer, state: dict[str, Any]
    ) -> None:
        """Set what :meth:`optimizer_state` returned, given whole to every process."""
        first: dict[str, Any] = next(iter(state.values()), {})
        keys = [key for key, value in first.items() if isinstance(value, Tensor) and value.dim()]
        self._make_room(keys, first.get("step"))
        for name, each in _trained(learner).items():
            for key in keys if name in state else ():
                self._set(each, key, state[name][key])

    def _make_room(self, keys: list[str], steps: Tensor | None) -> None:
        """Make the states that the optimizer itself makes in its first step."""
        for flat in self._flat():
            state = self._base.state[flat]
            state |= {key: torch.zeros_like(flat) for key in keys}
            if steps is not None:
                state["step"] = steps.clone()
        link = getattr(self._engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None:
            link()

    def _flat(self) -> list[Tensor]:
        """Return what the optimizer steps: this process's part of all trained weights."""
        inner = self._engine.optimizer
        name = "fp32_partitioned_groups_flat" if self.stage == 3 else _FLAT
        found: list[Tensor] = list(getattr(inner, name))
        return found

    def _keys(self) -> list[str]:
        """Return what the optimizer keeps for each number."""
        for flat in self._flat():
            state = self._base.state.get(flat, {})
            return [k for k, v in state.items() if isinstance(v, Tensor) and v.shape == flat.shape]
        return []

    def _steps(self) -> Tensor | None:
        for flat in self._flat():
            step = self._base.state.get(flat, {}).get("step")
            return None if step is None else torch.as_tensor(step).cpu()
        return None

    def _gathered(
        self, learner: nn.Module, read: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield whole values of trained parameters, one after another, in process 0."""
        for name, each in _trained(learner).items():
            value = read(each)
            if not self.rank:
                yield name, value.detach().cpu().clone()

    def _set(self, parameter: Tensor, key: str | None, value: Tensor) -> None:
        """Set this process's part of what the optimizer steps, or of a state of it."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if self.stage == 3:
            self._set_local(parameter, key, value)
        elif key is None:
            safe_set_full_fp32_param(parameter, value.to(self.device))
        else:
            safe_set_full_optimizer_state(parameter, value.to(self.device), key)

    def _set_local(self, parameter: Tensor, key: str | None, value: Tensor) -> None:
        """Do it for stage 3, whose parts may end beyond the last number."""
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        flat = value.flatten()
        size = -(-len(flat) // self.world)
        part = torch.nn.functional.pad(flat, (0, size * self.world - len(flat)))
        part = part[size * self.rank : size * (self.rank + 1)]
        if key is None:
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, key)


_FLAT = "single_partition_of_fp32_groups"


class _Stepped(Optimizer):
    """The optimizer as schedules and the loop know it; its steps are DeepSpeed's."""

    def __init__(self, base: Optimizer) -> None:
        self.base, self.defaults = base, base.defaults

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Return those of the optimizer: what is set here counts there."""
        return self.base.param_groups

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Do nothing: the step was done when gradients were scaled down."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: DeepSpeed has dropped the gradients."""


def _trained(learner: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in bare(learner).named_parameters() if each.requires_grad}
