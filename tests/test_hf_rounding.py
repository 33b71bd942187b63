"""Rounded weights through transformers: quantize(), saving, loading, LoRA over them."""

from pathlib import Path

import peft
import pytest
import torch
from hf_rows import rows, scores
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import glmkit
import glmkit.hf
from glmkit.errors import UsageError
from glmkit.models.tiny import ORIGINAL, tiny_checkpoint

pytestmark = pytest.mark.usefixtures("registered")


# ChatGLM3's tensors and fields are ChatGLM2's.
@pytest.fixture(scope="module", params=[each for each in ORIGINAL if each != "chatglm3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "base", layout=request.param)


@pytest.fixture
def model(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_rounded_model_is_saved_as_the_official_ones_are(folder: Path, tmp_path: Path, bits: int):
    ids = rows()["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    exact = scores(model.float(), input_ids=ids)
    assert model.quantize(bits) is model.quantize(8)
    assert model.config.quantization_bit == bits
    found = scores(model, input_ids=ids)
    near = (found - exact).norm() / exact.norm()
    assert 0 < near < {4: 0.9, 8: 0.1}[bits]
    model.half().save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        name = next(each for each in file.keys() if each.endswith("query_key_value.weight"))
        assert file.get_tensor(name).dtype == torch.int8
        assert file.get_tensor(name).shape[1] == 64 * bits // 8
        assert file.get_tensor(f"{name}_scale").dtype == torch.float16
    again = AutoModelForCausalLM.from_pretrained(tmp_path).float()
    assert torch.equal(scores(again, input_ids=ids), scores(model.float(), input_ids=ids))
    local = glmkit.load(str(tmp_path), dtype="float32").logits(ids)
    torch.testing.assert_close(local, scores(again, input_ids=ids), atol=1e-3, rtol=1e-3)


def test_lora_is_trained_over_rounded_weights(model):
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["query_key_value"], r=4)
    tuned = peft.get_peft_model(model.quantize(8), config).train()
    tuned.base_model.model.activation_checkpointing_enable()
    tuned.base_model.model.enable_input_require_grads()
    optimizer = torch.optim.Adam((e for e in tuned.parameters() if e.requires_grad), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = tuned(**rows()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_other_numbers_of_bits_are_refused(model):
    with pytest.raises(UsageError, match="4 or 8"):
        model.quantize(3)
    assert model.quantize(0) is model
    assert not model.config.quantization_bit
