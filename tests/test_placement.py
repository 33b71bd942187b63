"""Device maps, what fits, and what would make it fit: numbers only."""

import itertools
import json
import logging

import pytest
import torch
from hypothesis import given, settings, strategies as st

from glmkit import Config, UsageError, cli
from glmkit.errors import OutOfMemoryError
from glmkit.models.published import SHAPES
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime import devices as found_devices
from glmkit.runtime.demand import Demand, Job, Parts, demand
from glmkit.runtime.devices import (
    costs,
    devices_of,
    homes_of,
    limits_of,
    parse_cards,
    parse_size,
    spread,
)
from glmkit.runtime.loading import load_local
from glmkit.runtime.placement import CUDA_OVERHEAD, GIB, Device, place, placed_by
from glmkit.runtime.planning import forecast, of_folder, of_shape, written

CARDS = [Device("cuda:0", 16 * GIB), Device("cuda:1", 16 * GIB)]
FIRST = of_shape(SHAPES["chatglm-6b"])
LORA = Job(batch=4, length=1024, train="lora", rank=8, loss_dtype="float16")


def test_lora_over_two_cards_takes_what_it_was_seen_to_take():
    """About 8 and 11 GB (as cards show it: GiB), the loss in half precision as in 2023."""
    placed = placed_by(demand(FIRST, LORA), CARDS, [14, 14])
    first, second = (use.parts.total / GIB for use in placed.uses)
    assert 7.5 < first < 8.75
    assert 10.5 < second < 11.75


def test_the_even_split_gives_the_card_with_the_loss_fewer_layers():
    placed = place(demand(FIRST, LORA), CARDS)
    uses = placed.uses
    assert [use.layers for use in uses] == [18, 10]
    assert max(use.parts.total for use in uses) < 10 * GIB
    assert placed.map == {
        "embedding": "cuda:0",
        "layers.0-17": "cuda:0",
        "layers.18-27": "cuda:1",
        "norm, head": "cuda:1",
    }


def needs(layers=8, layer=100, table=30, head=50, inside=20, loss=80, shared=0) -> Demand:
    return Demand(
        layers,
        embedding=Parts(weights=table),
        layer=Parts(weights=layer),
        head=Parts(weights=head),
        shared=shared,
        inside=inside,
        scores=0,
        loss=loss,
    )


def device(room: int, at: int = 0) -> Device:
    return Device(f"cuda:{at}", room + CUDA_OVERHEAD)


def test_table_head_and_loss_are_counted_where_they_are():
    placed = placed_by(needs(shared=25), [device(900)], [8])
    assert placed.uses[0].parts == Parts(
        weights=30 + 800 + 50 - 25, activations=80, overhead=CUDA_OVERHEAD
    )
    apart = placed_by(needs(shared=25), [device(900), device(900, 1)], [3, 5])
    assert [use.parts.weights for use in apart.uses] == [330, 550]
    assert [use.parts.activations for use in apart.uses] == [20, 80]


