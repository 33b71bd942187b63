"""Documents that cannot be read, or are not what they seem."""

from __future__ import annotations

import errno
import os
import time
import zlib

import pytest
from base_parts import rivers, update, write
from knowledge_files import finish, write_pdf

from glmkit import UsageError
from glmkit.testing import HashEncoder
from glmkit_knowledge import indexing
from glmkit_knowledge.base import KnowledgeBase


@pytest.fixture
def folder(tmp_path):
    return rivers(tmp_path / "docs")


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


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
