"""``glmkit run knowledge-chat`` and ``glmkit kb``, with a real index and small stand-in models."""

import io
import json
import sys
from pathlib import Path

import pytest

import glmkit_knowledge
from glmkit import Chunk, GlmkitError, Spec, Usage, UsageError, hookimpl
from glmkit.testing import EchoModel, HashEncoder, make_app
from glmkit_knowledge.app import knowledge_chat
from glmkit_knowledge.commands import kb as kb_group

LOADED: list[str] = []


class English(EchoModel):
    languages = frozenset({"en"})


def load_english(name: str, app: object) -> English:
    LOADED.append(name)
    return English("The Nile is 6,650 kilometres long. I like it.", name="english")


def load_hash(name: str, app: object) -> HashEncoder:
    return HashEncoder()


class Parts:
    """A model that speaks English only, and an encoder that needs no file."""

    @hookimpl
    def register_models(self, register) -> None:
        english = frozenset({"en"})
        register(Spec("english", "", "test_knowledge_app:load_english", languages=english))

    @hookimpl
    def register_encoders(self, register) -> None:
        register(Spec("hash", "", "test_knowledge_app:load_hash"))


@pytest.fixture
def folder(tmp_path) -> Path:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "rivers.md").write_text("# Rivers\n\nThe Nile is 6,650 kilometres long.\n")
    (docs / "lakes.md").write_text("# 湖泊\n\n贝加尔湖最深处有 1642 米。它在西伯利亚。\n")
    return docs


@pytest.fixture
def app(tmp_path):
    LOADED.clear()
    config = {"model": "english", "encoder": "hash"}
    return make_app(tmp_path / "home", config, knowledge=glmkit_knowledge, parts=Parts())


@pytest.fixture
def run(app, folder, capsys, monkeypatch):
    def run(*args: str, stdin: str = "", command=knowledge_chat) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        kb = [] if "--kb" in args or command is not knowledge_chat else ["--kb", str(folder)]
        command.main([*kb, *args], obj=app, standalone_mode=False)
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


ENGLISH = "How long is the Nile in kilometres?"
CHINESE = "贝加尔湖最深处有多少米?"
UNKNOWN = "Who composed the opera Carmen?"


def test_an_adapter_is_put_on_the_model(run):
    with pytest.raises(UsageError, match=r"takes no adapter \(got 'mine'\)"):
        run("--ask", ENGLISH, "--answer", "generate", "--adapter", "mine")
    with pytest.raises(UsageError, match=r"takes no adapter_alpha \(got 8.0\)"):
        run("--ask", ENGLISH, "--answer", "generate", "--adapter-alpha", "8")


def test_an_answer_carries_its_citation_and_its_sources(run):
    out, err = run("--ask", ENGLISH)
    lines = out.splitlines()
    assert lines[0] == "The Nile is 6,650 kilometres long. [1] I like it."
    assert lines[1].startswith("[1] rivers.md, Rivers, line 3 (0.")
    assert "\x1b" not in out
    assert LOADED == ["english"]


def test_json_is_one_object_with_every_field(run):
    out, _ = run("--ask", ENGLISH, "--json")
    [line] = out.splitlines()
    turn = json.loads(line)
    assert list(turn) == [
        "question",
        "answer",
        "refused",
        "mode",
        "model",
        "sources",
        "usage",
        "timings_ms",
    ]
    assert turn["question"] == ENGLISH
    assert (turn["mode"], turn["refused"], turn["model"]) == ("generate", False, "english")
    assert set(turn["sources"][0]) == {"path", "location", "score", "text"}
    assert turn["usage"]["completion_tokens"] > 0
    assert set(turn["timings_ms"]) == {"retrieve", "first_token", "total"}
    assert 0 < turn["timings_ms"]["retrieve"] <= turn["timings_ms"]["total"]


def test_a_language_the_model_lacks_is_quoted_without_loading_it(run):
    out, err = run("--ask", CHINESE)
    assert out.splitlines()[0] == "贝加尔湖最深处有 1642 米。 [1]"
    assert "does not speak Chinese" in err
    assert "--answer generate" in err
    assert LOADED == []


@pytest.mark.parametrize(
    ("answer", "question", "mode"),
    [
        ("generate", CHINESE, "generate"),
        ("extract", ENGLISH, "extract"),
        ("auto", ENGLISH, "generate"),
        ("auto", CHINESE, "extract"),
        ("generate", UNKNOWN, "refuse"),
    ],
)
def test_modes(run, answer, question, mode):
    out, _ = run("--ask", question, "--json", "--answer", answer)
    assert json.loads(out)["mode"] == mode
    assert LOADED == (["english"] if mode == "generate" else [])


