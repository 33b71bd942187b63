"""bfloat16 and float16 stay close to float32 far into the context.

The original code takes rotary angles in half precision, which confuses distant positions. That
way is put back here to show that these tests would catch it.
"""

import numpy as np
import pytest
import torch

from glmkit.models import chatglm, glm
from glmkit.models.chatglm import ChatGlm, ChatGlmConfig, Turns, frequencies, turns_of
from glmkit.models.glm import Glm, GlmConfig, rotations
from glmkit.models.tiny import random_tensors
from glmkit.runtime.loading import load_local

pytestmark = pytest.mark.usefixtures("one_thread")

HALVES = [torch.float16, torch.bfloat16]
TOLERANCE = {
    ChatGlmConfig: {torch.float16: 0.02, torch.bfloat16: 0.12},
    GlmConfig: {torch.float16: 0.005, torch.bfloat16: 0.03},
}
"""How far scores may be off, relative to float32's. Generation 1 scales its residual by 7.5, and
with it what each rounding leaves; the tolerance is twice what the beginning of the context has."""
TOKENS = 64
IDS = torch.randint(10, 250, (1, TOKENS), generator=torch.Generator().manual_seed(1))
SIZES = {"vocab_size": 320, "hidden_size": 256, "ffn_size": 384, "layers": 2, "heads": 2}
FIRST = ChatGlmConfig(**SIZES, context_length=2048, bos=4, mask=6, gmask=7)
LATER = GlmConfig(
    **SIZES, kv_heads=1, head_dim=128, context_length=8192, rotary_dim=64, qkv_bias=True
)
SHAPES = {
    "chatglm": (FIRST, 2000),
    "chatglm3": (LATER, 8000),
    "chatglm2-32k": (GlmConfig(**vars(LATER) | {"position_scale": 16.0}), 32_000),
    "glm-4-9b": (GlmConfig(**vars(LATER) | {"rope_theta": 5e6}), 8000),
}


def built(config, dtype):
    model = (ChatGlm if isinstance(config, ChatGlmConfig) else Glm)(config)
    tensors = random_tensors(config)
    if config.tied_head:
        tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"]
    model.load_state_dict(tensors)
    return model.to(dtype).eval().requires_grad_(False)


def placed(config, last):
    """Return positions of TOKENS tokens that end at ``last``."""
    row = torch.arange(last + 1 - TOKENS, last + 1)[None]
    return torch.stack((row, row), dim=1) if isinstance(config, ChatGlmConfig) else row


def difference(model, exact, positions):
    """Return how far scores of a row at ``positions`` are off, relative to their size."""
    return off(model(IDS, positions), exact(IDS, positions))


def off(got, expected):
    return float((got - expected).norm() / expected.norm())


def in_half(config, positions, dtype):
    """Return cosines and sines (..., n) of angles that are products in half precision."""
    if isinstance(config, ChatGlmConfig):
        inverse = frequencies(config.head_dim // 2).to(dtype)
        places = positions.transpose(1, 2)[:, :, None, :, None]
    else:
        exponent = torch.arange(0, config.rotary_dim, 2, dtype=dtype) / config.rotary_dim
        inverse = 1.0 / config.rope_theta**exponent
        places = positions[..., None, None] / config.position_scale
    angles = places.to(dtype) * inverse
    return angles.cos(), angles.sin()


def as_originals(monkeypatch, dtype):
    def turns(config, positions, _):
        return Turns(*in_half(config, positions, dtype))

    def complexes(config, positions):
        return torch.complex(*(each.float() for each in in_half(config, positions, dtype)))

    monkeypatch.setattr(chatglm, "turns_of", turns)
    monkeypatch.setattr(glm, "rotations", complexes)


@pytest.fixture(scope="module", params=SHAPES)
def shape(request):
    config, last = SHAPES[request.param]
    return config, last, built(config, torch.float32)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_stays_close(shape, dtype):
    config, last, exact = shape
    model = built(config, dtype)
    near = difference(model, exact, placed(config, TOKENS - 1))
    far = difference(model, exact, placed(config, last))
    assert far < TOLERANCE[type(config)][dtype]
    assert far < 1.5 * near + 1e-4, "no worse than at the beginning"


@pytest.mark.parametrize("dtype", HALVES)
def test_angles_in_half_precision_would_not(shape, dtype, monkeypatch):
    config, last, exact = shape
    positions = placed(config, last)
    expected = exact(IDS, positions)
    as_originals(monkeypatch, dtype)
    far = off(built(config, dtype)(IDS, positions), expected)
    assert far > 2 * TOLERANCE[type(config)][dtype]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("config", "tokens"), [(FIRST, 2000), (LATER, 8000)])
