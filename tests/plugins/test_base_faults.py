"""What goes wrong around a knowledge base, on purpose."""

from __future__ import annotations

import errno
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from base_parts import OLD, database, opened, rivers, update, write
from knowledge_files import finish

from glmkit import DataError
from glmkit.testing import HashEncoder
from glmkit_knowledge import base as base_module, indexing
from glmkit_knowledge.base import KnowledgeBase
from glmkit_knowledge.store import Store

# A process of its own: indexes argv[1] with its index under argv[2], slowly (argv[3] seconds per
# batch), and prints a line per step.
INDEXER = """
import sys, time
from pathlib import Path
from glmkit.testing import HashEncoder
from glmkit_knowledge import indexing
from glmkit_knowledge.base import KnowledgeBase

indexing.BATCH = 8

class Slow(HashEncoder):
    def encode(self, texts, *, kind="passage"):
        time.sleep(float(sys.argv[3]))
        return super().encode(texts, kind=kind)

with KnowledgeBase.open(Path(sys.argv[1]), home=Path(sys.argv[2]), encoder=Slow(64)) as base:
    work = base.update()
    while True:
        try:
            print(next(work).stage, flush=True)
        except StopIteration as end:
            print(end.value, flush=True)
            break
"""


@pytest.fixture
def folder(tmp_path):
    return rivers(tmp_path / "docs")


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def indexer(folder, home, seconds):
    command = [sys.executable, "-c", INDEXER, str(folder), str(home), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# -- The index ---------------------------------------------------------------------------------


def test_another_encoder_rebuilds_and_says_so(folder, home):
    update(folder, home)
    with KnowledgeBase.open(folder, home=home, encoder=HashEncoder(32)) as base:
        with pytest.raises(DataError, match="not built yet"):
            len(base)
        report, _ = finish(base.update())
        assert report.rebuilt == "encoder changed from hash-64 to hash-32"
        assert (report.added, len(base), base.vectors([1]).shape) == (20, 100, (1, 32))
        assert len(base.dense(HashEncoder(32).encode(["River"])[0], 5)) == 5


def test_another_format_is_rebuilt_and_says_so(folder, home, monkeypatch):
    _, before, _ = update(folder, home)
    monkeypatch.setattr(base_module, "FORMAT", 7)
    report, after, _ = update(folder, home)
    assert (report.rebuilt, before) == ("index format 1, now 7", after)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "header"])
