"""A knowledge base as its users see it: indexing, updating, finding."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from knowledge_files import finish, write_pdf

from glmkit import DataError, UsageError
from glmkit.testing import HashEncoder
from glmkit_knowledge.base import KnowledgeBase
from glmkit_knowledge.readers import READERS, Section

OLD = 1_600_000_000
_ticks = itertools.count()


class Counting(HashEncoder):
    """An encoder that remembers what it encoded."""

    def __init__(self, dimensions=64):
        super().__init__(dimensions)
        self.calls = []

    def encode(self, texts, *, kind="passage"):
        assert kind in ("query", "passage")
        self.calls.append(list(texts))
        return super().encode(texts, kind=kind)

    @property
    def texts(self):
        return [text for call in self.calls for text in call]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    write(folder / "rivers.md", "# 河流\n\n## 尼罗河\n\n世界上最长的河流是尼罗河，长6650公里。\n")
    write(folder / "sub" / "lakes.txt", "Lake Baikal is the deepest lake. It is in Siberia.\n")
    write_pdf(folder / "hills.pdf", [["The hills are green."]])
    write(folder / "faq.csv", "问题,答案\n最高的山？,珠穆朗玛峰。\n最大的湖？,里海。\n")
    return folder


def write(path, text):
    """Write a file whose time is long past, so that its size and time are trusted."""
    path.write_text(text, encoding="utf-8")
    os.utime(path, (OLD, OLD + next(_ticks)))
    return path


@pytest.fixture
def encoder():
    return Counting()


@pytest.fixture
def opened(tmp_path, folder, encoder):
    with KnowledgeBase.open(folder, home=tmp_path / "home", encoder=encoder) as base:
        yield base


def update(base):
    return finish(base.update())[0]


def contents(base):
    """Return what a base holds, without the ids."""
    chunks = base.chunks(range(1, 10_000))
    vectors = base.vectors([chunk.id for chunk in chunks])
    return sorted(
        (chunk.path, chunk.location, chunk.text, vector.tobytes())
        for chunk, vector in zip(chunks, vectors, strict=True)
    )


def test_a_folder_is_indexed(opened, encoder):
    report, steps = finish(opened.update())
    assert (report.added, report.changed, report.removed, report.unchanged) == (4, 0, 0, 0)
    assert report.chunks == len(opened) == 5
    assert (report.skipped, report.rebuilt) == ([], None)
    assert len(encoder.calls) == 1
    assert {step.stage for step in steps} == {"indexing"}
    assert steps[-1].done == steps[-1].total
    assert [step.done for step in steps] == sorted(step.done for step in steps)


def test_chunks_are_found_and_cited(opened, encoder):
    update(opened)
    assert "河流 > 尼罗河\n世界上最长的河流是尼罗河，长6650公里。" in encoder.texts
    (hit, score), *_ = opened.lexical("世界上最长的河流是什么？", 3)
    (chunk,) = opened.chunks([hit])
    assert score > 0
    assert (chunk.path, chunk.heading) == ("rivers.md", "河流 > 尼罗河")
    assert chunk.location == "河流 > 尼罗河, line 5"
    assert chunk.text == "世界上最长的河流是尼罗河，长6650公里。"
    question = encoder.encode(["deepest lake Baikal"])[0]
    (hit, cosine), *rest = opened.dense(question, 3)
    (chunk,) = opened.chunks([hit])
    assert (chunk.path, chunk.location) == ("sub/lakes.txt", "line 1")
    assert cosine == pytest.approx(float(opened.vectors([hit])[0] @ question), abs=1e-3)
    assert rest == sorted(rest, key=lambda pair: -pair[1])
    assert {c.location for c in opened.chunks(range(1, 9))} >= {"page 1", "row 2", "row 3"}


def test_vectors_are_those_of_the_encoder(opened, encoder):
    update(opened)
    chunks = opened.chunks(range(1, 9))
    texts = [f"{each.heading}\n{each.text}" if each.heading else each.text for each in chunks]
    vectors = opened.vectors([each.id for each in chunks])
    assert (vectors.dtype, vectors.shape) == (np.float32, (5, 64))
    assert np.allclose(vectors, encoder.encode(texts), atol=1e-3)


def test_no_change_writes_and_encodes_nothing(opened, folder, encoder, tmp_path):
    update(opened)
    encoder.calls.clear()
    before = {each: each.stat().st_mtime_ns for each in (tmp_path / "home" / "knowledge").iterdir()}
    report, steps = finish(opened.update())
    assert (report.unchanged, report.added, report.chunks, steps) == (4, 0, 5, [])
    assert encoder.calls == []
    after = {each: each.stat().st_mtime_ns for each in (tmp_path / "home" / "knowledge").iterdir()}
    assert {k: v for k, v in after.items() if k.suffix in (".sqlite", ".faiss")} == {
        k: v for k, v in before.items() if k.suffix in (".sqlite", ".faiss")
    }


def test_only_changes_are_encoded(opened, folder, encoder):
    update(opened)
    encoder.calls.clear()
    write(
        folder / "rivers.md",
        "# 河流\n\n## 尼罗河\n\n世界上最长的河流是尼罗河，长6650公里。\n\n## 长江\n\n亚洲最长。\n",
    )
    (folder / "hills.pdf").unlink()
    write(folder / "new.txt", "A new text.")
    report = update(opened)
    assert (report.added, report.changed, report.removed, report.unchanged) == (1, 1, 1, 2)
    # The section that stayed the same keeps its vector.
    assert encoder.texts == ["A new text.", "河流 > 长江\n亚洲最长。"]
    paths = {each.path for each in opened.chunks(range(1, 99))}
    assert paths == {"rivers.md", "sub/lakes.txt", "faq.csv", "new.txt"}


def test_updating_equals_indexing_anew(opened, folder, encoder, tmp_path):
    update(opened)
    for number in range(5):
        write(folder / f"n{number}.txt", f"Text {number}. " * (number + 1))
        write(folder / "rivers.md", f"# 河流\n\n改了{number}次。\n")
        update(opened)
        (folder / f"n{number}.txt").rename(folder / f"moved{number}.txt")
        update(opened)
    with KnowledgeBase.open(folder, home=tmp_path / "other", encoder=encoder) as fresh:
        update(fresh)
        assert contents(opened) == contents(fresh)
        query = encoder.encode(["Text 3."])[0]
        assert ranked(opened, opened.dense(query, 9)) == ranked(fresh, fresh.dense(query, 9))
        words = "Text 河流"
        assert ranked(opened, opened.lexical(words, 9)) == ranked(fresh, fresh.lexical(words, 9))


def ranked(base, hits):
    """Return hits without the ids: path and score, equal scores in a fixed order."""
    paths = [chunk.path for chunk in base.chunks([each for each, _ in hits])]
    found = [(round(score, 5), path) for path, (_, score) in zip(paths, hits, strict=True)]
    return sorted(found, reverse=True)


def test_a_moved_file_is_not_encoded_again(opened, folder, encoder):
    update(opened)
    encoder.calls.clear()
    (folder / "rivers.md").rename(folder / "sub" / "streams.md")
    report = update(opened)
    assert (report.added, report.removed, encoder.calls) == (1, 1, [])


def test_a_touched_file_is_unchanged(opened, folder, encoder):
    update(opened)
    os.utime(folder / "rivers.md", (OLD + 7777, OLD + 7777))
    report = update(opened)
    assert (report.unchanged, report.changed) == (4, 0)
    assert update(opened).unchanged == 4


def test_a_change_that_keeps_size_and_time_is_seen_while_the_file_is_fresh(opened, folder):
    path = folder / "fresh.txt"
    path.write_text("One river.")
    now = time.time_ns()
    os.utime(path, ns=(now, now))
    update(opened)
    path.write_text("Two lakes.")
    os.utime(path, ns=(now, now))
    assert update(opened).changed == 1
    assert opened.lexical("lakes", 1)


def test_hidden_and_other_files_are_passed_over(opened, folder):
    write(folder / ".hidden.md", "Hidden.")
    (folder / ".git").mkdir()
    write(folder / ".git" / "a.md", "Hidden.")
    write(folder / "picture.png", "No text.")
    report = update(opened)
    assert (report.added, report.skipped) == (4, [])


def test_suffixes_in_capitals(opened, folder):
    write(folder / "LOUD.MD", "# Loud\n\nText.\n")
    assert update(opened).added == 5


def test_one_file_is_a_base_too(folder, tmp_path, encoder):
    with KnowledgeBase.open(folder / "rivers.md", home=tmp_path / "home", encoder=encoder) as base:
        assert (update(base).added, len(base)) == (1, 1)
        assert base.chunks([1])[0].path == "rivers.md"
        assert update(base).unchanged == 1


def test_the_index_is_not_in_the_folder(opened, folder, tmp_path):
    before = sorted(folder.rglob("*"))
    update(opened)
    assert sorted(folder.rglob("*")) == before
    (database,) = (tmp_path / "home" / "knowledge").glob("*.sqlite")
    assert database.name.startswith("docs-")


def test_two_folders_of_one_name_are_two_bases(folder, tmp_path, encoder):
    other = tmp_path / "elsewhere" / "docs"
    other.mkdir(parents=True)
    write(other / "a.txt", "Only this.")
    sizes = []
    for place in (folder, other):
        with KnowledgeBase.open(place, home=tmp_path / "home", encoder=encoder) as base:
            update(base)
            sizes.append(len(base))
    assert sizes == [5, 1]


def test_readers_of_others(folder, tmp_path, encoder):
    def read_log(path):
        yield Section(path.read_text(), place="entry 1")

    write(folder / "x.log", "Logged river.")
    readers = {**READERS, ".log": read_log}
    home = tmp_path / "home"
    with KnowledgeBase.open(folder, home=home, encoder=encoder, readers=readers) as base:
        assert update(base).added == 5
        assert base.chunks([base.lexical("logged", 1)[0][0]])[0].location == "entry 1"


def test_many_small_files_fill_batches(folder, tmp_path, encoder):
    for number in range(300):
        write(folder / f"{number:03}.txt", f"Small text number {number}.")
    with KnowledgeBase.open(folder, home=tmp_path / "home", encoder=encoder) as base:
        update(base)
    assert [len(call) for call in encoder.calls[:2]] == [128, 128]


def test_an_index_of_a_thousand_files_is_checked_in_no_time(tmp_path, encoder):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(1000):
        write(folder / f"{number}.txt", f"Text {number}.")
    with KnowledgeBase.open(folder, home=tmp_path / "home", encoder=encoder) as base:
        update(base)
        started = time.process_time()
        assert update(base).unchanged == 1000
        assert time.process_time() - started < 0.3


def test_questions_before_the_first_update_are_refused(opened, encoder):
    question = encoder.encode(["x"])[0]
    for ask in (
        lambda: opened.dense(question, 1),
        lambda: opened.lexical("x", 1),
        lambda: len(opened),
    ):
        with pytest.raises(DataError, match="not built yet"):
            ask()


def test_questions_of_nothing(opened, encoder):
    update(opened)
    assert opened.lexical("", 5) == opened.lexical("的是 the of ?!", 5) == []
    assert opened.lexical("river", 0) == opened.dense(encoder.encode(["x"])[0], 0) == []
    assert opened.chunks([]) == []
    assert opened.vectors([]).shape == (0, 64)


def test_a_missing_folder_is_a_usage_error(tmp_path, encoder):
    with pytest.raises(UsageError, match="no such folder") as caught:
        KnowledgeBase.open(tmp_path / "none", home=tmp_path / "home", encoder=encoder)
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match=r"documents are .*\.md, \.pdf, \.txt"):
        KnowledgeBase.open(write(tmp_path / "a.xyz", "x"), home=tmp_path / "home", encoder=encoder)


def test_an_empty_folder_is_a_usage_error(tmp_path, encoder):
    (tmp_path / "none").mkdir()
    base = KnowledgeBase.open(tmp_path / "none", home=tmp_path / "home", encoder=encoder)
    with base, pytest.raises(UsageError, match=r"no document .*documents are .*\.csv, \.docx"):
        update(base)
    write(tmp_path / "none" / "empty.txt", "")
    with base, pytest.raises(UsageError, match=r"skipped: empty\.txt: empty file"):
        update(base)


def test_a_folder_that_lost_its_documents(opened, folder):
    update(opened)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(UsageError, match="no document"):
        update(opened)
    assert len(opened) == 0


def test_importing_is_free():
    code = (
        "import sys, glmkit_knowledge.base; heavy = {'faiss', 'jieba', 'numpy', 'pypdf', 'docx',"
        " 'bs4', 'torch', 'filelock'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_real_documents(shared_data, tmp_path, encoder):
    folder = shared_data / "chatchat-kb"
    with KnowledgeBase.open(folder, home=tmp_path / "home", encoder=encoder) as base:
        report = update(base)
        assert report.added >= 9
        assert report.chunks > 400
        best = base.chunks([each for each, _ in base.lexical("怎么改成AMD显卡", 3)])
        assert best[0].location == "row 5"
        best = base.chunks([each for each, _ in base.lexical("LangChain document loaders", 3)])
        assert best[0].path == "test_files/langchain.pdf"
