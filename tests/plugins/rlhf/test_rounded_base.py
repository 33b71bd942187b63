"""On a base that lies rounded, what a policy is compared with is its first self, to the digit."""

import pytest
import torch
from test_dpo import trained

from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.loading import load_local
from glmkit.training.configs import LoraConfig, tuning_of
from glmkit.training.evaluating import judged
from glmkit.training.fusing import fuse
from glmkit.training.undressed import undressed

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module", params=["hub", "chatglm3"])
def base(request, tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("base") / request.param, layout=request.param)


@pytest.mark.parametrize("bits", ["int4", "int8"])
def test_a_new_lora_changes_nothing_with_or_without_gradients(base, bits):
    local = load_local(base, device="cpu", dtype="float32", quantize=bits)
    config = LoraConfig(model=str(base), data=("x",), output="x", rank=4)
    tuning_of(config, "lora").dress(local.model)
    fuse(local.model)
    ids = torch.randint(0, 200, (1, 40), generator=torch.Generator().manual_seed(0))
    learning = local.model(ids)
    with judged(local.model):
        torch.testing.assert_close(local.model(ids), learning.detach(), atol=0, rtol=0)
        with undressed(local.model):
            torch.testing.assert_close(local.model(ids), learning.detach(), atol=1e-6, rtol=1e-6)
    with torch.inference_mode(), undressed(local.model):  # answers are written by a quicker kernel
        assert torch.isfinite(local.model(ids)).all()


def test_the_first_step_on_a_rounded_base_compares_nothing(base, data, tmp_path):
    logs = trained(
        base, data, tmp_path / "run", quantize="int4", max_steps=1, val_size=0.0, eval_steps=0
    )
    assert logs[0].loss == pytest.approx(0.693147, abs=2e-6)
