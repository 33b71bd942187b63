"""The SQLite store, the FAISS copy and the words that both languages are found by."""

from __future__ import annotations

import sqlite3
import threading

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from glmkit import DataError
from glmkit_knowledge import index as index_module, segment
from glmkit_knowledge.index import DenseIndex, generation_of
from glmkit_knowledge.records import ChunkRow, Document, FileState
from glmkit_knowledge.schema import FORMAT
from glmkit_knowledge.segment import index_text, query_terms, words
from glmkit_knowledge.store import DamagedIndex, Store, new_generation

STATE = FileState(b"h" * 32, 10, 20)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Return the folder of jieba's dictionary, made once."""
    return tmp_path_factory.mktemp("words")


@pytest.fixture
def store(tmp_path):
    with_meta = {"format": str(FORMAT), "generation": new_generation()}
    store = Store.create(tmp_path / "base.sqlite", with_meta)
    yield store
    store.close()


def document(path, texts, cache, heading=""):
    rows = [
        ChunkRow(
            heading,
            f"line {number}",
            text,
            text.encode()[:16].ljust(16),
            index_text(path, cache),
            index_text(heading, cache),
            index_text(text, cache),
        )
        for number, text in enumerate(texts, 1)
    ]
    return Document(path, STATE, rows)


def found(store, question, cache):
    terms = query_terms(question, cache)
    hits = store.match(terms, 10) if terms else []
    return [chunk.text for chunk in store.chunks([each for each, _ in hits])]


# -- Words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rivers", ["rivers"]),
        ("--max-tokens", ["max", "tokens", "max_tokens"]),
        ("docs/rivers.md", ["docs", "rivers", "md", "docs_rivers_md"]),
        ("C++ and C#", ["c", "c++", "and", "c", "c#"]),
        ("ＧＬＭ４", ["glm4"]),
        ("snake_case", ["snake", "case", "snake_case"]),
        ("カタカナ", ["カタ", "タカ", "カナ"]),
        ("3.14", ["3", "14", "3_14"]),
        ("河", ["河"]),
        ('😀 "*(', []),
    ],
)
def test_words(text, expected, cache):
    assert words(text, cache) == expected


def test_chinese_words_give_the_words_inside_them(cache):
    assert {"中国", "科学", "科学院", "中国科学院"} <= set(words("中国科学院", cache))


def test_an_unknown_name_is_found_whatever_stands_around_it(cache):
    assert "镕喆" in words("王镕喆说过", cache)
    assert "镕喆" in words("镕喆", cache)


def test_stop_words_are_left_out_of_questions_only(cache):
    assert query_terms("什么是长江的长度？ What is the length of it?", cache) == [
        "长江",
        "长度",
        "length",
    ]
    assert "的" in words("长江的长度", cache)
    assert query_terms("是什么 the of", cache) == []


@pytest.mark.parametrize("kept", [None, b"damaged"])
def test_the_dictionary_is_kept_in_a_private_folder(tmp_path, kept, capfd):
    segment._unprepared.cache_clear()
    folder = tmp_path / "own" / "jieba-0.42.1"
    if kept is not None:
        folder.mkdir(parents=True, mode=0o700)
        (folder / "jieba.cache").write_bytes(kept)
    assert words("世界河流", tmp_path / "own") == ["世界", "河流"]
    (folder,) = (tmp_path / "own").iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / "jieba.cache").stat().st_size > 1_000_000
    segment._unprepared.cache_clear()
    assert words("世界河流", tmp_path / "own") == ["世界", "河流"]
    assert capfd.readouterr() == ("", "")


# -- Store -------------------------------------------------------------------------------------


def test_both_languages_are_found(store, cache):
    store.replace(
        [
            document("a.md", ["世界上最长的河流是尼罗河。", "黄河流经九个省。"], cache),
            document("b.md", ["Running rivers are long.", "Use --max-tokens 5 here."], cache),
        ]
    )
    assert found(store, "最长的河流", cache)[0] == "世界上最长的河流是尼罗河。"
    assert found(store, "a river runs", cache) == ["Running rivers are long."]
    assert found(store, "--max-tokens", cache) == ["Use --max-tokens 5 here."]
    assert "Running rivers are long." in found(store, "b.md", cache)[:2]
    assert found(store, "火星", cache) == []