def test_a_damaged_index_is_rebuilt_and_says_so(folder, home, damage):
    _, before, _ = update(folder, home)
    path = database(home)
    data = path.read_bytes()
    path.write_bytes(
        {
            "garbage": random.Random(1).randbytes(len(data)),
            "truncated": data[: len(data) // 3],
            "header": b"\0" * 100 + data[100:],
        }[damage]
    )
    report, after, _ = update(folder, home)
    assert (report.rebuilt, report.added) == ("index was damaged", 20)
    assert before == after
    assert path.with_name(path.name + ".damaged").exists()


@pytest.mark.parametrize("seed", range(6))
def test_damage_inside_the_index_is_never_a_traceback(folder, home, seed):
    _, before, _ = update(folder, home)
    path = database(home)
    data = bytearray(path.read_bytes())
    chance = random.Random(seed)
    for page in chance.sample(range(1, len(data) // 4096), 4):
        data[page * 4096 : page * 4096 + 64] = chance.randbytes(64)
    path.write_bytes(data)
    write(folder / "new.txt", "A new part.")
    for _ in range(2):
        try:
            update(folder, home)
        except DataError as error:
            assert "damaged" in str(error)
    assert [row for row in update(folder, home)[1] if row[0] != "new.txt"] == before


def test_an_empty_index_file_is_filled(folder, home):
    _, before, _ = update(folder, home)
    database(home).write_bytes(b"")
    assert update(folder, home)[1] == before


@pytest.mark.parametrize("damage", [None, b"", b"junk" * 1000])
def test_a_lost_faiss_file_is_made_again(folder, home, damage):
    _, before, _ = update(folder, home)
    path = database(home).with_suffix(".faiss")
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    report, after, _ = update(folder, home)
    assert (report.unchanged, report.rebuilt, before) == (20, None, after)
    assert path.stat().st_size > 100 * 64 * 4


def test_a_base_sees_what_another_process_wrote(folder, home):
    with opened(folder, home) as base:
        finish(base.update())
        question = base.encoder.encode(["unicorn part"])[0]
        base.dense(question, 1)
        write(folder / "new.txt", "unicorn part")
        (folder / "00.md").unlink()
        update(folder, home)
        (hit, score), *_ = base.dense(question, 1)
        assert score == pytest.approx(1, abs=1e-3)
        assert base.chunks([hit])[0].path == "new.txt"
        assert len(base.dense(question, 1000)) == len(base) == 96


def test_a_full_disk_while_writing_chunks(folder, home, monkeypatch):
    real = sqlite3.connect

    def small(*args, **kwargs):
        connection = real(*args, **kwargs)
        connection.execute("PRAGMA max_page_count = 30")
        return connection

    large = write(folder / "large.txt", "".join(f"Part {n} is long. " for n in range(20_000)))
    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(DataError, match=r"no space left for the index .*\.sqlite"):
        update(folder, home)
    monkeypatch.undo()
    large.unlink()
    assert update(folder, home)[0].chunks == 100


def test_a_full_disk_while_saving_the_faiss_file(folder, home, monkeypatch):
    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("glmkit_knowledge.index.os.fsync", full)
    with pytest.raises(DataError, match=r"\.faiss: No space left on device"):
        update(folder, home)
    monkeypatch.undo()
    assert update(folder, home)[0].unchanged == 20


def test_a_home_that_cannot_be_written(folder, tmp_path):
    home = write(tmp_path / "home", "a file, not a folder")
    with pytest.raises(DataError, match="cannot write the index"):
        update(folder, home)


def test_an_encoder_that_breaks_its_promise(folder, home):
    class Odd(HashEncoder):
        def encode(self, texts, *, kind="passage"):
            return super().encode(texts)[:, :10]

    base = KnowledgeBase.open(folder, home=home, encoder=Odd(64))
    with base, pytest.raises(DataError, match="promised 64 dimensions"):
        finish(base.update())


def test_an_update_that_is_closed_halfway(folder, home, monkeypatch):
    monkeypatch.setattr(indexing, "BATCH", 8)
    with opened(folder, home) as base:
        work = base.update()
        for _ in range(9):
            next(work)
        work.close()
    report, rows, stages = update(folder, home)
    assert 0 < report.added < 20
    assert len(rows) == 100
    assert set(stages) == {"indexing"}


# -- Other processes ---------------------------------------------------------------------------


def test_killed_anywhere_the_next_run_is_right(folder, home, tmp_path):
    chance = random.Random(5)
    killed = 0
    for _ in range(4):
        process = indexer(folder, home, 0.02)
        with process:
            for _ in range(chance.randint(1, 8)):
                if not process.stdout.readline():
                    break
            time.sleep(chance.random() * 0.03)
            process.send_signal(signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
        write(folder / f"{killed:02}.md", f"# Changed {killed}\n\nA part that changed.\n")
        os.utime(folder / f"{killed:02}.md", (OLD + killed, OLD + killed))
    assert killed >= 2
    report, rows, _ = update(folder, home)
    assert report.rebuilt is None
    assert rows == update(folder, tmp_path / "fresh")[1]
    assert not list((home / "knowledge").glob(".*"))


def test_two_processes_index_one_after_the_other(folder, home, tmp_path):
    with indexer(folder, home, 0.1) as first:
        assert first.stdout.readline() == "indexing\n"
        with indexer(folder, home, 0.1) as second:
            said = second.stdout.read()
            assert "UpdateReport(added=20" in first.stdout.read()
    assert (first.returncode, second.returncode) == (0, 0)
    assert "waiting for another process that indexes this folder" in said
    assert "added=0, changed=0, removed=0, unchanged=20, chunks=100" in said
    assert update(folder, home)[1] == update(folder, tmp_path / "fresh")[1]


def test_waiting_ends(folder, home):
    with opened(folder, home) as first, opened(folder, home, wait_s=0.2) as second:
        work = first.update()
        next(work)
        with pytest.raises(DataError, match=r"another process has been indexing .* for \d+ s"):
            finish(second.update())
        finish(work)
        assert finish(second.update())[0].unchanged == 20


def test_an_index_that_is_up_to_date_needs_no_lock(folder, home):
    update(folder, home)
    with opened(folder, home) as first, opened(folder, home, wait_s=0) as second:
        lock = first._lock()
        with lock:
            assert finish(second.update())[0].unchanged == 20
            assert second.lexical("river", 3)


def test_questions_are_answered_while_another_process_indexes(folder, home):
    update(folder, home)
    write(folder / "more.md", "".join(f"## H{n}\n\nNew part {n}.\n\n" for n in range(60)))
    with opened(folder, home) as base, indexer(folder, home, 0.1) as process:
        assert base._present() is not None
        assert process.stdout.readline() == "indexing\n"
        assert len(base.lexical("river", 300)) == 100
        assert len(base.dense(base.encoder.encode(["River"])[0], 300)) >= 100
        assert "added=1" in process.stdout.read()
        assert len(base) == 160


def test_the_store_is_sound_after_all_that(folder, home):
    update(folder, home)
    store = Store.open(database(home))
    assert store._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()
