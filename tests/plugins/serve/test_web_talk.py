"""Talking on the page without a browser: what is shown, asked, stopped and refused."""

import threading
from types import SimpleNamespace

import pytest
import web_parts
from web_parts import EN, ZH, Scripted, ask, make_page

from glmkit import BusyError, ClosedError, Message, TimeLimitError
from glmkit.live import Live
from glmkit_serve.web import talk
from glmkit_serve.web.library import OWN
from glmkit_serve.web.running import Wishes, voices_of
from glmkit_serve.web.talk import Wanted, rows_of
from glmkit_serve.web.voices import suited, told


def test_an_answer_grows_and_the_conversation_goes_on(page, visit, model):
    turn, shown = ask(page, visit, "hello", system="Be brief.", temperature=0.5, seed="7")
    assert (turn.answer, turn.ended) == ("You said: hello", "stop") and shown >= 2
    messages, options = model.seen[-1]
    assert messages == (Message("system", "Be brief."), Message("user", "hello"))
    assert (options.temperature, options.seed, options.max_tokens) == (0.5, 7, 512)
    ask(page, visit, "twice")
    assert [each.content for each in model.seen[-1][0]] == ["hello", "You said: hello", "twice"]
    rows = rows_of(visit, EN)
    assert [each["role"] for each in rows] == ["user", "assistant"] * 2
    assert rows[1]["content"] == "You said: hello"


def test_stopping_keeps_what_was_said_and_ends_the_model(page, visit, model):
    steps = page.talk.ask(visit, "long", Wanted(), EN)
    next(steps), next(steps)
    visit.stopped.set()
    *_, turn = steps
    assert turn.ended == "cancelled" and 0 < len(turn.answer) < 300 * 5
    assert model.closed.wait(1)
    assert "Stopped." in rows_of(visit, EN)[-1]["content"]
    assert "已停止" in rows_of(visit, ZH)[-1]["content"]
    assert ask(page, visit, "hello")[0].ended == "stop"


@pytest.mark.parametrize("end", ["stop", "leave"])
@pytest.mark.parametrize("base", [None, "docs"])
def test_nobody_waits_for_the_first_word_to_stop(tmp_path, base, end):
    """Neither of the model alone nor of one that answers from documents, the real plugin's."""
    slow, docs = Thinking(), tmp_path / "docs"
    docs.mkdir()
    (docs / "nile.md").write_text("# Rivers\n\nThe Nile is 6,650 kilometres long.\n")
    wishes = Wishes(bases={"docs": docs})
    with Live(slow) as live:
        page = make_page(tmp_path / "home", live, plugins=web_parts.real_documents(), wishes=wishes)
        visit, ended = page.visits.of("a"), []
        question = "How long is the Nile in kilometres?"
        asking = threading.Thread(
            target=lambda: ended.append(ask(page, visit, question, base=base)[0].ended)
        )
        asking.start()
        assert slow.asked.wait(10)
        visit.stopped.set() if end == "stop" else page.visits.leave("a")
        asking.join(2)
        slow.go.set()
        assert ended == ["cancelled"] and not visit.busy.locked()


class Thinking(Scripted):
    """Says nothing before it is told to go on."""

    def __init__(self):
        super().__init__()
        self.asked, self.go = threading.Event(), threading.Event()

    def stream(self, messages, options=None):
        self.asked.set()
        self.go.wait(10)
        yield from super().stream(messages, options)


def test_a_visitor_who_leaves_frees_the_model(page, visit, model):
    steps = page.talk.ask(visit, "long", Wanted(), EN)
    next(steps), next(steps)
    steps.close()
    assert model.closed.wait(1) and not visit.busy.locked()


def test_one_question_at_a_time_for_each_visitor(page, visit):
    first = page.talk.ask(visit, "long", Wanted(), EN)
    next(first)
    assert list(page.talk.ask(visit, "hello", Wanted(), EN)) == []
    first.close()


def test_several_visitors_share_one_batch(tmp_path, model):
    with Live(model) as live:
        page = make_page(tmp_path / "home", live)
        answers = {}

        def one(name):
            answers[name] = ask(page, page.visits.of(name), f"I am {name}")[0].answer

        threads = [threading.Thread(target=one, args=(name,)) for name in "abcd"]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert answers == {name: f"You said: I am {name}" for name in "abcd"}


