"""The page without a browser: what is shown, asked, taken in, kept and refused."""

import ast
import asyncio
import base64
import html
import os
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import web_parts
from hypothesis import given, settings, strategies as st
from web_parts import Scripted, make_page

import glmkit
from glmkit import (
    BusyError,
    ClosedError,
    ConfigError,
    DrawOptions,
    Message,
    Passage,
    PluginError,
    TimeLimitError,
    UnknownNameError,
    UsageError,
)
from glmkit.live import Live
from glmkit_serve.web import escaping, talk, words as texts
from glmkit_serve.web.drawing import Brush
from glmkit_serve.web.entrance import Entrance, local_names
from glmkit_serve.web.library import OWN, good_name
from glmkit_serve.web.opinions import improve, rate, turn_at
from glmkit_serve.web.running import Wishes, run, voices_of
from glmkit_serve.web.settings import WebSettings
from glmkit_serve.web.tabs import Tab, tabs_of
from glmkit_serve.web.talk import Wanted, rows_of
from glmkit_serve.web.uploads import Limits, documents_in, safe_name, take_in
from glmkit_serve.web.visits import Visits
from glmkit_serve.web.voices import suited, worn_by
from glmkit_serve.web.words import LANGUAGES, TEXTS, Words, preferred

EN, ZH = Words("en"), Words("zh")
WEB = Path(texts.__file__).parent


# -- texts -----------------------------------------------------------------------------------------


def test_every_text_is_there_in_both_languages_with_the_same_places():
    for key, (english, chinese) in TEXTS.items():
        assert english.strip() and chinese.strip(), key
        places = [sorted(re.findall(r"\{(\w+)\}", each)) for each in (english, chinese)]
        assert places[0] == places[1], key
        assert not re.search(r"[\u4e00-\u9fff]", english), key


def test_every_text_is_used_and_every_text_used_is_there():
    said = set()
    for path in set(WEB.glob("*.py")) - {WEB / "words.py"}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.add(node.value)
    unused = {key for key in TEXTS if key not in said and not re.fullmatch(r"example_\d", key)}
    assert not unused


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-US,en;q=0.9,zh;q=0.8", "en"),
        ("de,zh-TW;q=0.7,en;q=0.3", "zh"),
        ("de-DE,de;q=0.9", "en"),
        ("zh;q=0, en;q=0.1", "en"),
        ("zh;q=high", "en"),
        ("", "en"),
    ],
)
def test_the_page_speaks_what_the_browser_would_rather_read(header, language):
    assert preferred(header) == language


# -- what models and documents say -----------------------------------------------------------------


def tokens_of(text):
    """Return the kinds of what Markdown with HTML makes of a text, as the page's parser does."""
    from markdown_it import MarkdownIt

    parsed = MarkdownIt("commonmark", {"html": True}).parse(text)
    inner = [token for each in parsed for token in each.children or ()]
    return [(each.type, each.content) for each in (*parsed, *inner)]


def test_html_and_pictures_of_a_model_are_shown_and_not_obeyed():
    evil = '<img src=x onerror="a()"> ![p](http://evil.example/y.png) <script>b()</script>'
    kinds = {kind for kind, _ in tokens_of(escaping.as_markdown(evil))}
    assert not kinds & {"html_inline", "html_block", "image"}


def test_code_and_markdown_stay_as_they_are():
    text = "**bold** `a < b & c`\n\n```html\n<b> & ![x](y)\n```\n\n1 < 2\n"
    shown = escaping.as_markdown(text)
    assert "`a < b & c`" in shown and "<b> & ![x](y)" in shown
    assert shown.startswith("**bold**") and shown.endswith("1 &lt; 2\n")
    open_fence = "before <b>\n~~~\n<i>still open"
    assert escaping.as_markdown(open_fence) == "before &lt;b>\n~~~\n<i>still open"


