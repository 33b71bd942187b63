"""How much of which file: amounts, weights, folders, listings; always the same."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from glmkit.dataset import open_data
from glmkit.dataset.data import _repeated
from glmkit.dataset.info import Listing
from glmkit.errors import DataError, UsageError

from .rows import SHAREGPT, jsonl


def rows(start, count):
    return [{"prompt": str(start + at), "response": "x"} for at in range(count)]


def asked(data):
    return [each.messages[0].content for each in data.samples()]


@pytest.fixture
def folder(tmp_path):
    jsonl(tmp_path / "a.jsonl", *rows(0, 100))
    jsonl(tmp_path / "b.jsonl", *rows(1000, 10))
    (tmp_path / "more").mkdir()
    jsonl(tmp_path / "more" / "c.jsonl", *rows(2000, 5))
    (tmp_path / ".cache").mkdir()
    jsonl(tmp_path / ".cache" / "d.jsonl", {"no": "data"})
    return tmp_path


def test_files_follow_each_other(folder):
    data = open_data([str(folder / "b.jsonl"), f"{folder / 'a.jsonl'},{folder / 'more'}"])
    assert asked(data) == [str(n) for n in (*range(1000, 1010), *range(100), *range(2000, 2005))]
    assert len(data) == 115
    assert data.described.splitlines()[2] == "c.jsonl: prompt/response, 5 rows"


def test_a_folder_is_all_that_lies_in_it(folder):
    assert len(open_data([str(folder)])) == 115


def test_so_many_samples_picked_by_the_seed(folder):
    spec = f"{folder / 'a.jsonl'}#30"
    first = open_data([spec])
    assert len(first) == len(set(asked(first))) == 30
    assert asked(first) == sorted(asked(first), key=int) == asked(open_data([spec]))
    assert asked(first) != asked(open_data([spec], seed=1))
    assert first.described == "a.jsonl: prompt/response, 100 rows, of which 30 are taken"
    with pytest.raises(UsageError, match="#101: it has 100 samples"):
        open_data([f"{folder / 'a.jsonl'}#101"])


def test_weights_are_shares_of_as_many_samples(folder):
    data = open_data([f"{folder / 'a.jsonl'}@0.75", f"{folder / 'b.jsonl'}@0.25"])
    seen = Counter(int(each) >= 1000 for each in asked(data))
    assert seen == {False: 82, True: 28} and len(data) == 110
    often = Counter(each for each in asked(data) if int(each) >= 1000)
    assert sorted(often.values()) == [2, 2, *[3] * 8]
    assert asked(data) == asked(open_data([f"{folder / 'a.jsonl'}@3", f"{folder / 'b.jsonl'}@1"]))
    assert "10 rows, 28 samples of them" in data.described
    both = open_data([f"{folder / 'a.jsonl'}#20@1", str(folder / "b.jsonl")])
    assert Counter(int(each) >= 1000 for each in asked(both)) == {False: 15, True: 15}


@given(
    taken=st.binary(min_size=1, max_size=30).map(lambda b: bytes(x % 2 for x in b)).filter(any),
    due=st.integers(1, 100),
)
@settings(max_examples=50, deadline=None)
def test_passes_hold_what_is_due_evenly(taken, due):
    passes = _repeated(taken, due, "seed")
    often = [sum(each[at] for each in passes) for at, one in enumerate(taken) if one]
    assert sum(often) == due and max(often) - min(often) <= 1
    assert not any(each[at] for each in passes for at, one in enumerate(taken) if not one)


@pytest.mark.parametrize("amount", ["#0", "@0", "@-1", "@1e999", "#3#4", "@1@2", "@1.2.3"])
def test_amounts_that_make_no_sense(folder, amount):
    with pytest.raises(UsageError):
        open_data([f"{folder / 'a.jsonl'}{amount}"])


def test_an_amount_of_several_files_is_refused_and_odd_names_are_names(folder):
    with pytest.raises(UsageError, match="is 3 files"):
        open_data([f"{folder}#5"])
    odd = jsonl(folder / "a#5@2.jsonl", *rows(0, 3))
    odder = jsonl(folder / "a,b#2", *rows(0, 3))
    assert len(open_data([str(odd)])) == len(open_data([str(odder)])) == 3


def test_the_fingerprint_is_of_all_that_samples_come_from(folder):
    spec = str(folder / "a.jsonl")
    other = folder / "copy.jsonl"
    other.write_bytes((folder / "a.jsonl").read_bytes())
    prints = {
        open_data([spec]).fingerprint,
        open_data([f"{spec}#30"]).fingerprint,
        open_data([f"{spec}#30"], seed=1).fingerprint,
        open_data([spec], train_on="last").fingerprint,
        open_data([spec, spec]).fingerprint,
    }
    assert len(prints) == 5
    assert open_data([str(other)]).fingerprint == open_data([spec]).fingerprint
    jsonl(other, *rows(0, 99), {"prompt": "99", "response": "y"})
    assert open_data([str(other)]).fingerprint not in prints


@pytest.mark.parametrize("size", [0.2, 23])
def test_what_is_kept_for_evaluation_is_not_learnt(folder, size):
    specs = [f"{folder / 'a.jsonl'}@1", f"{folder / 'b.jsonl'}@1"]
    data = open_data(specs)
    learnt, held = data.split(size, seed=3)
    whole = set(asked(data))
    assert set(asked(learnt)) | set(asked(held)) == whole
    assert not set(asked(learnt)) & set(asked(held))
    assert len(held) == len(set(asked(held))) == (23 if size == 23 else round(0.2 * len(whole)))
    assert asked(held) == asked(data.split(size, seed=3)[1]) != asked(data.split(size, seed=4)[1])
    assert learnt.fingerprint != held.fingerprint != data.fingerprint
    with pytest.raises(UsageError, match="none would be left"):
        data.split(1000)


def test_a_file_that_changes_meanwhile_is_noticed(folder):
    data = open_data([str(folder / "b.jsonl")])
    jsonl(folder / "b.jsonl", *rows(0, 9))
    with pytest.raises(DataError, match="was changed while it was in use: it had 10 samples"):
        asked(data)


LISTING = {
    "mine": {"file_name": "s.json", "formatting": "sharegpt", "columns": {"messages": "talk"}},
    "few": {"file_name": "a.jsonl", "num_samples": 7},
    "named": {"file_name": "q.jsonl", "columns": {"prompt": "q", "response": "a"}},
    "folder": {"file_name": "more"},
    "hub": {"hf_hub_url": "somebody/something"},
    "pairs": {"file_name": "a.jsonl", "ranking": True},
    "judged": {"file_name": "a.jsonl", "columns": {"messages": "m", "kto_tag": "label"}},
    "seen": {"file_name": "a.jsonl", "columns": {"images": "images"}},
    "lost": {"file_name": "gone.json"},
}


@pytest.fixture
def listed(folder):
    (folder / "dataset_info.json").write_text(json.dumps(LISTING))
    (folder / "s.json").write_text(json.dumps([{"talk": SHAREGPT["conversations"]}]))
    jsonl(folder / "q.jsonl", {"q": "1?", "a": "2"})
    return folder


def test_names_of_a_listing(listed):
    for spec, count in {
        "mine": 1,
        "few": 7,
        "few#3": 3,
        "named": 1,
        "folder": 5,
        "a.jsonl": 100,
    }.items():
        assert len(open_data([spec], dataset_dir=listed)) == count
    assert len(open_data(["mine,few", "named"], dataset_dir=listed)) == 9


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hub", "lies at somebody/something, and only files are read"),
        ("pairs", "is preference data"),
        ("judged", "is preference data"),
        ("seen", "has images, and only text"),
        ("lost", "gone.json, which does not exist"),
        ("nmed", "no name in .*did you mean 'named'"),
    ],
)
def test_names_that_cannot_be_learnt(listed, name, reason):
    with pytest.raises(DataError, match=reason):
        open_data([name], dataset_dir=listed)


def test_listings_that_are_none(folder, monkeypatch):
    with pytest.raises(DataError, match="does not exist"):
        Listing.read(folder / "nowhere")
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="is no JSON"):
        Listing.read(folder)
    (folder / "dataset_info.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="an object of objects"):
        Listing.read(folder)
    (folder / "data").mkdir()
    (folder / "data" / "dataset_info.json").write_text('{"x": {"file_name": "../a.jsonl"}}')
    monkeypatch.chdir(folder)
    assert len(open_data(["x"])) == 100
