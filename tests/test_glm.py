import pytest
import torch

from glmkit.errors import CheckpointError
from glmkit.models.glm import GlmConfig, rotate_, rotations
from glmkit.models.tiny import TINY, tiny_checkpoint
from glmkit.runtime.loading import load_local


@pytest.mark.parametrize("layout", ["hub", "chatglm2", "chatglm3", "glm4-9b"])
def test_every_layout_decodes_as_it_scores(tmp_path, layout):
    model = load_local(tiny_checkpoint(tmp_path, layout=layout))
    ids = [7, 30, 200, 11]
    for token in model.generate_ids(ids, 6):
        assert token == int(model.logits(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)


def test_both_layouts_hold_the_same_model(tmp_path):
    ids = torch.tensor([[3, 50, 60, 7]])
    hub = load_local(tiny_checkpoint(tmp_path / "hub")).logits(ids)
    original = load_local(tiny_checkpoint(tmp_path / "own", layout="chatglm3")).logits(ids)
    assert torch.equal(hub, original)


def test_logits_equal_transformers(tmp_path):
    from transformers import GlmForCausalLM

    folder = tiny_checkpoint(tmp_path)
    theirs = GlmForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[5, 9, 100, 33, 250, 4, 4]])
    with torch.inference_mode():
        expected = theirs(ids).logits
    torch.testing.assert_close(load_local(folder).logits(ids), expected, atol=1e-4, rtol=0)


def test_half_precision_stays_close_at_far_positions(tmp_path):
    folder = tiny_checkpoint(tmp_path, layout="glm4-9b")
    ids = torch.tensor([[5, 9, 100, 33]])
    far = torch.arange(8000, 8004)[None]
    exact = load_local(folder, dtype="float32").logits(ids, position_ids=far)
    near = load_local(folder, dtype="bfloat16").logits(ids, position_ids=far)
    assert float((exact - near).norm() / exact.norm()) < 0.03


def test_rotation_is_relative():
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0)).unbind()

    def turned(vector, place):
        copy = vector.clone()
        rotate_(copy, rotations(TINY, torch.tensor([[place]])))
        return copy

    def score(at, key_at):
        return float((turned(q, at) * turned(k, key_at)).sum())

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(8, 3), abs=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"vocab_size": 10**12},
        {"layers": 0},
        {"layers": 10**6},
        {"hidden_size": -1},
        {"hidden_size": "64"},
        {"heads": True},
        {"kv_heads": 3},
        {"rotary_dim": 17},
        {"rotary_dim": 7},
        {"norm_eps": float("nan")},
        {"rope_theta": 0},
    ],
)
def test_absurd_shapes_are_refused(wrong):
    fields = {name: getattr(TINY, name) for name in TINY.__dataclass_fields__}
    with pytest.raises(CheckpointError, match=r"config\.json"):
        GlmConfig(**{**fields, **wrong})
