"""Adapters to and from peft itself: the one file of these tests that imports it."""

import pytest
import torch

from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.loading import load_local
from glmkit.runtime.saving import save_adapter

peft = pytest.importorskip("peft", reason="peft is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

# peft reads a property that transformers is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("base") / "hub")


def theirs(folder):
    return transformers.GlmForCausalLM.from_pretrained(folder, dtype=torch.float32)


CONFIGS = [
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "use_rslora": True},
    {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "rank_pattern": {"k_proj": 2, "layers.1.self_attn.o_proj": 6},
        "alpha_pattern": {"o_proj": 3},
    },
    {"r": 2, "lora_alpha": 2, "target_modules": ["gate_up_proj"], "layers_to_transform": [1]},
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "o_proj"], "use_dora": True},
]


@pytest.mark.parametrize("config", CONFIGS, ids=["some", "rslora", "patterns", "one-layer", "dora"])
def test_what_peft_trains_loads_and_what_is_saved_loads_in_peft(tmp_path, folder, config):
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(
        theirs(folder), peft.LoraConfig(**config, init_lora_weights=False)
    )
    wrapped.eval().save_pretrained(tmp_path / "trained")
    ids = torch.randint(0, 300, (2, 9))
    with torch.no_grad():
        expected = wrapped(input_ids=ids).logits
        plain = theirs(folder)(input_ids=ids).logits
    assert float((expected - plain).abs().max()) > 0.01
    model = load_local(folder, dtype="float32")
    name = model.load_adapter(tmp_path / "trained")
    assert torch.allclose(model.logits(ids), expected, atol=1e-4)
    saved = save_adapter(model.adapters[name], tmp_path / "saved", base=model.fingerprint())
    again = peft.PeftModel.from_pretrained(theirs(folder), saved).eval()
    with torch.no_grad():
        assert torch.allclose(again(input_ids=ids).logits, expected, atol=1e-5)