@settings(max_examples=25, deadline=None)
@given(
    layers=st.integers(3, 9),
    sizes=st.lists(st.integers(GIB, 8 * GIB), min_size=2, max_size=3),
    table=st.integers(0, GIB),
    head=st.integers(0, GIB),
    loss=st.integers(0, GIB),
)
def test_no_other_split_leaves_the_fullest_device_emptier(layers, sizes, table, head, loss):
    needed = needs(layers, GIB // 20, table, head, 0, loss)
    cards = [Device(f"cuda:{at}", size + CUDA_OVERHEAD) for at, size in enumerate(sizes)]

    def fullest(placed):
        return max(use.parts.total / use.device.size for use in placed.uses)

    best = place(needed, cards)
    if len(best.uses) < len(cards) or not best.fits:
        return
    for split in itertools.product(range(1, layers), repeat=len(cards)):
        if sum(split) == layers:
            assert fullest(best) <= fullest(placed_by(needed, cards, split)) + 1e-12


def test_a_card_too_small_for_a_layer_is_left_out():
    placed = place(needs(), [device(2000), device(10, 1), device(2000, 2)])
    assert [use.device.name for use in placed.uses] == ["cuda:0", "cuda:2"]


def test_no_more_devices_than_needed_where_that_is_asked():
    cards = [device(2000, at) for at in range(3)]
    assert len(place(needs(), cards, fewest=True).uses) == 1
    assert len(place(needs(), cards).uses) == 3


def test_the_processor_takes_what_cards_have_no_room_for():
    placed = place(needs(), [device(500), Device("cpu", 64 * GIB)])
    assert [(use.device.name, use.layers) for use in placed.uses] == [("cuda:0", 4), ("cpu", 4)]
    assert placed.fits and placed.map["norm, head"] == "cpu"


def test_layers_without_room_go_to_memory_and_then_to_the_disk():
    placed = place(needs(), [device(560)], spare=250)
    kept = [each.kept for each in placed.homes]
    # Beside table, head and loss (160) there is room for three layers, and for one in its turn.
    assert kept == [""] * 3 + ["cpu"] * 2 + ["disk"] * 3
    assert {each.device for each in placed.homes} == {"cuda:0"}
    assert placed.runs and not placed.fits
    assert (placed.carried.weights, placed.on_disk) == (200, 300)
    assert [line.partition(" (")[0] for line in costs(placed)] == [
        "2 of 8 layers",
        "3 of 8 layers",
    ]
    assert "a token" in costs(placed)[1] or "each token" in costs(placed)[1]


def test_training_keeps_its_layers_or_does_not_fit():
    placed = place(needs(), [device(560)], spare=10_000, carry=False)
    assert not placed.runs and not any(each.kept for each in placed.homes)


def test_what_would_help_is_named_and_true():
    job = Job(batch=8, length=2048, dtype="float32", train="lora", checkpointing=False)
    small = [Device("cuda:0", 12 * GIB)]
    found = forecast(FIRST, job, small)
    assert found.verdict.startswith("does not fit: cuda:0 lacks")
    assert found.helps
    half = Job(length=2048)
    found = forecast(FIRST, half, [Device("cuda:0", 8 * GIB)])
    assert found.helps == ("--quantize int4", "--gpus 2x8GiB")
    eased = Job(length=2048, quantize="int4")
    assert forecast(FIRST, eased, [Device("cuda:0", 8 * GIB)]).placement.fits
    assert forecast(FIRST, half, parse_cards("2x8GiB")).placement.fits


def test_several_flags_are_named_where_none_does_alone():
    fourth, card = of_shape(SHAPES["glm-4-9b"]), [Device("cuda:0", 24 * 10**9)]
    helps = forecast(fourth, Job(batch=2, length=1024, train="full"), card).helps
    assert helps == ("--train lora --batch 1", "--gpus 4x24GB")
    lora = Job(batch=1, length=1024, train="lora")
    assert forecast(fourth, lora, card).placement.fits
    third = of_shape(SHAPES["chatglm3-6b"])
    helps = forecast(third, Job(batch=8, length=8192), [Device("cuda:0", 6 * GIB)]).helps
    assert helps == ("--quantize int4 --batch 2", "--gpus 3x6GiB")
    tiny = forecast(third, Job(), [Device("cuda:0", 10**9)])
    assert not tiny.placement.runs and tiny.helps == ()


def test_a_training_that_needs_less_names_batch_length_and_card():
    job = Job(batch=32, length=2048, train="lora")
    helps = forecast(FIRST, job, CARDS).helps
    kinds = [each.split(" ")[0] for each in helps]
    assert "--batch" in kinds and "--length" in kinds
    batch = int(next(each for each in helps if "--batch" in each).split(" ")[1])
    fitting = Job(batch=batch, length=2048, train="lora")
    assert forecast(FIRST, fitting, CARDS).placement.fits
    twice = Job(batch=2 * batch, length=2048, train="lora")
    assert not forecast(FIRST, twice, CARDS).placement.fits


def test_a_split_must_be_that_of_the_model():
    assert [u.layers for u in forecast(FIRST, LORA, CARDS, split=(14, 14)).placement.uses] == [
        14,
        14,
    ]
    with pytest.raises(UsageError, match="28 layers"):
        forecast(FIRST, LORA, CARDS, split=(14, 13))


def test_what_helps_a_split_is_true_of_that_split():
    cards, split = parse_cards("2x8GiB"), (28, 0)
    found = forecast(FIRST, Job(), cards, split=split)
    assert found.helps == ("leave out --split", "--quantize int4")
    assert forecast(FIRST, Job(), cards).placement.fits
    assert forecast(FIRST, Job(quantize="int4"), cards, split=split).placement.fits
    assert not forecast(FIRST, Job(length=128), cards, split=split).placement.fits


@pytest.mark.parametrize(
    ("cards", "helps"),
    [("2x6GiB", "--quantize int8"), ("2x4GiB", "--quantize int4 --batch 1")],
)
def test_a_split_is_left_out_with_other_flags_where_it_is_in_the_way(cards, helps):
    found = forecast(FIRST, Job(batch=2), parse_cards(cards), split=(28, 0))
    assert found.helps[0] == f"{helps}, and leave out --split"
    assert all(each.endswith(", and leave out --split") for each in found.helps)


@pytest.mark.parametrize(
    ("text", "size"),
    [("16GiB", 16 * GIB), ("16GB", 16 * 10**9), ("1.5 MiB", 3 << 19), ("300", 300), ("2TB", 2e12)],
)
def test_sizes_in_both_units(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "16GX", "-1GB", "0GiB", "0.3", "1e9", "16 G B", "²", "٣GiB"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="16GiB"):
        parse_size(text)


HUGE = ("999999999999x16GiB", f"{'9' * 5000}x1GiB", "9" * 5000)


def test_cards_as_people_write_them():
    assert [each.size for each in parse_cards("2x16GiB")] == [16 * GIB] * 2
    assert [each.size for each in parse_cards("24GB, 16GB")] == [24 * 10**9, 16 * 10**9]
    assert [each.name for each in parse_cards("none")] == ["cpu"]
    for wrong in ("two", "ax16GiB", "0x16GiB", "1000x1GiB", "8", "2x8", "²x8GiB", *HUGE):
        with pytest.raises(UsageError):
            parse_cards(wrong)
    for text in ("2x16GiB", "24GB,16GB", "8GiB"):
        assert written([each.size for each in parse_cards(text)]) == text


def test_devices_and_their_bounds():
    two = devices_of("cpu:0,cpu:1")
    assert two == [torch.device("cpu:0"), torch.device("cpu:1")]
    assert limits_of("cpu:1=2GiB,cpu=1GiB", two) == {"cpu:1": 2 * GIB, "cpu": GIB}
    assert limits_of("1GiB,2GiB", two) == {"cpu:0": GIB, "cpu:1": 2 * GIB}
    cards = [torch.device("cuda:0"), torch.device("cuda:1")]
    assert limits_of("0=1GiB,cuda:1=2GiB", cards) == {"cuda:0": GIB, "cuda:1": 2 * GIB}
    with pytest.raises(UsageError, match="not used"):
        limits_of("3=1GiB", cards)
    for names in ("cpu,cpu", "cpu,cpu:0"):
        with pytest.raises(UsageError, match="twice"):
            devices_of(names)
    for bounds in ("cpu:0=4GiB,cpu:0=5GiB", "4GiB,cpu:0=5GiB"):
        with pytest.raises(UsageError, match="bounds cpu:0 twice"):
            limits_of(bounds, two)
    for name in ("abacus", "mps"):
        with pytest.raises(UsageError, match=f"^this machine has no '{name}'; it has cpu"):
            devices_of(name)
    with pytest.raises(UsageError, match="gives 2 sizes for 1 device "):
        limits_of("4GiB,4GiB", two[:1])


def test_encoders_run_on_the_first_of_several_devices():
    assert Config(device="cuda:1, cpu").first_device == "cuda:1"
    assert Config(device="cpu").first_device == "cpu"
    assert Config(device="auto").first_device is Config().first_device is None


def test_a_bound_sends_layers_to_the_disk_with_a_warning(tmp_path, monkeypatch, caplog):
    folder = tiny_checkpoint(tmp_path)
    whole = load_local(folder).generate_ids([5, 6, 7, 8], 8)
    needed = demand(of_folder(folder)[0], Job(length=512, dtype="float32"))
    all_of = needed.on(2, first=True, last=True).total
    with caplog.at_level(logging.WARNING):
        bounded = load_local(folder, max_memory=f"cpu={all_of - 1}")
    # One of them carried would save nothing: there must be room for it in its turn.
    assert [each.carried for each in bounded.model.stack.turns] == [True, True]
    assert "2 of 2 layers" in caplog.text and "on the disk" in caplog.text
    assert bounded.generate_ids([5, 6, 7, 8], 8) == whole
    assert not load_local(folder, max_memory=f"cpu={all_of}").model.stack.turns


def test_several_devices_are_split(tmp_path):
    folder = tiny_checkpoint(tmp_path, layout="chatglm3")
    whole = load_local(folder).generate_ids([5, 6, 7, 8], 8)
    model = load_local(folder, device="cpu:0,cpu:1")
    assert [str(each.device) for each in model.model.stack.turns] == ["cpu:0", "cpu:1"]
    assert model.generate_ids([5, 6, 7, 8], 8) == whole


def test_what_cannot_run_is_refused_with_the_numbers(tmp_path):
    with pytest.raises(OutOfMemoryError, match=r"cpu needs [1-9][.\d]* [KM]iB .* has 1000 bytes"):
        load_local(tiny_checkpoint(tmp_path), max_memory="cpu=1000")


def test_keys_and_values_stay_within_what_is_left_of_the_bound(tmp_path):
    folder = tiny_checkpoint(tmp_path)
    free, tight = (load_local(folder, max_memory=f"cpu={each}GiB") for each in (4, 2))
    assert free.cache_room - tight.cache_room == pytest.approx(2 << 30, rel=1e-6)
    weights = sum(each.numel() * each.element_size() for each in free.model.parameters())
    assert free.cache_room < (4 << 30) - weights
    assert load_local(folder).cache_room is None


def test_no_device_is_left_out_that_was_asked_for(monkeypatch):
    monkeypatch.setattr(found_devices, "memory_of", lambda device: 10_000)
    both = devices_of("cpu:0,cpu:1")
    homes = spread(needs(), both, {}, fewest=False).homes
    assert {each.device for each in homes} == {"cpu:0", "cpu:1"}
    assert {each.device for each in spread(needs(), both, {}, fewest=True).homes} == {"cpu:0"}
    assert homes_of(spread(needs(), both[:1], {}, fewest=True), both[0]) == ()


def planned(capsys, *arguments) -> str:
    assert cli.main(["--no-plugins", "plan", *arguments]) == 0
    return capsys.readouterr().out


def test_the_plan_command_says_it_all(capsys):
    said = planned(capsys, "chatglm-6b", "--gpus", "2x8GiB")
    assert "GiB (2**30 bytes; 1 GiB = 1.074 GB)" in said
    assert "layers.0-13   cuda:0" in said and "norm, head    cuda:1" in said
    assert "fits, with" in said
    found = json.loads(
        planned(
            capsys,
            *("THUDM/chatglm-6b", "--gpus", "1x12GiB", "--train", "lora", "--batch", "4"),
            *("--length", "1024", "--no-checkpointing", "--rank", "16", "--json"),
        )
    )
    assert found["job"]["rank"] == 16 and not found["job"]["checkpointing"]
    assert not found["fits"] and found["helps"]
    assert sum(each["layers"] for each in found["devices"]) == 28


def test_a_folder_is_planned_without_its_weights(tmp_path, capsys):
    folder = tiny_checkpoint(tmp_path / "m", layout="chatglm")
    (folder / "model.safetensors").unlink()
    found = json.loads(planned(capsys, str(folder), "--gpus", "none", "--json"))
    assert found["job"]["dtype"] == "float32" and found["devices"][0]["device"] == "cpu"


def test_a_known_name_is_planned_as_it_lies(capsys):
    job = json.loads(planned(capsys, "chatglm-6b-int4", "--gpus", "8GiB", "--json"))["job"]
    assert job["quantize"] == "int4"
    found = json.loads(planned(capsys, "default", "--gpus", "none", "--json"))
    assert found["job"]["quantize"] == "int4"
    assert 110e6 < found["devices"][0]["bytes"]["weights"] < 135e6  # 96.6 MB of files, and scales


def test_the_processors_memory_bounds_what_it_holds(capsys):
    found = planned(capsys, "default", "--gpus", "none", "--cpu-memory", "4GiB", "--json")
    assert [each["size"] for each in json.loads(found)["devices"]] == [4 * GIB]


def test_qlora_is_lora_beside_int4_weights(capsys):
    job = ("chatglm3-6b", "--gpus", "8GiB", "--json", "--train")
    found = planned(capsys, *job, "qlora", "--rank", "4")
    assert found == planned(capsys, *job, "lora", "--quantize", "int4", "--rank", "4")


def test_a_length_beyond_the_context_is_warned_of(capsys):
    for length, said in (("2048", ""), ("2049", "length 2049 is beyond the model's context of")):
        arguments = ["--no-plugins", "plan", "chatglm-6b", "--gpus", "80GiB", "--length", length]
        assert cli.main(arguments) == 0
        err = capsys.readouterr().err
        assert said in err if said else not err


def test_what_is_rounded_already_is_not_advised():
    placed = place(needs(), [device(560)], spare=250)
    assert all("--quantize int4" in line for line in costs(placed))
    assert not any("--quantize" in line for line in costs(placed, quantize="int4"))


def test_the_plan_command_refuses_what_is_no_model(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for name, says in (
        (tmp_path, "holds no config.json"),
        (tmp_path / "file", "is a file"),
        ("multilingual-e5-small", "is an encoder"),
        ("gpt-5", "; or give a folder"),
    ):
        assert cli.main(["--no-plugins", "plan", str(name)]) == 2
        assert says in capsys.readouterr().err


def test_the_plan_command_refuses(capsys):
    for arguments, says in (
        (["gpt-5"], "unknown model 'gpt-5'"),
        (["chatglm-6b", "--gpus", "big"], "is no size"),
        (["chatglm-6b", "--gpus", "8GiB", "--split", "a"], "14,14 for example"),
        (["chatglm-6b", "--gpus", "8GiB", "--split", "10,18"], "the plan has 1 device and 28"),
        (["chatglm-6b", "--rank", "16"], "--rank is only for training"),
        (["chatglm-6b", "--train", "ptuning", "--targets", "all"], "--train lora"),
        (["chatglm-6b", "--no-checkpointing"], "--train lora, full or ptuning"),
        (["chatglm-6b", "--gpus", "8GiB", "--split", "²"], "14,14 for example"),
        (["chatglm-6b", "--gpus", "8GiB", "--train", "full", "--quantize", "int4"], "cannot be"),
    ):
        assert cli.main(["--no-plugins", "plan", *arguments]) == 2
        assert says in capsys.readouterr().err
