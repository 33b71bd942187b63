"""Foretold memory against what glmkit's own training steps allocate, tensor by tensor.

It is never foretold too low; too high by an eighth at most, and by half where all weights learn:
with three layers, gradients of most of them come behind the highest.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from peft import LoraConfig, inject_adapter_in_model

from glmkit.runtime.demand import Job, demand
from glmkit.runtime.planning import of_shape
from glmkit.training.batches import Batch, Example
from glmkit.training.fusing import fuse
from glmkit.training.learner import Learner

pytestmark = pytest.mark.usefixtures("one_thread")
NEAR, EIGHTH, HALF = 0.10, 0.125, 0.5


@pytest.fixture(scope="module")
def others(request):
    """What `tests/test_demand.py` has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent.parent)
        import test_demand

        yield SimpleNamespace(**vars(test_demand))


def built(others, config, job):
    model = others.built(config, Job(**{**vars(job), "train": "full"}))
    if job.train == "lora":
        model.requires_grad_(False)
        targets = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
        inject_adapter_in_model(LoraConfig(r=job.rank, target_modules=targets), model)
    fuse(model)
    return model


@pytest.mark.parametrize(
    ("train", "dtype", "checkpointing"),
    [
        ("lora", "float32", False),
        ("lora", "float32", True),
        ("lora", "bfloat16", False),
        ("full", "float32", False),
    ],
)
def test_own_steps_take_what_was_foretold(others, train, dtype, checkpointing):
    config = others.WIDE
    job = Job(
        batch=1,
        length=200,
        dtype=dtype,
        train=train,
        checkpointing=checkpointing,
        targets=("all",),
        room=40 * config.vocab_size,
    )
    model = built(others, config, job)
    ids = np.arange(job.length, dtype=np.int32) % 600
    rows = Batch.of([Example(ids, np.ones(job.length, np.float32))])
    needed = demand(of_shape(config), job).on(config.layers, first=True, last=True)
    with others.Meter(model.parameters()) as meter, pytest.MonkeyPatch.context() as patch:
        patch.setattr("glmkit.training.losses.ROOM", job.room)
        Learner(model)(rows).total.backward()
        peak = meter.peak
    above = HALF if train == "full" else EIGHTH
    foretold = needed.activations + needed.gradients
    assert peak * (1 - NEAR) <= foretold <= peak * (1 + above), foretold / peak
