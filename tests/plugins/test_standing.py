"""A model that answers from documents, asked by servers: many threads, no memory of its own."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

import glmkit_knowledge
from glmkit import Spec, UsageError, hookimpl
from glmkit.live import Live
from glmkit.testing import EchoModel, HashEncoder, make_app
from glmkit_knowledge import standing

NILE = "How long is the Nile in kilometres?"
BAIKAL = "贝加尔湖最深处有多少米?"
UNKNOWN = "Who composed the opera Carmen?"
LOADED: list[str] = []


class English(EchoModel):
    languages = frozenset({"en"})


def load_hash(name: str, app: object) -> HashEncoder:
    LOADED.append(name)
    return HashEncoder()


class Parts:
    @hookimpl
    def register_encoders(self, register) -> None:
        register(Spec("hash", "", f"{__name__}:load_hash"))


@pytest.fixture
def app(tmp_path):
    LOADED.clear()
    config = {"encoder": "hash"}
    return make_app(tmp_path / "home", config, knowledge=glmkit_knowledge, parts=Parts())


@pytest.fixture
def folder(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "rivers.md").write_text("# Rivers\n\nThe Nile is 6,650 kilometres long.\n")
    (docs / "lakes.md").write_text("# 湖泊\n\n贝加尔湖最深处有 1642 米。它在西伯利亚。\n")
    return docs


@pytest.fixture
def speaker():
    return English("The Nile is 6,650 kilometres long. I like it.")


@pytest.fixture
def model(app, folder, speaker):
    with closing(app.knowledge_model(folder, speaker)) as model:
        yield model


def ask(model, *texts):
    roles = ("user", "assistant")
    return model.reply([{"role": roles[at % 2], "content": t} for at, t in enumerate(texts)])


def test_it_answers_cites_quotes_and_refuses(model, speaker):
    said = ask(model, NILE)
    assert said.text == "The Nile is 6,650 kilometres long. [1] I like it."
    assert said.sources[0].path == "rivers.md"
    assert speaker.seen[-1][-1].passages == said.sources[: len(speaker.seen[-1][-1].passages)]
    asked = len(speaker.seen)
    quoted = ask(model, BAIKAL)
    assert "贝加尔湖最深处有 1642 米。" in quoted.text and quoted.sources[0].path == "lakes.md"
    refused = ask(model, UNKNOWN)
    assert (refused.finish_reason, refused.sources) == ("refused", ())
    assert len(speaker.seen) == asked, "a language it does not speak, and nothing to speak of"


def test_what_was_said_before_comes_with_the_question_and_stays_nowhere(model, speaker):
    ask(model, NILE, "6,650 kilometres.", "And how long is the Nile in kilometres?")
    assert [each.role for each in speaker.seen[-1]] == ["user", "assistant", "user"]
    ask(model, NILE)
    assert len(speaker.seen[-1]) == 1


def test_the_system_message_reaches_the_model(model, speaker):
    model.reply([{"role": "system", "content": "Be brief."}, {"role": "user", "content": NILE}])
    assert speaker.seen[-1][0].content == "Be brief."


def test_many_threads_ask_at_once_and_get_their_own_answers(model):
    found = {}

    def work(live, question, at):
        found[question, at] = ask(live, question)

    with Live(model, concurrency=4) as live:
        threads = [
            threading.Thread(target=work, args=(live, question, at))
            for at in range(3)
            for question in (NILE, BAIKAL, UNKNOWN)
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    for (question, _), reply in found.items():
        paths = [each.path for each in reply.sources[:1]]
        assert paths == {NILE: ["rivers.md"], BAIKAL: ["lakes.md"], UNKNOWN: []}[question]
    assert len(found) == 9


def test_a_document_that_changes_is_read_anew(model, folder, monkeypatch):
    monkeypatch.setattr(standing, "LOOK_S", 0.0)
    (folder / "opera.md").write_text("# Opera\n\nGeorges Bizet composed the opera Carmen.\n")
    assert ask(model, UNKNOWN).sources[0].path == "opera.md"
    for each in folder.iterdir():
        each.unlink()
    assert ask(model, NILE).finish_reason == "refused", "its source is gone"


def test_two_bases_share_an_encoder_and_an_empty_one_is_refused(app, folder, tmp_path, speaker):
    (tmp_path / "empty").mkdir()
    with closing(app.knowledge_model(folder, speaker)):
        with closing(app.knowledge_model(folder / "rivers.md", speaker)) as rivers:
            assert ask(rivers, NILE).sources and not ask(rivers, BAIKAL).sources
    assert LOADED == ["hash"]
    with pytest.raises(UsageError, match="no such folder"):
        app.knowledge_model(tmp_path / "absent", speaker)
    with pytest.raises(UsageError):
        app.knowledge_model(tmp_path / "empty", speaker)
