from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from glmkit.console import drain
from glmkit.dataset.samples import Sample
from glmkit.errors import DataError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.training import tokens
from glmkit.training.examples import Example
from glmkit.training.store import Store
from glmkit.training.tokens import Reading, Tokens, tokenizing
from glmkit.types import Message


@dataclass
class Rows:
    """Samples made up as they are asked for."""

    count: int
    fingerprint: str = "one"
    stops_at: int | None = None
    asked: int = 0

    def __len__(self) -> int:
        return self.count

    def samples(self):
        for at in range(self.count):
            self.asked = at + 1
            if at == self.stops_at:
                raise KeyboardInterrupt
            question = Message("user", f"question {at}")
            yield Sample((question, Message("assistant", f"answer {at}")), (0.0, 1.0), "a.json")


@pytest.fixture(scope="module")
def reading(tmp_path_factory) -> Reading:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "glm4", layout="glm4-9b")
    return Reading(folder, max_length=100)


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    monkeypatch.setattr(tokens, "_AT_ONCE", 16)


def made(data: Rows, reading: Reading, cache: Path, processes: int = 1) -> Tokens:
    return drain(tokenizing(data, reading, cache=cache, processes=processes))


def same(found: Sequence[Example], wanted: Sequence[Example]) -> bool:
    return len(found) == len(wanted) and all(
        np.array_equal(one.ids, other.ids) and np.array_equal(one.weights, other.weights)
        for one, other in zip(found, wanted, strict=True)
    )


def test_tokens_are_those_of_the_samples(tmp_path, reading):
    data = Rows(60)
    found = made(data, reading, tmp_path)
    wanted = reading.open().encode(list(data.samples()))
    assert len(found) == 60
    for at in (0, 15, 16, 59, -1):
        assert np.array_equal(found[at].ids, wanted[at].rows[0].ids)
        assert np.array_equal(found[at].weights, wanted[at].rows[0].weights)
    assert found.lengths.tolist() == [len(each.rows[0]) for each in wanted]
    assert found.totals[7] == wanted[7].rows[0].weights.sum()
    assert found.samples.tolist() == list(range(60))
    assert str(found.tally) == "60 samples"
    with pytest.raises(IndexError):
        found[60]


def test_what_is_there_is_not_made_again(tmp_path, reading):
    first = made(Rows(20), reading, tmp_path)
    again = Rows(20)
    assert same(made(again, reading, tmp_path), first)
    assert again.asked == 0
    for other in (Rows(20, "two"), Rows(20)):
        settings = reading if other.fingerprint == "two" else replace(reading, max_length=50)
        made(other, settings, tmp_path)
        assert other.asked == 20


@pytest.mark.parametrize("fault", ["cut", "changed", "longer", "gone", "note"])
def test_damaged_tokens_are_made_again(tmp_path, reading, fault):
    first = [
        Example(each.ids.copy(), each.weights.copy())  # what is damaged is mapped
        for each in made(Rows(20), reading, tmp_path)
    ]
    (folder,) = (each for each in tmp_path.iterdir() if each.is_dir())
    ids = (folder / "ids").read_bytes()
    damaged = {"cut": ids[:-4], "changed": b"\x01" + ids[1:], "longer": ids + b"abcd"}
    if fault in damaged:
        (folder / "ids").write_bytes(damaged[fault])
    elif fault == "gone":
        (folder / "weights").unlink()
    else:
        (folder / "made.json").write_text('{"sizes": 3}')
    again = Rows(20)
    assert same(made(again, reading, tmp_path), first)
    assert again.asked == 20


