"""Who trains: one process, or several that share the work. What the loop asks of them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..runtime.parting import Parting


class Crew(Protocol):
    """The processes of a run, as each of them sees it."""

    rank: int
    world: int
    device: torch.device
    """Where batches go."""
    masters: bool
    """Weights that learn in half precision are kept in single precision beside."""
    parting: Parting | None
    """How they share what a training holds; None: each has all of it."""

    def prepare(self, learner: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Return what is called instead of these, all processes together."""
        ...

    def summed(self, *values: float) -> list[float]:
        """Return each value, summed over all processes."""
        ...

    def turn(self, learner: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """Surround one pass; gradients need to meet in the last of a step only."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Take gradients of this process' share of a step's loss.

        The gradients of a step are those of the sum over all processes.
        """
        ...

    def clipped(self, learner: nn.Module, most: float) -> float:
        """Return the norm of all gradients, and scale them down to ``most``; 0: only measure."""
        ...

    def trained(self, learner: nn.Module) -> dict[str, Tensor]:
        """Return whole trained parameters by name, on the processor; empty but in process 0."""
        ...

    def set_trained(self, learner: nn.Module, state: dict[str, Tensor]) -> None:
        """Set trained parameters, given whole to every process.

        :raises CheckpointError: if they are not those of this learner.
        """
        ...

    def optimizer_state(self, learner: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state by parameter name, on the processor; empty but in process 0."""
        ...

    def set_optimizer_state(
        self, learner: nn.Module, optimizer: Optimizer, state: dict[str, Any]
    ) -> None:
        """Set what :meth:`optimizer_state` returned, given whole to every process."""
        ...

    def wait(self) -> None:
        """Return when all processes are here."""
        ...

    def first(self) -> AbstractContextManager[object]:
        """Let process 0 do something, and the others the same after it: they find what it kept."""
        ...


class Alone:
    """One process.

    :param device: where batches go: to the first layer of the model.
    """

    rank = 0
    world = 1
    masters = False
    parting: Parting | None = None

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def prepare(self, learner: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Return them as they are."""
        return learner, optimizer

    def summed(self, *values: float) -> list[float]:
        """Return the values."""
        return list(values)

    def turn(self, learner: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """Do nothing around a pass."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Take gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def clipped(self, learner: nn.Module, most: float) -> float:
        """Return the norm of all gradients, and scale them down to ``most``; 0: only measure."""
        grown = [each for each in learner.parameters() if each.grad is not None]
        return float(nn.utils.clip_grad_norm_(grown, most or float("inf")))

    def trained(self, learner: nn.Module) -> dict[str, Tensor]:
        """Return trained parameters by name, on the processor."""
        return {
            name: each.detach().cpu().clone()
            for name, each in learner.named_parameters()
            if each.requires_grad
        }

    def set_trained(self, learner: nn.Module, state: dict[str, Tensor]) -> None:
        """Set trained parameters."""
        set_parameters(learner, state)

    def optimizer_state(self, learner: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimizer's state by parameter name."""
        names = {id(each): name for name, each in learner.named_parameters()}
        return {names[id(each)]: dict(state) for each, state in optimizer.state.items()}

    def set_optimizer_state(
        self, learner: nn.Module, optimizer: Optimizer, state: dict[str, Any]
    ) -> None:
        """Set what :meth:`optimizer_state` returned."""
        parameters = dict(learner.named_parameters())
        for name, values in state.items():
            own = parameters[name]
            optimizer.state[own] = {key: _beside(own, key, value) for key, value in values.items()}

    def wait(self) -> None:
        """Return at once."""

    def first(self) -> AbstractContextManager[object]:
        """Do nothing around what is done first."""
        return nullcontext()


def _beside(own: Tensor, key: str, value: Any) -> Any:  # noqa: ANN401
    """Bring a state to its parameter's device; steps are counted on the processor."""
    if isinstance(value, Tensor) and key != "step":
        return value.to(own.device)
    return value


def set_parameters(learner: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy values into a learner's trained parameters.

    :raises CheckpointError: if the names or shapes are not those of the learner.
    """
    from ..errors import CheckpointError

    own = {name: each for name, each in learner.named_parameters() if each.requires_grad}
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())
        raise CheckpointError(
            f"the checkpoint is of another training: {len(odd)} parameters are in one of them "
            f"only, {odd[0]} for example"
        )
    with torch.no_grad():
        for name, each in own.items():
            if each.shape != state[name].shape:
                raise CheckpointError(
                    f"the checkpoint's {name} is {list(state[name].shape)}, the model's is "
                    f"{list(each.shape)}"
                )
            each.copy_(state[name])
