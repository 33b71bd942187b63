"""Adapters on tiny models of every generation: applied, mixed, merged, over quantised weights."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tiny_adapters import FUSED, lora, tensors_of, write, written
from torch import nn

from glmkit import GenerationOptions, UnknownNameError, UsageError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.adapters import LowRank, read_adapter
from glmkit.runtime.beside import LoraLinear, Worn
from glmkit.runtime.loading import load_local

pytestmark = pytest.mark.usefixtures("one_thread")

LAYOUTS = ("hub", "chatglm", "chatglm2", "glm4-9b")
EVERY = (FUSED, "dense", "dense_h_to_4h", "dense_4h_to_h")


def rows(model, layout, count=3, length=7):
    """Return token ids (B, T) that the model can read."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 250, (count, length), generator=generator)
    if layout == "chatglm":
        ids[:, -2], ids[:, -1] = model.config.gmask, model.config.bos
    return ids


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Return layout -> a checkpoint's folder."""
    folder = tmp_path_factory.mktemp("bases")
    return {each: tiny_checkpoint(folder / each, layout=each) for each in LAYOUTS}


@pytest.fixture(params=LAYOUTS)
def worn(request, bases):
    """Return a model with two adapters, and its layout."""
    model = load_local(bases[request.param])
    model._adapters.add("a", lora(model, seed=1))
    model._adapters.add("b", lora(model, seed=2, rank=3, scale=0.5, kinds=EVERY))
    return model, request.param


def test_an_adapter_works_and_none_is_the_base_bit_for_bit(bases, worn):
    model, layout = worn
    ids = rows(model, layout)
    plain = load_local(bases[layout]).logits(ids)
    assert torch.equal(model.logits(ids), plain)
    model.set_adapter("a")
    assert float((model.logits(ids) - plain).abs().max()) > 0.1
    assert torch.equal(model.logits(ids, adapter={}), plain)
    model.set_adapter(None)
    assert torch.equal(model.logits(ids), plain)


def test_rows_wear_what_they_would_wear_alone(worn):
    model, layout = worn
    ids = rows(model, layout)
    choices = ["a", {}, {"a": 0.5, "b": -1.5}]
    mixed = model.logits(ids, adapter=choices)
    for row, choice in enumerate(choices):
        alone = model.logits(ids[row : row + 1], adapter=choice)
        assert torch.allclose(mixed[row], alone[0], atol=1e-4)
    with pytest.raises(UsageError, match="2 adapters were given for 3 rows"):
        model.logits(ids, adapter=["a", "b"])


def test_merging_equals_wearing_and_goes_back_bit_for_bit(worn):
    model, layout = worn
    ids = rows(model, layout)
    plain = model.logits(ids, adapter={})
    model.set_adapter({"a": 0.7, "b": 0.3})
    active = model.logits(ids)
    model.merge_adapter()
    assert torch.allclose(model.logits(ids), active, atol=2e-4)
    for refused in (
        lambda: model.set_adapter("a"),
        lambda: model.logits(ids, adapter="b"),
        lambda: model.unload_adapter("a"),
        model.merge_adapter,
    ):
        with pytest.raises(UsageError, match="merged"):
            refused()
    model.unmerge_adapter()
    assert torch.equal(model.logits(ids), active)
    assert torch.equal(model.logits(ids, adapter={}), plain)
    model.set_adapter(None)
    with pytest.raises(UsageError, match="nothing to merge"):
        model.merge_adapter()


def test_unloading_leaves_no_trace(bases, worn):
    model, layout = worn
    model.set_adapter({"a": 1, "b": 1})
    model.unload_adapter("a")
    assert model.active_adapters == {"b": 1}
    model.unload_adapter("b")
    assert not any(isinstance(each, LoraLinear) for each in model.model.modules())
    ids = rows(model, layout)
    assert torch.equal(model.logits(ids), load_local(bases[layout]).logits(ids))