_PIECES = ("<b>", "</p>", "![x](y)", "`", "``", "```\n", "~~~\n", "\n", "\n\n", "a", " ", "&amp;")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(_PIECES), max_size=14).map("".join))
def test_whatever_a_model_says_becomes_no_picture_and_hardly_ever_a_tag(text):
    """What slips through where parsers disagree on code is left to the browser's sanitiser."""
    shown = escaping.as_markdown(text)
    if "`" not in text and "~" not in text:
        kinds = {kind for kind, _ in tokens_of(shown)}
        assert not kinds & {"html_inline", "html_block", "image"}
        assert html.unescape(shown.replace("!\\[", "![")) == text


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_a_source_holds_its_passage_as_text_whatever_that_is(text, path):
    shown = escaping.sources_html([Passage(text, path, "line 3", 0.5)], EN)
    inside = re.search(r'<div class="passage">(.*)</div></details></div>$', shown, re.DOTALL)[1]
    assert html.unescape(inside) == text.strip().replace("\r", "")
    assert "<" not in inside and "\n" not in inside
    assert "\n" not in shown.lstrip("\n")  # one block: Markdown looks at nothing inside


def test_sources_say_where_and_how_well():
    passages = [Passage("The Nile\n\nis long.", "a/rivers.md", "page 3", 0.876), Passage("b", "b")]
    shown = escaping.sources_html(passages, EN)
    assert "<b>[1]</b> a/rivers.md, page 3" in shown and "relevance 0.88" in shown
    assert "The Nile&#10;&#10;is long." in shown and "<b>[2]</b> b" in shown
    assert "相关度" in escaping.sources_html(passages, ZH)
    assert escaping.sources_html([], EN) == ""


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


def test_adapters_are_chosen_by_name(tmp_path):
    class Wearing(Scripted):
        def __init__(self):
            super().__init__()
            self.loaded = {}
            self.set_adapter = lambda choice: self.loaded.setdefault("worn", choice)

        def load_adapter(self, path, name, *, alpha=None):
            self.loaded[name] = (path, alpha)

    model = Wearing()
    assert worn_by(model, {"poet": "/p"}, 16) == ["poet"]
    assert model.loaded == {"poet": ("/p", 16), "worn": None}
    page = make_page(tmp_path / "home", model)
    page.talk.voices = voices_of(model, {"poet": "/p"})
    visit = page.visits.of("a")
    assert page.talk.voices.names() == ["scripted", "scripted + poet"]
    ask(page, visit, "hello", voice="scripted + poet")
    ask(page, visit, "hello")
    assert [options.adapter for _, options in model.seen] == ["poet", {}]
    assert visit.turns[0].adapter == "poet"
    with pytest.raises(UsageError, match="takes no adapters"):
        worn_by(Scripted(), {"poet": "/p"})


def test_sliders_begin_where_the_model_was_made_for(model):
    model.settings = SimpleNamespace(temperature=0.2, top_p=0.8)
    with Live(model) as live:
        assert suited(live) == suited(model) == (0.2, 0.8)
    assert suited(Scripted()) == (0.7, 0.9)


# -- documents -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd.txt", "passwd.txt"),
        ("C:\\Users\\me\\notes.md", "notes.md"),
        ("/etc/cron.d/x.txt", "x.txt"),
        (".hidden.md", "hidden.md"),
        ("..", None),
        ("...txt", "txt"),
        ("", None),
        ("河流 rivers.pdf", "河流 rivers.pdf"),
        ("a\u202efdp.txt", "afdp.txt"),
        ("a\x00b\n.txt", "ab.txt"),
        ("x" * 300 + ".txt", "x" * 96 + ".txt"),
        ("what?*.md", "what.md"),
    ],
)
def test_names_of_documents_are_made_safe(sent, kept):
    assert safe_name(sent) == kept


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_no_name_leads_out_of_its_folder(sent):
    name = safe_name(sent)
    if name is not None:
        assert Path(name).name == name and not name.startswith(".") and len(name) <= 100 + len(sent)
        assert not set(name) & set('/\\\0:*?"<>|') and safe_name(name) == name


LIMITS = Limits(max_bytes=100, max_files=3)


