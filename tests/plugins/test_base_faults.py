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
import zlib

import pytest
from knowledge_files import finish, write_pdf

from glmkit import DataError, UsageError
from glmkit.testing import HashEncoder
from glmkit_knowledge import base as base_module, indexing
from glmkit_knowledge.base import KnowledgeBase
from glmkit_knowledge.store import Store

OLD = 1_600_000_000

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


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.utime(path, (OLD, OLD))
    return path


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(20):
        lines = [f"## Part {part}\n\nRiver {number} has part {part}.\n" for part in range(5)]
        write(folder / f"{number:02}.md", f"# Document {number}\n\n" + "\n".join(lines))
    return folder


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def opened(folder, home, **more):
    return KnowledgeBase.open(folder, home=home, encoder=HashEncoder(64), **more)


def update(folder, home, **more):
    with opened(folder, home, **more) as base:
        report, steps = finish(base.update())
        return report, contents(base), [step.stage for step in steps]


def contents(base):
    chunks = base.chunks(range(1, 100_000))
    vectors = base.vectors([chunk.id for chunk in chunks])
    best = [base.chunks([each])[0].text for each, _ in base.lexical("part", 300)]
    nearest = base.dense(base.encoder.encode(["River 3"])[0], 300)
    assert len(best) == len(nearest) == len(chunks)
    return sorted(
        (chunk.path, chunk.location, chunk.text, vector.tobytes())
        for chunk, vector in zip(chunks, vectors, strict=True)
    )


def database(home):
    (path,) = (home / "knowledge").glob("*.sqlite")
    return path


def indexer(folder, home, seconds):
    command = [sys.executable, "-c", INDEXER, str(folder), str(home), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# -- Documents ---------------------------------------------------------------------------------


def test_bad_documents_are_named_and_the_rest_indexed(folder, home):
    write(folder / "broken.pdf", b"%PDF-1.7 broken")
    write_pdf(folder / "scan.pdf", [[]])
    write(folder / "zip.docx", b"PK nothing")
    write(folder / "empty.txt", b"")
    write(folder / "blank.txt", b" \n \n")
    write(folder / "binary.txt", bytes(range(256)))
    write(folder / "noise.csv", b'a,b\n"' + b"part " * 100)
    report, rows, _ = update(folder, home)
    assert report.added >= 20
    assert {path for path, *_ in rows} >= {f"{number:02}.md" for number in range(20)}
    reasons = dict(report.skipped)
    assert set(reasons) >= {
        "broken.pdf",
        "scan.pdf",
        "zip.docx",
        "empty.txt",
        "blank.txt",
        "binary.txt",
    }
    assert "scan?" in reasons["scan.pdf"]
    assert reasons["blank.txt"] == "no text in it"
    again, _, _ = update(folder, home)
    assert again.skipped == report.skipped
    assert (again.added, again.changed) == (0, 0)


def test_bad_documents_are_not_parsed_again(folder, home):
    path = write(folder / "broken.pdf", b"%PDF-1.7 broken")
    update(folder, home)
    reads = []

    def count(path):
        reads.append(path)
        return iter(())

    readers = {".pdf": count, ".md": count}
    update(folder, home, readers=readers)
    assert reads == []
    write(path, b"%PDF-1.7 still broken")
    update(folder, home, readers=readers)
    assert reads == [path]


def test_a_document_that_breaks_later_leaves_the_index(folder, home):
    write_pdf(folder / "a.pdf", [["A unicorn part."]])
    _, before, _ = update(folder, home)
    write(folder / "a.pdf", b"%PDF- broken")
    report, after, _ = update(folder, home)
    assert [path for path, _ in report.skipped] == ["a.pdf"]
    assert [row for row in before if row[0] != "a.pdf"] == after


def test_nothing_but_bad_documents_is_a_usage_error(tmp_path, home):
    (tmp_path / "bad").mkdir()
    write(tmp_path / "bad" / "a.pdf", b"%PDF- broken")
    with pytest.raises(UsageError, match=r"skipped: a\.pdf: "):
        update(tmp_path / "bad", home)


def test_a_document_that_the_system_refuses_is_tried_again(folder, home, monkeypatch):
    refused = folder / "00.md"
    real = type(refused).open

    def guarded(path, *args, **kwargs):
        if path == refused:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(type(refused), "open", guarded)
    report, _, _ = update(folder, home)
    assert report.skipped == [("00.md", "cannot be read: Permission denied")]
    monkeypatch.undo()
    report, _, _ = update(folder, home)
    assert (report.added, report.skipped) == (1, [])


def test_links_that_leave_the_folder_are_named(folder, home, tmp_path):
    (tmp_path / "outside").mkdir()
    write(tmp_path / "outside" / "secret.md", "# Secret\n\nOutside.\n")
    (folder / "secret.md").symlink_to(tmp_path / "outside" / "secret.md")
    (folder / "out").symlink_to(tmp_path / "outside")
    (folder / "gone.md").symlink_to(tmp_path / "nowhere")
    (folder / "inside.md").symlink_to(folder / "01.md")
    (folder / "loop").symlink_to(folder)
    (folder / "circle").symlink_to(folder / "circle")
    report, rows, _ = update(folder, home)
    assert report.skipped == [
        ("circle", "broken link"),
        ("gone.md", "broken link"),
        ("out", "link that leaves the folder"),
        ("secret.md", "link that leaves the folder"),
    ]
    assert len({path for path, *_ in rows}) == 20


def test_a_folder_that_is_a_link_itself(folder, home, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert update(tmp_path / "link", home)[0].added == 20
    assert update(folder, home)[0].unchanged == 20


def test_a_pipe_does_not_hang(folder, home):
    os.mkfifo(folder / "pipe.md")
    assert update(folder, home)[0].skipped == [("pipe.md", "no regular file")]


def test_a_name_that_is_no_utf8(folder, home):
    try:
        (folder / os.fsdecode(b"\xff.md")).write_text("x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert update(folder, home)[0].skipped == [("?.md", "its name is not valid UTF-8")]


def test_a_file_above_the_limit_is_named(folder, home):
    write(folder / "large.txt", "x " * 2_000_000)
    (skipped,) = update(folder, home, max_file_bytes=2 << 20)[0].skipped
    assert skipped == ("large.txt", "3 MiB, larger than the limit of 2 MiB: split it")


def test_a_large_file(tmp_path, home, monkeypatch):
    import numpy as np

    class Quick(HashEncoder):
        def encode(self, texts, *, kind="passage"):
            rows = np.fromiter((zlib.crc32(text.encode()) % 64 for text in texts), dtype=int)
            return np.eye(64, dtype=np.float32)[rows]

    # Whole documents are indexed elsewhere; here the words would take most of the time.
    monkeypatch.setattr(indexing, "index_text", lambda text, cache: text[:20])
    folder = tmp_path / "large"
    folder.mkdir()
    line = f"The river number {{}} is {'very ' * 40}long and flows through countries.\n"
    with (folder / "large.txt").open("w") as file:
        file.writelines(line.format(n) for n in range(40_000))
    size = (folder / "large.txt").stat().st_size
    assert size > 10e6
    started = time.process_time()
    with KnowledgeBase.open(folder, home=home, encoder=Quick(64)) as base:
        report, steps = finish(base.update())
        assert report.chunks > size / 900
        assert base.chunks([report.chunks])[0].text.endswith("countries.")
        assert time.process_time() - started < 12
        assert len(steps) > 20


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