def test_decoding_wears_the_adapter_from_prompt_to_end(worn):
    model, layout = worn
    prompt = rows(model, layout)[0].tolist()
    choice = {"a": 2.0, "b": 1.0}
    ids = list(prompt)
    for _ in range(6):
        ids.append(int(model.logits(torch.tensor([ids]), adapter=choice)[0, -1].argmax()))
    assert model.generate_ids(prompt, 6, adapter=choice) == ids[len(prompt) :]
    assert model.active_adapters == {}


def test_one_running_batch_serves_rows_with_different_adapters(bases):
    model = load_local(bases["hub"])
    model._adapters.add("a", lora(model, seed=1, kinds=EVERY))
    model._adapters.add("b", lora(model, seed=2, kinds=EVERY))
    questions = [[{"role": "user", "content": "x" * each}] for each in range(1, 12)]
    choices = [["a", {}, "b", {"a": 0.5, "b": 0.5}, None][each % 5] for each in range(11)]
    options = [
        GenerationOptions(max_tokens=2 + at % 4, temperature=0, adapter=each)
        for at, each in enumerate(choices)
    ]
    model.set_adapter("b")
    alone = [model.reply(q, o).text for q, o in zip(questions, options, strict=True)]
    assert len(set(alone)) > 4
    together = [reply.text for reply in model.batch(iter(questions), iter(options))]
    assert together == alone
    assert model.active_adapters == {"b": 1}
    with pytest.raises(UsageError, match="fewer options"):
        list(model.batch(questions, options[:4]))
    with pytest.raises(UnknownNameError, match="'aa'"):
        model.reply(questions[0], GenerationOptions(adapter="aa"))


def test_a_suspended_stream_keeps_its_adapter_to_itself(bases):
    model = load_local(bases["hub"])
    model._adapters.add("a", lora(model, kinds=EVERY))
    ids = rows(model, "hub")
    plain = model.logits(ids)
    options = GenerationOptions(max_tokens=6, temperature=0, adapter="a")
    question = [{"role": "user", "content": "hello"}]
    whole = model.reply(question, options).text
    stream = model.stream(question, options)
    text = next(stream).text
    assert torch.equal(model.model(ids), plain)
    assert text + "".join(chunk.text for chunk in stream) == whole


def test_nothing_that_one_adapter_computed_serves_another(bases):
    """The same question again and again, under other adapters, one of them of the same name."""
    question = [{"role": "user", "content": "a question of more than a few tokens"}]

    def ask(model, choice):
        return model.reply(question, GenerationOptions(max_tokens=6, temperature=0, adapter=choice))

    def fresh(seed):
        model = load_local(bases["hub"])
        if seed is not None:
            model._adapters.add("a", lora(model, seed=seed, kinds=EVERY))
        return ask(model, None if seed is None else "a").text

    model = load_local(bases["hub"])
    for seed in (1, 2):
        assert ask(model, None).text == fresh(None)
        model._adapters.add("a", lora(model, seed=seed, kinds=EVERY))
        assert ask(model, {}).text == fresh(None)
        assert ask(model, "a").text == fresh(seed)
        model.set_adapter("a")
        model.merge_adapter()
        assert ask(model, None).text == fresh(seed)
        model.unmerge_adapter()
        assert ask(model, {}).text == fresh(None)
        model.unload_adapter("a")
    assert len({fresh(None), fresh(1), fresh(2)}) == 3


@pytest.mark.parametrize("quantize", ["int4", "int8"])
def test_adapters_work_over_quantised_weights(bases, quantize):
    model = load_local(bases["chatglm2"], quantize=quantize)
    ids = rows(model, "chatglm2")
    plain = model.logits(ids)
    adapter = lora(model, kinds=EVERY)
    model._adapters.add("a", adapter)
    stem = "transformer.encoder.layers.0.mlp.dense_h_to_4h"
    layer = model.model.get_submodule(stem)
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))
    expected = layer.base(x) + x @ adapter.parts[stem].delta().t()
    with model._adapters.wearing([model._adapters.mix("a")]):
        assert torch.allclose(layer(x), expected, atol=1e-4)
    assert torch.equal(model.logits(ids, adapter={}), plain)
    prompt = ids[0].tolist()
    new = model.generate_ids(prompt, 4, adapter="a")
    assert new != model.generate_ids(prompt, 4)
    assert new[0] == int(model.logits(ids[:1], adapter="a")[0, -1].argmax())
    model.set_adapter("a")
    with pytest.raises(UsageError, match="quantised"):
        model.merge_adapter()
    assert torch.equal(model.logits(ids, adapter={}), plain)


