"""Merges that go wrong, on disk and in memory: each is noticed, and everything is as before."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tiny_adapters import FUSED, lora

from glmkit import CheckpointError
from glmkit.console import drain
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.adapters import Adapter, LowRank
from glmkit.runtime.beside import LoraLinear
from glmkit.runtime.loading import load_local
from glmkit.runtime.merging import merge
from glmkit.runtime.probing import furthest_off

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.tensor([[5, 60, 7, 9]])
DTYPES = ("float32", "float16", "bfloat16")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases") / "base"
    return tiny_checkpoint(folder, layout="chatglm2", dtype=torch.float16)


@pytest.fixture(scope="module")
def adapter(base):
    return lora(load_local(base), kinds=(FUSED, "dense", "dense_h_to_4h", "dense_4h_to_h"))


def scaled(adapter, factor):
    parts = {stem: LowRank(p.a, p.b, p.scale * factor) for stem, p in adapter.parts.items()}
    return Adapter("scaled", "lora", "made up", parts)


def mistaken(monkeypatch, factor, only=None):
    """Let merging add ``factor`` times what it should, to all matrices or one."""
    true = LowRank.delta

    def delta(part):
        mine = only is None or (part.a.shape == only.a.shape and torch.equal(part.a, only.a))
        return true(part) * (factor if mine else 1)

    monkeypatch.setattr(LowRank, "delta", delta)


# ------------------------------------------------------------------------------------- on disk


def test_one_weak_matrix_that_was_lost_is_noticed(tmp_path, base, adapter, monkeypatch):
    stem = next(iter(adapter.parts))
    weak = LowRank(adapter.parts[stem].a, adapter.parts[stem].b, 1e-3)
    parts = {**adapter.parts, stem: weak}
    mistaken(monkeypatch, 0.0, only=weak)
    with pytest.raises(CheckpointError, match=rf"base \+ adapter: {stem}\.weight is off"):
        drain(merge(base, [(Adapter("a", "lora", "", parts), 1.0)], tmp_path / "out"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("factor", [0.99, 1.2])
def test_a_scale_that_is_a_little_off_is_noticed(tmp_path, base, adapter, monkeypatch, factor):
    mistaken(monkeypatch, factor)
    with pytest.raises(CheckpointError, match="beyond rounding; nothing was written"):
        drain(merge(base, [(adapter, 1.0)], tmp_path / "out"))
    assert not list(tmp_path.iterdir())


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(DTYPES),
    st.integers(1, 64),
    st.integers(-4, 4),
    st.lists(st.floats(-3, 3), min_size=1, max_size=3),
    st.integers(0, 99),
)
def test_rounding_is_told_from_mistakes(dtype, rank, power, weights, seed):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    plain = (noise(1030, 7) * 10.0**power).to(getattr(torch, dtype))
    parts = [(LowRank(noise(rank, 7), noise(1030, rank), 0.1), each) for each in weights]
    whole = plain.float() + sum(part.delta() * weight for part, weight in parts)
    merged = whole.to(plain.dtype)
    assert furthest_off(merged, plain, parts) <= 0
    at = seed * 10, seed % 7
    merged[at] += max(abs(float(merged[at])), float(whole.abs().max()), 1e-3) * 0.02
    assert furthest_off(merged, plain, parts) > 0
    merged[at] = float("nan")
    assert not furthest_off(merged, plain, parts) <= 0


# ----------------------------------------------------------------------------------- in memory


@pytest.fixture(params=DTYPES)
def model(request, base):
    return load_local(base, dtype=request.param)


@pytest.fixture
def refused(model):
    """Return a check that merging fails and leaves the model with its adapter on."""

    def check(adapter, error, says):
        model.add_adapter(adapter, "a")
        worn, weights = model.logits(IDS), weights_of(model)
        with pytest.raises(error, match=says):
            model.merge_adapter()
        assert model.active_adapters == {"a": 1}
        assert torch.equal(model.logits(IDS), worn)
        assert all(one is other for one, other in zip(weights_of(model), weights, strict=True))
        model.set_adapter(None)  # not merged, so that it may change
        model.unload_adapter("a")

    return check


def weights_of(model):
    layers = [each for each in model.model.modules() if isinstance(each, LoraLinear)]
    return [each.base.weight for each in layers]


def test_merging_in_memory_passes_its_own_check(model, adapter):
    model.add_adapter(adapter, "a")
    plain, worn = model.logits(IDS, adapter={}), model.logits(IDS)
    model.merge_adapter()
    merged = model.logits(IDS)
    assert float((merged - worn).abs().max()) < 0.2 * float((worn - plain).abs().max())
    model.unmerge_adapter()
    assert torch.equal(model.logits(IDS), worn)
    assert torch.equal(model.logits(IDS, adapter={}), plain)


def test_a_merge_that_changes_nothing_fails(adapter, refused):
    untrained = {s: LowRank(p.a, torch.zeros_like(p.b), 2.0) for s, p in adapter.parts.items()}
    refused(Adapter("a", "lora", "", untrained), CheckpointError, "changed no weight")


def test_a_mistake_in_memory_is_noticed(adapter, refused, monkeypatch):
    mistaken(monkeypatch, 2.0)
    refused(adapter, CheckpointError, r"is not base \+ adapter: scores differ")


def test_running_out_of_memory_leaves_nothing_merged(adapter, refused, monkeypatch):
    true, merged = LowRank.delta, []

    def delta(part):
        merged.append(part)
        if len(merged) == 3:
            raise MemoryError("no room")
        return true(part)

    monkeypatch.setattr(LowRank, "delta", delta)
    refused(adapter, MemoryError, "no room")


def test_sums_that_are_too_large_are_refused(base, adapter):
    model = load_local(base, dtype="float16")
    model.add_adapter(scaled(adapter, 1e6), "a")
    weights = weights_of(model)
    with pytest.raises(CheckpointError, match=r"transformer\..* overflows torch.float16"):
        model.merge_adapter()
    assert all(one is other for one, other in zip(weights_of(model), weights, strict=True))
