"""What a process holds of a training that several part; foretold, and refused in time."""

from dataclasses import replace

import pytest
import torch

from glmkit.errors import OutOfMemoryError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.demand import Job, demand
from glmkit.runtime.loading import load_local
from glmkit.runtime.parting import PARTED, Parting
from glmkit.runtime.planning import of_folder
from glmkit.training import preflight
from glmkit.training.config import TrainConfig
from glmkit.training.preflight import foresee

FULL = Job(length=16, dtype="float32", train="full", checkpointing=False)


@pytest.fixture
def base(tmp_path):
    return tiny_checkpoint(tmp_path / "base", layout="chatglm3", vocabulary=False)


def held(base, job: Job):
    found = demand(of_folder(base)[0], job)
    return found.on(found.layers, first=True, last=True)


def test_states_and_gradients_are_parted(base):
    whole = held(base, FULL)
    for world in (2, 4):
        own = held(base, replace(FULL, parting=Parting(world)))
        assert own.optimizer == pytest.approx(whole.optimizer / world, rel=1e-3)
        assert own.gradients == pytest.approx(whole.gradients / world, rel=1e-3)
    zero1 = held(base, replace(FULL, parting=Parting(2, ("optimizer",))))
    assert (zero1.weights, zero1.gradients) == (whole.weights, whole.gradients)


def test_deepspeeds_own_copy_counts(base):
    half = replace(FULL, dtype="bfloat16")
    whole, copied = held(base, half), held(base, replace(half, parting=Parting(1, (), copies=True)))
    assert copied.optimizer == 3 * whole.optimizer  # 4 + 4 + 4 bytes instead of 2 + 2


def test_borrowed_weights_are_those_of_two_blocks_and_the_ends(base):
    parts = of_folder(base)[0]
    plain = demand(parts, FULL)
    parted = demand(parts, replace(FULL, parting=Parting(4, elsewhere=PARTED)))
    assert (parted.layer.weights, parted.layer.gradients, parted.layer.optimizer) == (0, 0, 0)
    assert parted.inside == plain.inside + 2 * plain.layer.weights + plain.layer.gradients
    assert parted.embedding.weights == plain.embedding.weights


def test_what_is_offloaded_has_to_find_room_for_all_processes(base, monkeypatch):
    job = replace(FULL, parting=Parting(2, elsewhere=PARTED))
    whole = held(base, FULL)
    kept = sum(getattr(whole, each) for each in PARTED)
    free = {"cpu": kept + 10, "cuda": 1 << 40}
    monkeypatch.setattr(preflight, "memory_of", lambda device: free[device.type])
    card = [torch.device("cuda:0")]
    foresee(base, job, card, TrainConfig(), beside=2)
    free["cpu"] = kept - 10
    with pytest.raises(OutOfMemoryError, match="2 processes .* keep what is offloaded"):
        foresee(base, job, card, TrainConfig(), beside=2)
    loads = replace(FULL, parting=Parting(2))
    free["cpu"] = 2 * whole.weights - 1
    with pytest.raises(OutOfMemoryError, match="to load the model"):
        foresee(base, loads, card, TrainConfig(), beside=2)


def test_layers_of_a_training_are_not_spread_as_those_of_an_answer(base):
    """With no room for it all, an answer brings layers in; a training keeps all of them."""
    needed = held(base, replace(FULL, train=None, length=16))
    limit = f"cpu={needed.total - 1000}"
    answers = load_local(base, device="cpu", max_memory=limit, job=replace(FULL, train=None))
    assert any(each.carried for each in answers.model.stack.turns)
    trains = load_local(base, device="cpu", max_memory=limit, job=FULL)
    assert not any(each.carried for each in trains.model.stack.turns)