def test_a_word_of_most_chunks_still_counts(store, cache):
    texts = [f"glmkit part {n}." for n in range(5)] + ["Nothing else."]
    store.replace([document("a.md", texts, cache)])
    scores = dict(store.match(["glmkit"], 10))
    assert len(scores) == 5
    assert min(scores.values()) > 0.01


def test_a_heading_says_more_than_the_text(store, cache):
    store.replace(
        [
            document("a.md", ["Some long words on the Nile here."], cache),
            document("b.md", ["Some long words on water here."], cache, heading="Nile"),
        ]
    )
    assert found(store, "Nile", cache)[0] == "Some long words on water here."


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            ['"', "'", "OR", "AND", "NOT", "NEAR(a b, 2)", "*", "^", "-", ":", "text:", "("]
        )
    ).map(" ".join)
)
def test_no_question_is_a_syntax_error(shared_store, question):
    store, cache = shared_store
    terms = query_terms(question, cache)
    for _, score in store.match(terms, 5) if terms else []:
        assert score > 0


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory, cache):
    store = Store.create(
        tmp_path_factory.mktemp("shared") / "b.sqlite", {"generation": new_generation()}
    )
    store.replace([document("a.md", ["Rivers OR lakes NOT near text:", "长江 😀 河流"], cache)])
    yield store, cache
    store.close()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=5, unique=True))
def test_terms_are_quoted(shared_store, terms):
    shared_store[0].match([term.replace("\0", "") for term in terms], 3)


def test_replacing_leaves_nothing_behind(store, cache):
    store.replace([document("a.md", ["Old river.", "More."], cache)])
    store.replace([document("a.md", ["New lake."], cache)])
    assert len(store) == 1
    assert found(store, "river", cache) == []
    store.remove(["a.md", "never there"])
    assert len(store) == 0
    assert store.files() == {}


def test_every_change_is_a_new_generation(store, cache):
    seen = {store.generation()}
    store.replace([document("a.md", ["One."], cache)])
    seen.add(store.generation())
    store.remove(["a.md"])
    seen.add(store.generation())
    assert len(seen) == 3


def test_chunks_come_in_the_order_asked(store, cache):
    store.replace([document("a.md", [f"Text {n}." for n in range(1200)], cache)])
    ids = [7, 3, 1100, 99_999, 3]
    assert [chunk.id for chunk in store.chunks(ids)] == [7, 3, 1100, 3]
    assert len(store.chunks(range(1, 1201))) == 1200


def test_vectors_are_shared_by_equal_texts_and_swept(store, cache):
    store.replace([document("a.md", ["One.", "Two."], cache), document("b.md", ["One."], cache)])
    digests = [text.encode().ljust(16) for text in ("One.", "Two.", "Gone.")]
    assert store.without_vector(digests) == set(digests)
    store.add_vectors(digests, np.eye(3, 4, dtype=np.float32))
    generation, ids, vectors = store.all_vectors(4)
    assert (generation, ids.tolist()) == (store.generation(), [1, 2, 3])
    assert vectors.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    assert store.vectors([3, 99, 2], 4).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    store.sweep()
    assert store.without_vector(digests) == {digests[2]}


def test_a_broken_write_changes_nothing(store, cache):
    store.replace([document("a.md", ["Kept."], cache)])
    before = store.generation()

    def documents():
        yield document("a.md", ["Lost."], cache)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.replace(documents())
    assert (found(store, "kept", cache), store.generation()) == (["Kept."], before)


def test_a_reader_works_while_another_connection_writes(store, cache):
    store.replace([document("a.md", ["Old."], cache)])
    other = Store.open(store.path)
    with other._writing() as db:
        db.execute("DELETE FROM chunks")
        assert len(store) == 1
    assert len(store) == 0
    other.close()