def test_a_whole_context(config, tokens, dtype, monkeypatch):
    small = {"hidden_size": 64, "ffn_size": 96, "layers": 1}
    if isinstance(config, GlmConfig):
        small |= {"head_dim": 32, "rotary_dim": 16}
    config = type(config)(**vars(config) | small)
    ids = torch.randint(10, 250, (1, tokens), generator=torch.Generator().manual_seed(2))
    ids[0, -TOKENS : 2 - TOKENS] = torch.tensor([7, 4])  # generation 1: the blank, the start
    model, expected = built(config, dtype), hidden_end(built(config, torch.float32), ids)
    cosine = torch.cosine_similarity(hidden_end(model, ids), expected, dim=-1)
    assert float(cosine.min()) > 0.99
    assert float(cosine.mean()) > 0.999
    as_originals(monkeypatch, dtype)
    worse = torch.cosine_similarity(hidden_end(model, ids), expected, dim=-1)
    assert 1 - float(worse.mean()) > 5 * (1 - float(cosine.mean())), "half-precision angles"


def hidden_end(model, ids):
    """Return the hidden states of the last tokens, float32 (TOKENS, hidden)."""
    positions, mask = model.start(ids)
    return model.hidden(ids, positions, mask=mask, causal=mask is None)[0, -TOKENS:].float()


CHECKED = {
    "chatglm-6b-tiny": (2000, 0.02, 0.12),
    "chatglm2-6b-tiny": (8000, 0.01, 0.06),
    "chatglm3-6b-tiny": (8000, 0.01, 0.06),
    "glm-4-9b-tiny": (8000, 0.01, 0.06),
}


@pytest.mark.parametrize("name", CHECKED)
def test_reference_models_stay_close(shared_reference, name):
    last, *tolerances = CHECKED[name]
    folder = shared_reference / "checkpoints" / name
    exact = load_local(folder, dtype="float32")
    positions = placed(exact.config, last)
    expected = exact.model(IDS, positions)
    for dtype, tolerance in zip(("float16", "bfloat16"), tolerances, strict=True):
        got = load_local(folder, dtype=dtype).model(IDS, positions)
        assert off(got, expected) < tolerance


def first_tables(tables, dtype):
    """Return the original's positions (1, 2, T), cosines and sines (1, T, 1, 2, n)."""
    row = torch.from_numpy(tables[f"v1.{dtype}.positions"])
    cos, sin = (torch.from_numpy(tables[f"v1.{dtype}.{each}"])[:, :32] for each in ("cos", "sin"))
    shape = (1, len(row), 1, 1, 32)
    both = (each.view(shape).expand(-1, -1, -1, 2, -1) for each in (cos, sin))
    return torch.stack((row, row))[None], *both


def later_tables(tables, name, dtype):
    """Return the original's positions (1, T), cosines and sines (1, T, 1, n)."""
    row = torch.from_numpy(tables[f"{name}.{dtype}.positions"])
    cos, sin = torch.from_numpy(tables[f"{name}.{dtype}.cos_sin"])[None, :, None].unbind(-1)
    return row[None], cos, sin


@pytest.fixture(scope="module")
def tables(shared_reference):
    return np.load(shared_reference / "expected" / "rope_tables_original.npz")


def test_angles_are_those_of_the_originals_in_float32(tables):
    positions, cos, sin = first_tables(tables, "float32")
    turns = turns_of(FIRST, positions, torch.float32)
    torch.testing.assert_close(turns.cos, cos, rtol=0, atol=1e-6)
    torch.testing.assert_close(turns.sin, sin, rtol=0, atol=1e-6)
    for name in ("v2", "v3"):
        positions, cos, sin = later_tables(tables, name, "float32")
        turned = rotations(LATER, positions)
        torch.testing.assert_close(turned, torch.complex(cos, sin), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_put_back_is_what_the_originals_do(tables, dtype):
    name = str(dtype).removeprefix("torch.")
    for config, table in (
        (FIRST, first_tables(tables, name)),
        (LATER, later_tables(tables, "v2", name)),
    ):
        positions, cos, sin = table
        got = in_half(config, positions, dtype)
        assert torch.equal(got[0].float(), cos)
        assert torch.equal(got[1].float(), sin)
