"""The record of what is done, which a job goes on from."""

import errno
import json
import os
import time
from pathlib import Path

import pytest
from batch_parts import jsonl, ran, written
from hypothesis import given, settings, strategies as st

from glmkit.batch.journal import KEY, Done, Journal
from glmkit.errors import DataError, UsageError


@settings(deadline=None)
@given(st.lists(st.integers(0, 5000)))
def test_done_is_a_set_of_indexes(indexes):
    done = Done()
    for each in indexes:
        done.add(each)
    assert done.count == len(set(indexes))
    assert all(each in done for each in indexes)
    assert not any(each in done for each in set(range(5010)) - set(indexes))


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 200), rows=st.integers(0, 4))
def test_a_torn_line_is_taken_back(tmp_path_factory, cut, rows):
    path = tmp_path_factory.mktemp("torn") / "out.jsonl"
    with Journal(path, {"model": "m"}) as journal:
        for index in range(rows):
            journal.write(index, {KEY: {"index": index}, "response": "你" * index})
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    kept = path.read_bytes().count(b"\n")
    with Journal(path, {"model": "m"}) as journal:
        assert journal.done.count == kept
        for index in range(kept, rows):
            journal.write(index, {KEY: {"index": index}, "response": "你" * index})
    assert path.read_bytes() == whole


def test_another_job_cannot_write_into_the_file(tmp_path):
    path = tmp_path / "out.jsonl"
    with Journal(path, {"model": "a", "system message": None}) as journal:
        journal.write(0, {KEY: {"index": 0}})
        with pytest.raises(UsageError, match="another job is writing"), Journal(path, {}):
            pass
    with pytest.raises(UsageError, match="another model"), Journal(path, {"model": "b"}):
        pass
    assert len(written(path)) == 1


def test_a_file_of_somebody_else_is_left_alone(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("mine\n")
    with pytest.raises(UsageError, match="no job of glmkit"), Journal(path, {}):
        pass
    assert path.read_text() == "mine\n"


@pytest.mark.parametrize("damaged", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_record_is_said(tmp_path, damaged):
    path = tmp_path / "out.jsonl"
    with Journal(path, {"model": "m"}) as journal:
        journal.write(0, {KEY: {"index": 0}})
    (tmp_path / ".out.jsonl.job.json").write_bytes(damaged)
    with pytest.raises(DataError, match="is damaged"), Journal(path, {"model": "m"}):
        pass
    assert len(written(path)) == 1


def test_the_record_is_written_once(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    with Journal(path, {"model": "a"}):
        pass
    with Journal(path, {"model": "b"}) as journal:  # nothing was written as another job
        journal.write(0, {KEY: {"index": 0}})
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("the record was written again"))
    with Journal(path, {"model": "b"}) as journal:
        assert journal.done.count == 1


def test_a_record_is_whole_or_as_before(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    with Journal(path, {"model": "a"}):
        pass

    def cut(handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", cut)
    with pytest.raises(DataError, match="Input/output"), Journal(path, {"model": "b"}):
        pass
    assert json.loads((tmp_path / ".out.jsonl.job.json").read_text()) == {"model": "a"}


def test_rows_reach_the_disk_now_and_then(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    with Journal(path, {}) as journal:
        synced, now = [], [time.monotonic()]
        monkeypatch.setattr(os, "fsync", lambda handle: synced.append(path.stat().st_size))
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        for index in range(12):
            journal.write(index, {KEY: {"index": index}})
            now[0] += 1.0
        assert len(synced) == 2
    assert synced[-1] == path.stat().st_size


def test_what_no_job_can_write_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no folder"), Journal(tmp_path / "no" / "out.jsonl", {}):
        pass

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DataError, match="cannot write"), Journal(tmp_path / "out.jsonl", {}):
        pass


@pytest.mark.parametrize("error", [PermissionError, IsADirectoryError])
def test_what_no_job_can_read_is_one_line(tmp_path, monkeypatch, error):
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}])

    def refused(*_, **__):
        raise error(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DataError, match="cannot read .*Permission denied"):
        ran(source, tmp_path / "out.jsonl")


def test_a_full_disk_leaves_whole_rows(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    with Journal(path, {}) as journal:
        journal.write(0, {KEY: {"index": 0}})
        real = journal._file

        class Full:
            tell, truncate, close, fileno = real.tell, real.truncate, real.close, real.fileno

            def write(self, data):
                if len(data) <= 5:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real.write(data[:5])

        monkeypatch.setattr(journal, "_file", Full())
        with pytest.raises(DataError, match="No space"):
            journal.write(1, {KEY: {"index": 1}, "response": "xxx"})
    assert [each[KEY]["index"] for each in written(path)] == [0]