def test_threads_share_a_store(store, cache):
    store.replace([document("a.md", [f"river {n}" for n in range(50)], cache)])
    seen = []
    threads = [
        threading.Thread(target=lambda: seen.append(len(store.match(["river"], 20))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [20] * 8


def test_a_full_disk_is_one_clear_error(store, cache):
    store._connection.execute("PRAGMA max_page_count = 40")
    with pytest.raises(DataError, match=r"no space left for the index .*base\.sqlite"):
        store.replace([document("a.md", [f"text {n} " * 50 for n in range(500)], cache)])
    assert len(store) == 0


@pytest.mark.parametrize(
    "content", [b"not a database" * 100, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_a_file_that_is_no_database_is_moved_aside(tmp_path, content):
    path = tmp_path / "base.sqlite"
    path.write_bytes(content)
    with pytest.raises(DamagedIndex, match="damaged"):
        Store.open(path)
    assert not path.exists()
    assert (tmp_path / "base.sqlite.damaged").read_bytes() == content


def test_a_replaced_file_is_not_moved_aside(store, tmp_path):
    store.path.rename(tmp_path / "old")
    store.path.write_bytes(b"another process's new file")
    with pytest.raises(DamagedIndex), store._guard():
        raise sqlite3.DatabaseError("database disk image is malformed")
    assert store.path.exists()


def test_no_store_where_nothing_was_written(tmp_path):
    assert Store.open(tmp_path / "none.sqlite") is None
    (tmp_path / "empty.sqlite").touch()
    assert Store.open(tmp_path / "empty.sqlite") is None
    sqlite3.connect(tmp_path / "other.sqlite").close()
    assert Store.open(tmp_path / "other.sqlite") is None


# -- FAISS -------------------------------------------------------------------------------------


def unit(count, dimensions=16):
    vectors = np.random.default_rng(0).normal(size=(count, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("half_from", [10, 1000])
def test_dense_search_is_exact(monkeypatch, half_from):
    monkeypatch.setattr(index_module, "HALF_FROM", half_from)
    vectors, ids = unit(200), np.arange(200, dtype=np.int64) * 3 + 5
    index = DenseIndex.build("g" * 32, ids, vectors)
    hits = index.search(vectors[17], 5)
    order = np.argsort(-(vectors @ vectors[17]))[:5]
    assert [each for each, _ in hits] == ids[order].tolist()
    assert np.allclose([score for _, score in hits], (vectors @ vectors[17])[order], atol=2e-3)
    assert len(index.search(vectors[0], 1000)) == 200
    assert index.search(vectors[0], 0) == []


def test_a_saved_index_is_read_back(tmp_path):
    index = DenseIndex.build("a" * 32, np.arange(50), unit(50))
    index.save(tmp_path / "x.faiss")
    assert generation_of(tmp_path / "x.faiss") == "a" * 32
    again = DenseIndex.load(tmp_path / "x.faiss", "a" * 32)
    assert again.search(unit(50)[3], 4) == index.search(unit(50)[3], 4)
    assert DenseIndex.load(tmp_path / "x.faiss", "b" * 32) is None
    assert [each.name for each in tmp_path.iterdir()] == ["x.faiss"]


@pytest.mark.parametrize("at", [3, 20, 50, 300, -1])
def test_a_damaged_index_is_not_read(tmp_path, at):
    path = tmp_path / "x.faiss"
    DenseIndex.build("a" * 32, np.arange(50), unit(50)).save(path)
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    assert DenseIndex.load(path, "a" * 32) is None
    path.write_bytes(data[:40])
    assert DenseIndex.load(path, "a" * 32) is None


def test_an_index_that_cannot_be_written_names_the_file(tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("glmkit_knowledge.index.os.fsync", full)
    with pytest.raises(DataError, match=r"x\.faiss: No space left"):
        DenseIndex.build("a" * 32, np.arange(5), unit(5)).save(tmp_path / "x.faiss")
    assert list(tmp_path.iterdir()) == []
