"""The page without a browser: what is shown, asked, taken in, kept and refused."""

import threading
from types import SimpleNamespace

import pytest
import web_parts
from web_parts import Scripted, make_page

import glmkit
from glmkit import (
    BusyError,
    ClosedError,
    DrawOptions,
    Message,
    PluginError,
    TimeLimitError,
    UnknownNameError,
    UsageError,
)
from glmkit.live import Live
from glmkit_serve.web import talk
from glmkit_serve.web.drawing import Brush
from glmkit_serve.web.library import OWN, good_name
from glmkit_serve.web.opinions import improve, rate, turn_at
from glmkit_serve.web.running import Wishes, run, voices_of
from glmkit_serve.web.shelf import Shelf
from glmkit_serve.web.tabs import Tab, tabs_of
from glmkit_serve.web.talk import Wanted, rows_of
from glmkit_serve.web.visits import Visits
from glmkit_serve.web.voices import suited
from glmkit_serve.web.words import LANGUAGES, Words

EN, ZH = Words("en"), Words("zh")


# -- talking ---------------------------------------------------------------------------------------


@pytest.fixture
def model():
    return Scripted({"long": "word " * 300, "twice": "again " * 2})


@pytest.fixture
def page(tmp_path, model):
    return make_page(tmp_path / "home", model)


@pytest.fixture
def visit(page):
    return page.visits.of("somebody")


def ask(page, visit, question, words=EN, **wanted):
    """Return the turn when it has ended, and how often it was shown."""
    shown = list(page.talk.ask(visit, question, Wanted(**wanted), words))
    return shown[-1], len(shown)


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


def test_sliders_begin_where_the_model_was_made_for(model):
    model.settings = SimpleNamespace(temperature=0.2, top_p=0.8)
    with Live(model) as live:
        assert suited(live) == suited(model) == (0.2, 0.8)
    assert suited(Scripted()) == (0.7, 0.9)


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


# -- tabs of others --------------------------------------------------------------------------------


def test_plugins_add_tabs_by_names_of_their_own(tmp_path):
    class Other:
        @glmkit.hookimpl
        def register_tabs(self, register):
            register(Tab("notes", "somewhere:build", {"en": "Notes", "zh": "笔记"}))

    class Twice:
        @glmkit.hookimpl
        def register_tabs(self, register):
            register(Tab("chat", "somewhere:build"))

    app = make_page(tmp_path / "home", plugins={"other": Other()}).app
    (tab,) = tabs_of(app)
    assert (tab.title("zh"), tab.title("fr"), Tab("x", "y:z").title("en")) == ("笔记", "Notes", "x")
    with app.plugins.using(Twice(), name="twice"), pytest.raises(PluginError, match="'chat'"):
        tabs_of(app)


def test_names_of_bases_are_names_and_no_paths(page):
    for bad in ("", "..", ".", "a/b", "../x", " a", "a ", "@own", "x" * 41, "a\n", "a\0"):
        assert not good_name(bad), bad
    for good in ("a", "项目 资料", "notes-2", "x" * 40):
        assert good_name(good), good
    library = page.talk.library
    (library.shelf / "notes").mkdir(parents=True)
    (library.shelf / ".hidden").mkdir()
    assert library.named() == ["notes"]


# -- opinions --------------------------------------------------------------------------------------


def test_a_thumb_is_stored_changed_and_taken_back(page, visit):
    turn, _ = ask(page, visit, "hello", system="Be brief.")
    rate(page.store, turn, -1)
    improve(page.store, turn, " Hi. ")
    (row,) = page.store
    assert (row.rating, row.better, row.answer, row.model) == (-1, "Hi.", turn.answer, "scripted")
    assert row.messages == (Message("system", "Be brief."), Message("user", "hello"))
    rate(page.store, turn, 0)
    (row,) = page.store
    assert (row.rating, row.better) == (0, "Hi.") and len(page.store.pairs().pairs) == 1


def test_opinions_are_about_messages_that_are_there(page, visit):
    turn, _ = ask(page, visit, "hello")
    ask(page, visit, "fail")
    assert turn_at(visit, 1) is turn and turn_at(visit, [0, 1]) is turn
    for index in (2, 3, 4, -1, 10**9, None, "1", [], 1.5):
        assert turn_at(visit, index) is None


# -- visits ----------------------------------------------------------------------------------------


def test_a_visit_that_ends_leaves_nothing(tmp_path):
    visits = Visits(tmp_path, most=2)
    first = visits.of("a")
    first.documents.mkdir(parents=True)
    (first.documents / "x.md").write_text("x")
    assert visits.of("a") is first
    visits.of("b"), visits.of("a"), visits.of("c")
    assert len(visits) == 2 and visits.leave("b") is None and not first.gone
    assert visits.leave("a") is first and not first.folder.exists() and first.stopped.is_set()
    assert visits.leave("a") is None and visits.of("a") is not first
    visits.close()
    assert len(visits) == 0 and not tmp_path.exists()


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


# -- drawing ---------------------------------------------------------------------------------------


def drawn(page, visit, *, options=None, **brush):
    work = page.drawing.draw(
        visit, "a dot", options or DrawOptions(seed=5, count=2), Brush(**brush)
    )
    steps = []
    while True:
        try:
            steps.append(next(work))
        except StopIteration as done:
            return done.value, steps


def test_pictures_are_files_of_the_visit(page, visit):
    paths, steps = drawn(page, visit)
    assert [each.name for each in paths] == ["01-5.png", "02-6.png"] and len(steps) == 6
    assert all(each.read_bytes().startswith(b"\x89PNG") for each in paths)
    paths, _ = drawn(page, visit, options=DrawOptions(seed=9))
    assert [each.name for each in visit.pictures.iterdir()] == ["01-9.png"]
    visit.undrawn.set()
    assert drawn(page, visit)[0] == []
    with pytest.raises(UsageError, match="no picture model 'other'"):
        drawn(page, visit, model="other")


def test_a_style_is_put_on_and_taken_off(tmp_path):
    style = tmp_path / "ink.safetensors"
    style.write_bytes(b"")
    page = make_page(tmp_path / "home", wishes=Wishes(loras={"ink": style}))
    visit = page.visits.of("a")
    drawn(page, visit, lora="ink", weight=0.5)
    (painter,) = page.drawing._models.values()
    assert painter.worn == [(style, 0.5)]
    drawn(page, visit)
    assert painter.worn == []
    with pytest.raises(UsageError, match="no LoRA 'oil'"):
        drawn(page, visit, lora="oil")


def test_without_a_plugin_nothing_is_offered(tmp_path):
    assert not make_page(tmp_path / "home", plugins={}).drawing.offered


def test_others_need_a_key_before_anything_is_loaded(page):
    with pytest.raises(UsageError, match="needs a key"):
        run(page.app, Wishes(flags={"host": "0.0.0.0"}))


@pytest.mark.network
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_port_that_is_taken_is_said(page):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="cannot listen at 127.0.0.1.*--port"):
            run(page.app, Wishes(flags={"port": taken.getsockname()[1]}))


def test_an_unknown_voice_names_the_known_ones(page):
    with pytest.raises(UnknownNameError, match="known: scripted"):
        page.talk.voices.of("x")
    assert list(LANGUAGES) == ["en", "zh"]
