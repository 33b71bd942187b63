"""Adapters against what the original code and peft gave; the project's own tests are elsewhere."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from glmkit import GenerationOptions
from glmkit.errors import CheckpointError, UsageError
from glmkit.runtime.adapters import read_adapter
from glmkit.runtime.loading import load_local

pytestmark = pytest.mark.usefixtures("one_thread")

BASES = ("chatglm-6b-tiny", "chatglm2-6b-tiny", "chatglm3-6b-tiny")
TRAINED = ("lora-a", "lora-b", "lora-all-linear")
CHOICES = {
    "base": {},
    "lora-a": "lora-a",
    "lora-b": "lora-b",
    "lora-all-linear": "lora-all-linear",
    "weighted-0.7-0.3": {"lora-a": 0.7, "lora-b": 0.3},
}


@pytest.fixture(scope="session")
def fixtures(shared_reference):
    return shared_reference / "adapters"


@pytest.fixture(scope="session")
def cases(fixtures):
    """Return case -> field -> tensor of a file of expected outputs."""

    def read(name, folder=fixtures / "expected"):
        found = {}
        with np.load(folder / f"{name}.npz") as arrays:
            for key in arrays.files:
                case, _, field = key.rpartition(".")
                value = arrays[key]
                kept = value.tolist() if value.dtype.kind == "U" else torch.from_numpy(value)
                found.setdefault(case, {})[field] = kept
        return found

    return read


def open_base(shared_reference, name):
    model = load_local(shared_reference / "checkpoints" / name, dtype="float32")
    model.settings = type(model.settings)(frozenset({511}))  # as the reference was made
    return model


@pytest.fixture(scope="session", params=BASES)
def worn(request, shared_reference, fixtures):
    """Return a base, its name, and the three adapters loaded."""
    model = open_base(shared_reference, request.param)
    for name in TRAINED:
        model.load_adapter(fixtures / request.param / name)
    return model, request.param


def tolerance(base):
    return 3e-4 if base == "chatglm-6b-tiny" else 1e-4


def run(model, case, **kwargs):
    mask, positions = case.get("attention_mask"), case.get("position_ids")
    return model.logits(case["input_ids"], mask, positions, **kwargs)


def apart(got, expected):
    return float((got - expected).abs().max())


def loss(logits, labels):
    return F.cross_entropy(logits[0, :-1], labels[0, 1:])


@pytest.mark.parametrize("case", CHOICES)
def test_logits_and_losses_equal_the_original(worn, cases, case):
    model, base = worn
    known, choice = cases(base), CHOICES[case]
    expected, batch = known[case], known["inputs.batch"]
    single = run(model, known["inputs.single"], adapter=choice)
    assert apart(single, expected["single_logits"]) < tolerance(base)
    real = batch["valid"]
    got = run(model, batch, adapter=choice)
    assert apart(got[real], expected["batch_logits"][real]) < tolerance(base)
    row = known["inputs.sft"]
    assert apart(loss(run(model, row, adapter=choice), row["labels"]), expected["sft_loss"]) < 1e-5


def real_tokens(batch, row):
    return batch["input_ids"][row][batch["valid"][row]].tolist()


@pytest.mark.parametrize("case", CHOICES)
def test_greedy_ids_equal_the_original(worn, cases, case):
    model, base = worn
    known = cases(base)
    prompt = known["inputs.single"]["input_ids"][0].tolist()
    whole = known[case]["single_generated"][0].tolist()
    assert model.generate_ids(prompt, 32, adapter=CHOICES[case]) == whole[len(prompt) :]
    batch = known["inputs.batch"]
    for row, whole in enumerate(known[case]["batch_generated"].tolist()):
        got = model.generate_ids(real_tokens(batch, row), 32, adapter=CHOICES[case])
        assert got == whole[batch["input_ids"].shape[1] :]


def test_rows_of_one_batch_wear_different_adapters(worn, cases):
    model, base = worn
    known = cases(base)
    batch, expected = known["inputs.batch"], known["mixed-batch"]
    choices = [{} if name == "base" else name for name in expected["row_adapter"]]
    assert len(set(map(str, choices))) == 3
    real = batch["valid"]
    got = run(model, batch, adapter=choices)
    assert apart(got[real], expected["batch_logits"][real]) < tolerance(base)


def test_rows_of_one_running_batch_generate_with_different_adapters(worn, cases):
    model, base = worn
    known = cases(base)
    batch, expected = known["inputs.batch"], known["mixed-batch"]
    settings = GenerationOptions(max_tokens=32, temperature=0)
    rows = []
    for at, name in enumerate(expected["row_adapter"]):
        options = replace(settings, adapter={} if name == "base" else name)
        rows.append(model._row(real_tokens(batch, at), options, options))
    steps = list(model._decode(rows, slots=3))
    assert len(steps) == 32 and all(len(step) == 3 for step in steps)
    for row, whole in zip(rows, expected["batch_generated"].tolist(), strict=True):
        assert row.new == whole[batch["input_ids"].shape[1] :]


@pytest.mark.parametrize("name", TRAINED)
def test_merged_logits_equal_the_original_and_unmerging_is_exact(worn, cases, name):
    model, base = worn
    known = cases(base)
    before = run(model, known["inputs.single"], adapter={})
    model.set_adapter(name)
    model.merge_adapter()
    try:
        merged = run(model, known["inputs.single"])
    finally:
        model.unmerge_adapter()
    assert apart(merged, known[f"{name}-merged"]["single_logits"]) < tolerance(base)
    assert torch.equal(run(model, known["inputs.single"], adapter={}), before)


LAYOUTS = [
    ("chatglm-6b-tiny", "trainer-save", "lora-a", None),
    ("chatglm-6b-tiny", "raw/chatglm-6b-lora.pt", "lora-a", 32),
    ("chatglm-6b-tiny", "raw/chatglm-6b-lora-b.pt", "lora-b", 16),
    (
        "chatglm-6b-tiny",
        "raw/chatglm-6b-lora.all-linear-peft-0.2.0-fp16.pt",
        "lora-all-linear",
        16,
    ),
    *((base, f"{name}-today", name, None) for base in BASES for name in TRAINED),
    *((base, "lora-a-glm", "lora-a", None) for base in BASES[1:]),
    *((base, f"raw/{base[:-5]}-lora.pt", "lora-a", 32) for base in BASES[1:]),
    *((base, f"raw/{base[:-5]}-lora-b.pt", "lora-b", 16) for base in BASES[1:]),
]


@pytest.mark.parametrize("base, file, same_as, alpha", LAYOUTS)
def test_every_layout_means_the_same(shared_reference, fixtures, cases, base, file, same_as, alpha):
    model = open_base(shared_reference, base)
    model.load_adapter(fixtures / base / file, "x", alpha=alpha)
    known = cases(base)
    got = run(model, known["inputs.single"])
    assert apart(got, known[same_as]["single_logits"]) < tolerance(base)
    model.unload_adapter("x")
    assert apart(run(model, known["inputs.single"]), known["base"]["single_logits"]) < tolerance(
        base
    )


@pytest.mark.parametrize(
    "file, alpha",
    [
        ("lora-merged-linear", None),
        ("lora-merged-linear-converted", None),
        ("raw/chatglm-6b-lora.merged-linear-fp16.pt", 32),
    ],
)
def test_the_grouped_layout_of_early_peft_is_rewritten(
    shared_reference, fixtures, cases, file, alpha
):
    base = "chatglm-6b-tiny"
    model = open_base(shared_reference, base)
    model.load_adapter(fixtures / base / file, alpha=alpha)
    inputs = cases(base)
    expected = cases(f"{base}-merged-linear")["lora-merged-linear"]
    assert apart(run(model, inputs["inputs.single"]), expected["single_logits"]) < tolerance(base)
    prompt = inputs["inputs.single"]["input_ids"][0].tolist()
    whole = expected["single_generated"][0].tolist()
    assert model.generate_ids(prompt, 32) == whole[len(prompt) :]


BAD = [
    ("chatglm-6b-tiny", "bad-hidden-size", "made for hidden size 96.*this model has 64"),
    ("chatglm-6b-tiny", "bad-target-modules", "another architecture.*some-llama-7b.*q_proj"),
    ("chatglm-6b-tiny", "bad-layer-count", "made for 4 layers or more.*this model has 3"),
    ("chatglm-6b-tiny", "chatglm2-6b-tiny/lora-a", "another architecture.*none of its 3 modules"),
    ("chatglm2-6b-tiny", "chatglm-6b-tiny/lora-a", "another architecture.*none of its 3 modules"),
    ("chatglm2-6b-tiny", "bad-hidden-size", "architecture.*such as .*; here they are elsewhere"),
    ("chatglm-6b-tiny", "chatglm2-6b-tiny/lora-a-glm", "another architecture"),
]


@pytest.mark.parametrize("base, file, says", BAD)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    shared_reference, fixtures, base, file, says
):
    model = open_base(shared_reference, base)
    before = {name: id(module) for name, module in model.model.named_modules()}
    with pytest.raises(CheckpointError, match=says):
        model.load_adapter(fixtures / file)
    assert {name: id(module) for name, module in model.model.named_modules()} == before
    assert not model.adapters and not model.active_adapters


def test_a_raw_file_needs_alpha(fixtures):
    file = fixtures / "chatglm-6b-tiny" / "raw" / "chatglm-6b-lora.pt"
    with pytest.raises(UsageError, match="records no alpha.*--adapter-alpha 32"):
        read_adapter(file)


PREFIXES = [
    ("chatglm-6b-tiny", "chatglm-6b-tiny-ptuning"),
    ("chatglm-6b-tiny", "chatglm-6b-tiny-ptuning-proj"),
    ("chatglm2-6b-tiny", "chatglm2-6b-tiny-ptuning"),
    ("chatglm2-6b-tiny", "chatglm2-6b-tiny-ptuning-proj"),
    ("chatglm3-6b-tiny", "chatglm3-6b-tiny-ptuning"),
]


@pytest.mark.parametrize("base, prefix", PREFIXES)
def test_a_prefix_folder_loads_as_an_adapter(shared_reference, cases, base, prefix):
    model = open_base(shared_reference, base)
    ids = torch.tensor([model.generate_ids([5, 6, 501, 504], 4)]) if base == BASES[0] else None
    model.load_adapter(shared_reference / "checkpoints" / prefix)
    known = cases(prefix, shared_reference / "expected")
    seen = 0
    for case in known.values():
        if "logits" in case and "labels" not in case:
            real = case.get("valid", case.get("attention_mask"))
            real = case["input_ids"] >= 0 if real is None or real.dim() == 4 else real.bool()
            assert apart(run(model, case)[real], case["logits"][real]) < tolerance(base)
            seen += 1
    assert seen >= 3
    case = known["gen_single"]
    prompt, whole = case["input_ids"][0].tolist(), case["generated"][0].tolist()
    new = whole[len(prompt) :]
    new = new[: new.index(511)] if 511 in new else new
    assert model.generate_ids(prompt, len(whole) - len(prompt)) == new
    assert model.generate_ids(prompt, 8, adapter={}) != new[:8]
    model.unload_adapter(prefix)
    assert model.model.prefix is None
    assert ids is None or model.generate_ids([5, 6, 501, 504], 4) == ids[0].tolist()


def test_a_prefix_of_another_generation_is_refused(shared_reference):
    model = open_base(shared_reference, "chatglm-6b-tiny")
    folder = shared_reference / "checkpoints"
    with pytest.raises(CheckpointError, match="made for another model"):
        model.load_adapter(folder / "chatglm2-6b-tiny-ptuning")
    with pytest.raises(CheckpointError, match="made for another model|lacks"):
        model.load_adapter(folder / "chatglm2-6b-tiny-ptuning-proj")
    assert model.model.prefix is None


def test_a_whole_model_is_no_adapter(shared_reference):
    base: Path = shared_reference / "checkpoints" / "chatglm3-6b-tiny"
    with pytest.raises(CheckpointError, match="holds no adapter"):
        read_adapter(base)
    with pytest.raises(CheckpointError, match="it is no adapter"):
        read_adapter(base / "model.safetensors")
