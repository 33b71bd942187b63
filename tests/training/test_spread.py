"""Training a model whose layers are on several devices."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_carrying import DISK, KEPT, SHAPES, SPLIT, Borders, opened, scattered

from glmkit.errors import UsageError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.training.batches import Batch, Example
from glmkit.training.learner import Learner
from glmkit.training.parallel import refuse_carried

pytestmark = pytest.mark.usefixtures("one_thread")


def batch(*then: int) -> Batch:
    ids = [*[5 + at * 7 % 200 for at in range(20 - len(then))], *then]
    return Batch.of([Example(np.array(ids, np.int32), np.ones(20, np.float32))] * 2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_spread_model_learns_as_the_whole_one(tmp_path: Path, checkpointing):
    found = []
    for homes in ((), SPLIT):
        model = opened(tiny_checkpoint(tmp_path, layout="chatglm3"), homes).model
        model.requires_grad_(True)
        model.stack.gradient_checkpointing = checkpointing
        learner = Learner(model).train()
        loss = learner(batch())
        loss.total.backward()
        found.append((loss.total, [each.grad for each in learner.parameters()]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(map(torch.equal, found[0][1], found[1][1]))


@pytest.mark.parametrize("config", SHAPES, ids=["glm", "chatglm"])
def test_the_loss_is_taken_on_the_last_device(config):
    """Nothing meets on two devices on the way, though everything is to learn."""
    model = scattered(config)
    model.stack.requires_grad_(True)
    with Borders():
        loss = Learner(model).train()(batch(260, 262))
    assert loss.total.is_meta and loss.total.requires_grad


@pytest.mark.parametrize("homes", [KEPT, DISK], ids=["kept", "disk"])
def test_layers_that_are_brought_in_for_each_pass_do_not_learn(tmp_path: Path, homes):
    refuse_carried(opened(tiny_checkpoint(tmp_path), SPLIT).model)
    with pytest.raises(UsageError, match="of 2 layers have no room"):
        refuse_carried(opened(tiny_checkpoint(tmp_path), homes).model)
