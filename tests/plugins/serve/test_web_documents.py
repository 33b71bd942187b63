"""Documents on the page without a browser: answers from them, and where they stay."""

import threading

import pytest
import web_parts
from web_parts import EN, ask, make_page

from glmkit_serve.web.library import OWN, good_name
from glmkit_serve.web.shelf import Shelf
from glmkit_serve.web.talk import rows_of


def test_an_answer_from_documents_names_them(page, visit):
    visit.documents.mkdir(parents=True)
    (visit.documents / "nile.md").write_text("The Nile is 6650 km long.")
    turn, _ = ask(page, visit, "How long?", base=OWN)
    assert [each.path for each in turn.sources] == ["nile.md"] and turn.base == OWN
    assert "6650 km" in rows_of(visit, EN)[-1]["content"]
    other = page.visits.of("somebody else")
    assert "no documents" in ask(page, other, "How long?", base=OWN)[0].problem


def test_the_index_is_brought_up_to_date_and_tells_what_it_cannot_read(page, visit):
    library, speaker = page.talk.library, page.model
    visit.documents.mkdir(parents=True)
    (visit.documents / "a.md").write_text("one")
    first = library.model(OWN, visit, speaker)
    assert library.model(OWN, visit, speaker) is first
    (visit.documents / "b.md").write_text("two\0")
    assert library.update(visit.documents, speaker) == {"b.md": "no text"}
    assert library.model(OWN, visit, speaker) is not first and set(
        library.model(OWN, visit, speaker).texts
    ) == {"a.md", "b.md"}


def test_the_knowledge_base_of_a_visit_is_read_asked_and_removed(tmp_path):
    """With the real plugin."""
    page = make_page(tmp_path / "home", plugins=web_parts.real_documents())
    visit, library = page.visits.of("a"), page.talk.library
    visit.documents.mkdir(parents=True)
    (visit.documents / "nile.md").write_text("# Rivers\n\nThe Nile is 6,650 kilometres long.\n")
    (visit.documents / "bad.pdf").write_bytes(b"no PDF at all")
    assert "bad.pdf" in library.update(visit.documents, page.model)
    turn, _ = ask(page, visit, "How long is the Nile in kilometres?", base=OWN)
    assert turn.sources[0].path == "nile.md" and not turn.problem
    refused, _ = ask(page, visit, "Who composed the opera Carmen?", base=OWN)
    assert refused.ended == "refused" and not refused.sources
    index = list((tmp_path / "home" / "knowledge").glob("documents-*"))
    assert index
    library.remove(visit.documents)
    assert not any(each.exists() for each in index)


def send(page, visit, folder, into, **files):
    """Return what is said, and whether the base can be asked."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.md").write_text(text)
    return Shelf(page).add(visit, [folder / f"{name}.md" for name in files], into)


def test_a_new_base_that_nothing_came_into_is_not_made(page, visit, tmp_path):
    bad = {"empty": ({"a": ""}, "is empty"), "bad": ({"---": "x"}, "cannot be used")}
    for name, (files, said) in {**bad, "unread": ({"b": "\0"}, "no text")}.items():
        lines, good = send(page, visit, tmp_path / "sent", name, **files)
        assert not good and any(said in line for line in lines), lines
    assert page.talk.library.named() == [] and not any(page.talk.library.shelf.iterdir())
    lines, good = send(page, visit, tmp_path / "sent", "good", c="word", d="\0")
    assert good and page.talk.library.named() == ["good"]


def test_documents_of_a_visitor_who_left_meanwhile_do_not_stay(page, visit, tmp_path):
    page.visits.leave("somebody")
    assert not send(page, visit, tmp_path / "sent", OWN, a="word")[1]
    assert not visit.folder.exists() and not page.talk.library._models


def test_who_reads_many_documents_keeps_nobody_else_waiting(page, visit, tmp_path):
    library, begun, go = page.talk.library, threading.Event(), threading.Event()

    def opened(path, model):
        if path.name == "slow":
            begun.set()
            assert go.wait(10)
        return model

    library._opened = opened
    library.fixed = {"slow": tmp_path / "slow", "quick": tmp_path / "quick"}
    reading = threading.Thread(target=library.model, args=("slow", visit, page.model))
    reading.start()
    assert begun.wait(10)
    asking = threading.Thread(target=library.model, args=("quick", visit, page.model))
    asking.start()
    asking.join(5)
    waits = asking.is_alive()
    go.set()
    reading.join(10)
    assert not waits


def test_names_of_bases_are_names_and_no_paths(page):
    for bad in ("", "..", ".", "a/b", "../x", " a", "a ", "@own", "x" * 41, "a\n", "a\0"):
        assert not good_name(bad), bad
    for good in ("a", "项目 资料", "notes-2", "x" * 40):
        assert good_name(good), good
    library = page.talk.library
    (library.shelf / "notes").mkdir(parents=True)
    (library.shelf / ".hidden").mkdir()
    assert library.named() == ["notes"]


ENDS = {
    "leave": lambda visits: visits.leave("a"),
    "evict": lambda visits: visits.of("b"),
    "close": lambda visits: visits.close(),
}


@pytest.mark.parametrize("way", ENDS)
def test_of_a_visit_that_ends_no_index_stays(tmp_path, way):
    """With the real plugin: its index holds the words of the documents."""
    page = make_page(tmp_path / "home", plugins=web_parts.real_documents())
    page.visits._most = 1
    visit, library = page.visits.of("a"), page.talk.library
    visit.documents.mkdir(parents=True)
    (visit.documents / "secret.md").write_text("The password is swordfish.\n")
    library.model(OWN, visit, page.model)
    ENDS[way](page.visits)
    kept = (tmp_path / "home" / "knowledge").glob("documents-*")
    assert [each.name for each in kept if each.suffix != ".lock"] == []
    assert not library._models and not visit.folder.exists()