def test_what_was_done_before_a_stop_is_kept(tmp_path, reading, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        made(Rows(80, stops_at=70), reading, tmp_path / "a")
    (part,) = (tmp_path / "a").glob("*.part")
    before = (part / "ids").read_bytes()
    encoded = []
    real = tokens.encoded

    def counted(encoder, samples):
        encoded.append(len(samples))
        return real(encoder, samples)

    monkeypatch.setattr(tokens, "encoded", counted)
    found = made(Rows(80), reading, tmp_path / "a")
    assert sum(encoded) == 80 - 64
    (folder,) = (each for each in (tmp_path / "a").iterdir() if each.is_dir())
    assert (folder / "ids").read_bytes().startswith(before)
    assert same(found, made(Rows(80), reading, tmp_path / "b"))


@pytest.mark.parametrize("file", ["weights", "rows"])
def test_a_stop_between_two_files_leaves_rows_whole(tmp_path, reading, monkeypatch, file):
    whole = made(Rows(40), reading, tmp_path / "whole")
    plain = Store.__enter__

    def interrupted(self):
        store, calls = plain(self), count()

        class Stream:
            """Writes, until somebody presses Ctrl-C."""

            def __init__(self, stream) -> None:
                self.flush, self.close, self.stream = stream.flush, stream.close, stream

            def write(self, data) -> None:
                if next(calls) == 1:
                    raise KeyboardInterrupt
                self.stream.write(data)

        store._files[file] = Stream(store._files[file])
        return store

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "__enter__", interrupted)
        made(Rows(40), reading, tmp_path / "cache")
    again = made(Rows(40), reading, tmp_path / "cache")
    assert same(again, whole) and again.tally == whole.tally


def test_a_part_that_does_not_hold_is_begun_anew(tmp_path, reading):
    with pytest.raises(KeyboardInterrupt):
        made(Rows(80, stops_at=70), reading, tmp_path / "a")
    (part,) = (tmp_path / "a").glob("*.part")
    data = bytearray((part / "weights").read_bytes())
    data[40] ^= 255
    (part / "weights").write_bytes(data)
    found = made(Rows(80), reading, tmp_path / "a")
    assert same(found, made(Rows(80), reading, tmp_path / "b"))


def test_several_processes_make_the_same(tmp_path, reading, monkeypatch):
    monkeypatch.setattr(tokens, "_WORTH_IT", 1)
    found = made(Rows(70), reading, tmp_path / "a", processes=2)
    assert same(found, made(Rows(70), reading, tmp_path / "b"))


KILLED = """
import sys, os, signal
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from training.test_tokens import Rows, made
from glmkit.training import store, tokens
from glmkit.training.store import Store
from glmkit.training.tokens import Reading, tokenizing
store._EVERY_S = 0
tokens._AT_ONCE = 16
reading = Reading(Path(sys.argv[1]), max_length=100)
for event in tokenizing(Rows(80), reading, cache=Path(sys.argv[2])):
    if event.done >= 32:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_is_gone_on_with(tmp_path, reading, forks):
    cache = tmp_path / "cache"
    tests = str(Path(__file__).parent.parent)
    fork = forks.start(KILLED, str(reading.folder), str(cache), tests)
    assert fork.wait() == -signal.SIGKILL
    data = Rows(80)
    events = list(tokenizing(data, reading, cache=cache))
    assert events[0].done >= 32
    assert same(made(data, reading, cache), made(data, reading, tmp_path / "other"))


def test_nothing_to_learn_is_told(tmp_path, reading):
    with pytest.raises(
        DataError, match="nothing can be learnt from the data: 3 samples, 3 skipped"
    ):
        made(Rows(3), replace(reading, max_length=8), tmp_path)


def test_one_process_waits_for_another(tmp_path, reading, monkeypatch):
    ours = tokenizing(Rows(20), reading, cache=tmp_path)
    next(ours)
    theirs = tokenizing(Rows(20), reading, cache=tmp_path)
    began = time.monotonic()
    assert "waiting for another process" in next(theirs).stage
    assert time.monotonic() - began < 5
    theirs.close()
    list(ours)
    assert len(made(Rows(20), reading, tmp_path)) == 20
    assert os.listdir(tmp_path)