def test_a_refusal_is_in_the_language_of_the_question_and_loads_nothing(run):
    out, _ = run("--ask", UNKNOWN)
    assert out == "No answer was found in the local knowledge base.\n"
    turn = json.loads(run("--ask", "谁写了歌剧《卡门》?", "--json")[0])
    assert turn["answer"] == "基于本地知识搜索没有找到答案"
    assert turn["refused"] and turn["mode"] == "refuse"
    assert turn["sources"] == []
    assert turn["usage"] == {"prompt_tokens": 0, "completion_tokens": 0}
    assert LOADED == []


def test_fallback_answers_alone_and_says_so(run):
    out, err = run("--ask", UNKNOWN, "--when-missing", "fallback")
    assert out == "The Nile is 6,650 kilometres long. I like it.\n"
    assert "not from the knowledge base" in err
    assert json.loads(run("--ask", UNKNOWN, "--when-missing", "fallback", "--json")[0])["mode"] == (
        "fallback"
    )


def test_the_threshold_decides(run):
    assert json.loads(run("--ask", ENGLISH, "--json", "--threshold", "1")[0])["refused"]
    everything = json.loads(run("--ask", UNKNOWN, "--json", "--threshold", "0")[0])
    assert not everything["refused"]
    assert len(json.loads(run("--ask", ENGLISH, "--json", "--top-k", "1")[0])["sources"]) == 1


def test_show_context_shows_the_passages(run):
    out, _ = run("--ask", CHINESE, "--show-context")
    assert "    贝加尔湖最深处有 1642 米。它在西伯利亚。" in out.splitlines()


def test_piped_questions_give_one_object_a_line_and_no_noise(run):
    out, err = run("--json", stdin=f"{ENGLISH}\n\n{CHINESE}\n")
    assert [json.loads(line)["question"] for line in out.splitlines()] == [ENGLISH, CHINESE]
    assert ">" not in out


def test_the_conversation_is_understood_and_can_be_forgotten(run):
    asked = "它在哪里?\n"
    out, _ = run("--json", stdin=f"{CHINESE}\n{asked}/reset\n{asked}")
    first, second, third = [json.loads(line) for line in out.splitlines()]
    assert second["sources"][0]["path"] == "lakes.md"
    assert second["mode"] == "extract"
    assert third["refused"]


def test_commands_of_the_loop(run):
    out, err = run(stdin=f"/sources\n{CHINESE}\n/sources\n/quit\n{ENGLISH}\n")
    assert "no sources" in err
    assert out.count("[1] lakes.md") == 2
    assert "Nile" not in out


def test_an_interrupted_answer_leaves_the_session_usable(app, folder, monkeypatch):
    from glmkit_knowledge.retrieve import Retriever
    from glmkit_knowledge.session import Session, open_base
    from glmkit_knowledge.settings import Settings

    class Interrupted(English):
        def stream(self, messages, options=None):
            yield Chunk("The Nile ")
            raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[__name__], "load_english", lambda name, app: Interrupted())
    with open_base(app, folder) as (base, _):
        session = Session(app, Retriever(base, base.encoder), Settings())
        with pytest.raises(KeyboardInterrupt):
            list(session.ask(ENGLISH))
        assert session.last is None
        assert session.answer(CHINESE).mode == "extract"
        assert [message.content for message in session.chat.history][1].startswith("The Nile")


def test_skipped_documents_are_named_and_the_rest_answers(run, folder):
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 broken")
    out, err = run("--ask", ENGLISH)
    assert "skipped broken.pdf: " in err
    assert "6,650" in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--kb", "/no/such/folder", "--ask", "?"], "no such folder"),
        (["--ask", ENGLISH, "--threshold", "2"], "from 0 to 1"),
        (["--ask", ENGLISH, "--top-k", "0"], "1 to 50"),
        (["--ask", ENGLISH, "--model", "englisch"], "english"),
        (["--ask", ENGLISH, "--encoder", "hahs"], "hash"),
    ],
)
def test_wrong_requests_get_one_clear_line(run, args, said):
    with pytest.raises(UsageError, match=said) as caught:
        run(*args)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_empty_folder_is_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(GlmkitError, match="document"):
        run("--kb", str(tmp_path / "empty"), "--ask", ENGLISH)


def test_kb_index_search_and_info(run, folder):
    out, _ = run("index", str(folder), "--json", command=kb_group)
    assert json.loads(out)["added"] == 2
    found = json.loads(run("search", str(folder), ENGLISH, "--json", command=kb_group)[0])
    assert found["passages"][0]["path"] == "rivers.md"
    assert "rivers.md" in run("search", str(folder), ENGLISH, command=kb_group)[0]
    shown = json.loads(run("info", str(folder), "--json", command=kb_group)[0])
    assert (shown["chunks"], shown["encoder"]) == (2, "hash-256")
    out, _ = run("index", str(folder), command=kb_group)
    assert "unchanged 2" in out


def test_usage_is_reported_by_the_model(run):
    assert Usage(0, 0) == Usage()
    turn = json.loads(run("--ask", CHINESE, "--json")[0])
    assert turn["usage"] == {"prompt_tokens": 0, "completion_tokens": 0}