sizes = st.integers(1, 6)
weights = st.floats(-3, 3)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(sizes, weights), min_size=1, max_size=4), sizes, sizes, st.integers(0, 9))
def test_several_adapters_are_their_true_sum(parts, rows, columns, seed):
    """Unlike mixing the halves, which gives cross terms."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    base, worn = nn.Linear(columns, rows), Worn()
    layer = LoraLinear(base, worn)
    whole = base.weight.detach().double()
    for at, (rank, weight) in enumerate(parts):
        part = LowRank(noise(rank, columns), noise(rows, rank), 0.5 + at)
        layer.put(str(at), part)
        whole = whole + weight * part.scale * part.b.double() @ part.a.double()
    mix = tuple((str(at), weight) for at, (_, weight) in enumerate(parts))
    x = noise(3, 2, columns)
    expected = x.double() @ whole.t() + base.bias.double()
    worn.now = (mix,)
    with torch.no_grad():
        assert torch.allclose(layer(x).double(), expected, atol=1e-3)
        worn.now = (mix, (), mix[:1])
        mixed = layer(x)
        for row, each in enumerate(worn.now):
            worn.now = (each,)
            assert torch.allclose(mixed[row], layer(x[row : row + 1])[0], atol=1e-4)
        worn.now = ((),)
        layer.merge(mix)
        assert torch.allclose(layer(x).double(), expected, atol=1e-3)
        layer.unmerge()
        assert torch.equal(layer(x), base(x))


# ------------------------------------------------------------------------------- other layouts


def test_an_adapter_of_the_other_generation_with_these_shapes_is_doubted(bases, tmp_path, caplog):
    model = load_local(bases["chatglm2"])
    assert model.family == "chatglm2"
    model.load_adapter(
        written(tmp_path / "two", lora(model), base_model_name_or_path="x/ChatGLM2-6B")
    )
    assert not caplog.records
    model.load_adapter(
        written(tmp_path / "x", lora(model), base_model_name_or_path="x/chatglm3-6b")
    )
    assert "trained on x/chatglm3-6b" in caplog.text and "taken for a chatglm2" in caplog.text


def test_halves_trained_on_the_parts_of_a_fused_matrix_are_put_together(bases, tmp_path):
    """As PEFT trains them on transformers' Glm: each part with an A of its own."""
    model = load_local(bases["chatglm2"])
    generator = torch.Generator().manual_seed(3)
    tensors, whole = {}, {}
    for layer in range(2):
        delta = torch.zeros(128, 64)
        for name, start, size in (("q_proj", 0, 64), ("v_proj", 96, 32)):
            a, b = (torch.randn(*s, generator=generator) / 4 for s in ((4, 64), (size, 4)))
            stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
            delta[start : start + size] = 2.0 * b @ a
        whole[f"transformer.encoder.layers.{layer}.self_attention.{FUSED}"] = delta
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    model.load_adapter(write(tmp_path / "x", tensors, config))
    ids = rows(model, "chatglm2")
    got = model.logits(ids)
    plain = load_local(bases["chatglm2"])
    for stem, delta in whole.items():
        plain.model.get_submodule(stem).weight += delta
    assert torch.allclose(got, plain.logits(ids), atol=1e-4)
    assert model.model.get_submodule(next(iter(whole))).parts["x"].rank == 8


