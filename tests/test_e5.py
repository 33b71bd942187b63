"""The encoder's network: 4-bit blocks, configuration, and the same vectors as transformers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tiny_e5 import Q4, Tiny, tiny_file, weights

from glmkit import CheckpointError
from glmkit.models.e5 import E5Config, dequantize
from glmkit.models.e5s1 import parse, write
from glmkit.runtime.encoding import load_encoder
from glmkit.runtime.native import levels

NAMES = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "ao",
    "intermediate.dense": "fi",
    "output.dense": "fo",
}
NORMS = {"attention.output.LayerNorm": "aln", "output.LayerNorm": "oln"}


def reference(tiny: Tiny) -> torch.nn.Module:
    """Return transformers' own BERT with the same weights."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=tiny.rows,
        hidden_size=tiny.hidden,
        num_hidden_layers=tiny.layers,
        num_attention_heads=tiny.heads,
        intermediate_size=tiny.inner,
        max_position_embeddings=tiny.positions,
        type_vocab_size=tiny.kinds,
        layer_norm_eps=1e-12,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in _state(tiny).items()})
    return model


def _state(tiny: Tiny) -> dict[str, np.ndarray]:
    found, own = {}, tiny.tensors
    found["embeddings.word_embeddings.weight"] = weights(own["emb.word"])
    found["embeddings.position_embeddings.weight"] = own["emb.pos"]
    found["embeddings.token_type_embeddings.weight"] = own["emb.type"]
    pairs = {"embeddings.LayerNorm": "emb.ln"}
    for index in range(tiny.layers):
        start = f"encoder.layer.{index}."
        pairs |= {f"{start}{new}": f"l{index}.{old}" for new, old in (NAMES | NORMS).items()}
    for new, old in pairs.items():
        weight = own[f"{old}.w"]
        found[f"{new}.weight"] = weights(weight) if weight.dtype == Q4 else weight
        found[f"{new}.bias"] = own[f"{old}.b"]
    return found


def test_vectors_equal_transformers_bert(tmp_path: Path):
    tiny = Tiny(seed=5)
    write(parse(tiny_file(tiny)), tmp_path)
    encoder = load_encoder(tmp_path, use_native=False)
    texts = ["a", "河流 river a b ab", "b " * 60]
    rows = [encoder.token_ids(f"query: {text}") for text in texts]
    model = reference(tiny)
    with torch.no_grad():
        states = [model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in rows]
    means = torch.stack([state.mean(dim=0) for state in states])
    expected = torch.nn.functional.normalize(means, dim=-1).numpy()
    np.testing.assert_allclose(encoder.encode(texts, kind="query"), expected, atol=2e-5)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 4), blocks=st.integers(1, 4), seed=st.integers(0, 999))
def test_blocks_are_expanded_as_the_format_says(rows: int, blocks: int, seed: int):
    random = np.random.default_rng(seed)
    packed = np.zeros((rows, blocks), Q4)
    packed["nibbles"] = random.integers(0, 256, packed["nibbles"].shape)
    packed["scale"] = random.normal(size=packed.shape)
    nibbles = packed["nibbles"].reshape(rows, -1)
    scales = torch.from_numpy(packed["scale"].copy())
    expected = weights(packed)
    np.testing.assert_array_equal(dequantize(torch.from_numpy(nibbles), scales), expected)
    whole = levels(nibbles).reshape(rows, blocks, 32) * packed["scale"][..., None].astype("f4")
    np.testing.assert_array_equal(whole.reshape(rows, -1), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 0},
        {"hidden_size": -32},
        {"hidden_size": True},
        {"hidden_size": "384"},
        {"num_attention_heads": 5},
        {"intermediate_size": 100},
        {"layer_norm_eps": float("nan")},
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, object]):
    good = E5Config(64, 2, 2, 96, 30, 24, 2, 1e-12)
    with pytest.raises(CheckpointError):
        dataclasses.replace(good, **change)


def test_missing_sizes_are_named():
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        E5Config.of({"hidden_size": 64})
