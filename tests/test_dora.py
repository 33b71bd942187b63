"""DoRA: rows of a changed matrix have lengths of their own, over plain and rounded weights."""

from dataclasses import replace

import pytest
import torch
from tiny_adapters import lora

from glmkit.console import drain
from glmkit.errors import CheckpointError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.adapters import read_adapter
from glmkit.runtime.beside import plain_matrix
from glmkit.runtime.loading import load_local
from glmkit.runtime.merging import merge
from glmkit.runtime.saving import save_adapter

IDS = torch.arange(3, 15)[None]


@pytest.fixture(scope="module", params=["hub", "chatglm"])
def base(request, tmp_path_factory, one_thread):
    return tiny_checkpoint(tmp_path_factory.mktemp("base") / request.param, layout=request.param)


def ids(model):
    found = IDS.clone()
    found[0, 3], found[0, 4] = 260, 262  # what ChatGLM-6B needs to see
    return found


def dora(model, seed=0):
    plain = lora(model, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    parts = {
        stem: replace(part, magnitude=torch.rand(len(part.b), generator=generator) + 0.5)
        for stem, part in plain.parts.items()
    }
    return replace(plain, parts=parts)


def by_hand(base, adapter, quantize, weight):
    """Return the scores of a model whose matrices were changed as the paper says."""
    local = load_local(base, dtype="float32") if quantize is None else load_rounded(base, quantize)
    for stem, part in adapter.parts.items():
        linear = local.model.get_submodule(stem)
        matrix = plain_matrix(linear).float()
        changed = matrix + part.delta()
        changed *= (part.magnitude / changed.norm(dim=1))[:, None]
        dense = torch.nn.Linear(matrix.shape[1], matrix.shape[0], bias=linear.bias is not None)
        dense.weight.data = matrix + weight * (changed - matrix)
        if linear.bias is not None:
            dense.bias.data = linear.bias
        local.model.set_submodule(stem, dense.requires_grad_(False))
    return local.logits(ids(local))


def load_rounded(base, quantize):
    return load_local(base, quantize=quantize)


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_it_is_what_the_paper_says(base, quantize, weight):
    model = load_local(base, dtype=None if quantize else "float32", quantize=quantize)
    plain = model.logits(ids(model))
    adapter = dora(model)
    model.add_adapter(adapter, "d")
    model.set_adapter({"d": weight})
    expected = by_hand(base, adapter, quantize, weight)
    off = (model.logits(ids(model)) - expected).abs().max() / expected.abs().max()
    assert off < (1e-5 if quantize is None else 0.02)  # integers multiply rounded tokens
    assert (expected - plain).abs().max() > 0.1
    rows = ids(model).expand(2, -1)
    both = model.logits(rows, adapter=[{"d": weight}, {}])
    assert torch.allclose(both[0], model.logits(rows[:1])[0], atol=0.01)
    assert torch.allclose(both[1], plain[0], atol=0.01)


def test_it_is_saved_merged_and_taken_out(base, tmp_path):
    model = load_local(base, dtype="float32")
    plain = model.logits(ids(model))
    model.add_adapter(dora(model), "d")
    model.add_adapter(lora(model, seed=5), "l")
    model.set_adapter(["d", "l"])
    worn = model.logits(ids(model))
    model.merge_adapter()
    assert torch.allclose(model.logits(ids(model)), worn, atol=1e-3)
    model.unmerge_adapter()
    model.unload_adapter("l")
    model.unload_adapter("d")
    assert torch.equal(model.logits(ids(model)), plain)
    saved = save_adapter(dora(model), tmp_path / "d", base=model.fingerprint())
    model.load_adapter(saved)
    drain(merge(base, [(read_adapter(saved), 1.0)], tmp_path / "merged"))
    merged = load_local(tmp_path / "merged", dtype="float32")
    assert torch.allclose(merged.logits(ids(model)), model.logits(ids(model)), atol=1e-3)


def test_lengths_of_other_rows_are_refused(base, tmp_path):
    model = load_local(base, dtype="float32")
    adapter = dora(model)
    parts = {k: replace(p, magnitude=p.magnitude[:-1]) for k, p in adapter.parts.items()}
    saved = save_adapter(replace(adapter, parts=parts), tmp_path / "d", base=model.fingerprint())
    with pytest.raises(CheckpointError, match="one for each of"):
        model.load_adapter(saved)