def test_rank_and_alpha_patterns_and_rslora(bases, tmp_path):
    model = load_local(bases["hub"])
    adapter = lora(model, rank=4, scale=2.0, kinds=(FUSED, "dense_4h_to_h"))
    first = [stem for stem in adapter.parts if stem.endswith("dense_4h_to_h")][0]
    small = {
        **adapter.parts,
        first: LowRank(adapter.parts[first].a[:2], adapter.parts[first].b[:, :2]),
    }
    odd = type(adapter)("x", "lora", "", small)
    patterns = {"rank_pattern": {first: 2}, "alpha_pattern": {"dense_4h_to_h": 10}}
    folder = write(
        tmp_path / "x",
        tensors_of(odd),
        {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": None, **patterns},
    )
    scales = {stem: part.scale for stem, part in read_adapter(folder).parts.items()}
    assert scales.pop(first) == 5.0
    assert sorted(set(scales.values())) == [2.0, 2.5]
    rooted = read_adapter(written(tmp_path / "y", adapter, use_rslora=True))
    assert {part.scale for part in rooted.parts.values()} == {8 / 4**0.5}


@pytest.mark.parametrize("layout", ["chatglm", "chatglm2"])
@pytest.mark.parametrize("projection", [False, True])
def test_a_prefix_worn_equals_one_built_in(bases, tmp_path, layout, projection):
    shape = {"layout": layout, "prefix": 5, "projection": projection}
    built_in = load_local(tiny_checkpoint(tmp_path / "whole", **shape))
    alone = tiny_checkpoint(tmp_path / "alone", **shape, only_prefix=True, files="bin")
    model = load_local(bases[layout])
    ids = rows(model, layout)
    state = {k: v for k, v in built_in.model.state_dict().items() if "prefix_encoder" not in k}
    model.model.load_state_dict(state)  # the same weights, without their prefix
    plain = model.logits(ids)
    name = model.load_adapter(alone)
    assert torch.allclose(model.logits(ids), built_in.logits(ids), atol=1e-5)
    prompt = ids[0].tolist()
    assert model.generate_ids(prompt, 6) == built_in.generate_ids(prompt, 6)
    assert torch.equal(model.logits(ids, adapter={}), plain)
    assert torch.allclose(model.logits(ids), built_in.logits(ids), atol=1e-5)
    with pytest.raises(UsageError, match="one P-Tuning prefix, or all none"):
        model.logits(ids, adapter=[name, {}, name])
    with pytest.raises(UsageError, match="no weight"):
        model.set_adapter({name: 0.5})
    model.load_adapter(alone, "second")
    with pytest.raises(UsageError, match="one at a time"):
        model.set_adapter({name: 1, "second": 1})
    model._adapters.add("lora", lora(model))
    model.set_adapter({name: 1, "lora": 1})
    both = model.logits(ids)
    assert float((both - model.logits(ids, adapter=name)).abs().max()) > 0.1
    assert float((both - model.logits(ids, adapter="lora")).abs().max()) > 1e-3
    model.unload_adapter(name)
    assert model.model.prefix is None


def test_a_batch_of_chats_with_and_without_a_prefix_answers_each(bases, tmp_path):
    alone = tiny_checkpoint(
        tmp_path / "p", layout="chatglm2", prefix=3, only_prefix=True, files="bin"
    )
    model = load_local(bases["hub"])
    name = model.load_adapter(alone)
    model._adapters._prefixes[name].embedding.weight.mul_(9)  # else too weak to turn a token
    question = [{"role": "user", "content": "hello"}]
    options = [GenerationOptions(max_tokens=8, temperature=0, adapter=each) for each in (name, {})]
    alone = [model.reply(question, each).text for each in options]
    assert alone[0] != alone[1]
    mixed = model.batch([question] * 5, [options[at] for at in (0, 1, 1, 0, 1)])
    assert [each.text for each in mixed] == [alone[at] for at in (0, 1, 1, 0, 1)]
    assert model.active_adapters == {name: 1}