def test_plain_files_are_taken_and_nothing_else(tmp_path):
    sent, folder = tmp_path / "sent", tmp_path / "kept"
    sent.mkdir()
    for name, text in {"a.md": "A", "b.exe": "B", "c.md": "c" * 101, "d.md": ""}.items():
        (sent / name).write_text(text)
    secret = tmp_path / "secret.md"
    secret.write_text("secret")
    (sent / "link.md").symlink_to(secret)
    (sent / "folder.md").mkdir()
    os.mkfifo(sent / "pipe.md")
    taken = take_in([*sorted(sent.iterdir()), sent / "gone.md"], folder, LIMITS)
    assert taken.added == ["a.md"] and documents_in(folder) == ["a.md"]
    assert dict((name, key) for key, name in taken.refused) == {
        "b.exe": "bad_type",
        "c.md": "too_large",
        "d.md": "empty_file",
        "folder.md": "bad_file",
        "gone.md": "bad_file",
        "link.md": "bad_file",
        "pipe.md": "bad_file",
    }
    assert [each.name for each in folder.iterdir()] == ["a.md"]


def test_no_more_documents_than_may_be_but_newer_ones_replace_older_ones(tmp_path):
    folder = tmp_path / "kept"
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("old")
        taken = take_in([tmp_path / f"{number}.txt"], folder, LIMITS)
    assert taken.refused == [("too_many", "3.txt")] and len(documents_in(folder)) == 3
    (tmp_path / "0.txt").write_text("new")
    assert take_in([tmp_path / "0.txt"], folder, LIMITS).added == ["0.txt"]
    assert (folder / "0.txt").read_text() == "new"


def test_a_link_in_the_folder_is_replaced_not_followed(tmp_path):
    folder, secret = tmp_path / "kept", tmp_path / "secret.txt"
    folder.mkdir()
    secret.write_text("keep me")
    (folder / "a.txt").symlink_to(secret)
    (tmp_path / "a.txt").write_text("mine")
    take_in([tmp_path / "a.txt"], folder, LIMITS)
    assert secret.read_text() == "keep me" and not (folder / "a.txt").is_symlink()


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


# -- who may come in -------------------------------------------------------------------------------


def answered(entrance, path="/", **headers):
    """Return status and headers of what an ASGI application answers."""
    sent = []

    async def ask_it():
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "GET", "path": path, "headers": raw}
        await entrance(scope, None, collect)

    async def collect(message):
        sent.append(message)

    asyncio.run(ask_it())
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


async def inside(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"in"})


def basic(text):
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


def test_a_key_is_asked_for_as_password():
    locked = Entrance(inside, ("key-1", "ключ"), None)
    assert answered(locked, **basic("anybody:key-1"))[0] == 200
    assert answered(locked, **basic(":ключ"))[0] == 200
    wrong = (basic("key-1"), basic("a:key-2"), basic("a:"), {"Authorization": "Basic ?"}, {})
    for headers in (*wrong, {"Authorization": "Bearer key-1"}):
        status, told = answered(locked, "/en/gradio_api/upload", **headers)
        assert status == 401 and told["www-authenticate"].startswith("Basic")


def test_without_a_key_only_local_names_are_answered():
    door = Entrance(inside, (), local_names("box.lan"))
    for host in ("127.0.0.1:7860", "localhost", "[::1]:7860", "BOX.lan:7860"):
        assert answered(door, Host=host)[0] == 200
    for host in ("evil.example", "127.0.0.1.evil.example:7860", ""):
        assert answered(door, Host=host)[0] == 403
    assert "default-src 'self'" in answered(door, Host="localhost")[1]["content-security-policy"]


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


# -- the command -----------------------------------------------------------------------------------


def test_settings_are_checked():
    assert WebSettings.of({"port": 1}, port=2, host=None).port == 2
    for table, said in (
        ({"prot": 1}, "did you mean 'port'"),
        ({"port": "x"}, "port .* must be a whole number"),
        ({"uploads": 1}, "uploads .* true or false"),
        ({"host": " "}, "host .* an address"),
        ({"feedback": 3}, "feedback .* a file"),
        ({"max_file_mb": True}, "max_file_mb"),
    ):
        with pytest.raises(ConfigError, match=said):
            WebSettings.of(table)
    with pytest.raises(ConfigError, match="must be a table"):
        WebSettings.of(3)


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