def test_what_goes_wrong_is_said_in_plain_words(page, visit):
    turn, _ = ask(page, visit, "fail")
    assert (
        turn.ended == "error" and "does not like &lt;this&gt;" in rows_of(visit, EN)[-1]["content"]
    )
    assert "未能完成" in ask(page, visit, "fail", ZH)[0].problem
    assert ask(page, visit, "hello")[0].messages == (Message("user", "hello"),)
    for error, said in (
        (BusyError, "Too many"),
        (TimeLimitError, "in time"),
        (ClosedError, "shut"),
    ):
        assert said in talk.in_words(error("x"), EN)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"temperature": 1000}, "temperature must be"),
        ({"top_p": 0}, "top_p must be"),
        ({"max_tokens": 10**7}, "max_tokens must be at most 4096"),
        ({"max_tokens": 3.5}, "max_tokens must be a whole number"),
        ({"max_tokens": "many"}, "max_tokens must be a whole number"),
        ({"seed": "soon"}, "a seed is a whole number"),
        ({"voice": "nobody"}, "unknown model"),
        ({"base": "../../etc"}, "unknown knowledge base"),
        ({"base": OWN}, "There are no documents to answer from yet"),
    ],
)
def test_what_a_browser_may_send_is_checked(page, visit, wanted, said):
    turn, _ = ask(page, visit, "hello", **wanted)
    assert turn.ended == "error" and said in turn.problem


def test_a_cut_answer_says_so(page, visit):
    ask(page, visit, "long", max_tokens=16)
    assert "longest length" in rows_of(visit, EN)[-1]["content"]


def test_below_code_that_is_cut_sources_can_still_be_opened(page, visit, model):
    model.script["code"] = "```python\n" + "x = 1\n" * 50
    visit.documents.mkdir(parents=True)
    (visit.documents / "nile.md").write_text("The Nile is 6650 km long.")
    ask(page, visit, "code", base=OWN, max_tokens=16)
    code, _, after = rows_of(visit, EN)[-1]["content"][3:].partition("\n```\n")
    assert "<" not in code and 'class="note"' in after and "<details" in after


def test_a_fault_of_ours_is_shown_and_raised(page, visit, monkeypatch):
    monkeypatch.setattr(page.talk.voices, "of", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ask(page, visit, "hello")
    assert visit.turns[-1].ended == "error" and not visit.busy.locked()
    assert "Something broke" in rows_of(visit, EN)[-1]["content"]


def test_a_time_limit_reaches_the_batch(tmp_path):
    with Live(Scripted(pause_s=0.3)) as live:
        page = make_page(tmp_path / "home", live, timeout_s=1)
        object.__setattr__(page.settings, "timeout_s", 0.05)
        assert "No answer came in time" in ask(page, page.visits.of("a"), "hello")[0].problem
        live.close()


def test_a_time_limit_holds_for_answers_from_documents_too(tmp_path):
    slow, docs = Thinking(), tmp_path / "docs"
    docs.mkdir()
    (docs / "nile.md").write_text("# Rivers\n\nThe Nile is 6,650 kilometres long.\n")
    with Live(slow) as live:
        knows = {"plugins": web_parts.real_documents(), "wishes": Wishes(bases={"docs": docs})}
        page = make_page(tmp_path / "home", live, **knows)
        object.__setattr__(page.settings, "timeout_s", 0.05)
        question = "How long is the Nile in kilometres?"
        turn, _ = ask(page, page.visits.of("a"), question, base="docs")
        slow.go.set()
    assert "No answer came in time" in turn.problem


def test_adapters_are_chosen_by_name(tmp_path):
    model = Scripted()
    page = make_page(tmp_path / "home", model)
    page.talk.voices = voices_of(model, ["poet"])
    visit = page.visits.of("a")
    assert page.talk.voices.names() == ["scripted", "scripted + poet"]
    ask(page, visit, "hello", voice="scripted + poet")
    ask(page, visit, "hello")
    assert [options.adapter for _, options in model.seen] == ["poet", {}]
    assert visit.turns[0].adapter == "poet"


def test_a_page_says_where_the_model_does_not_speak_its_language():
    assert told(frozenset({"en"}), ZH) == "这里的模型只会英语。" and told({"en"}, EN) == ""
    assert told({"fr", "zh"}, EN) == "The model here speaks fr, Chinese only."
    assert told(None, ZH) == told({"en", "zh"}, ZH) == ""


def test_sliders_begin_where_the_model_was_made_for(model):
    model.settings = SimpleNamespace(temperature=0.2, top_p=0.8)
    with Live(model) as live:
        assert suited(live) == suited(model) == (0.2, 0.8)
    assert suited(Scripted()) == (0.7, 0.9)
