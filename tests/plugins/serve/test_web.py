"""The page without a browser: tabs of others, opinions, visits, drawing, and how it begins."""

import pytest
from web_parts import ask, make_page

import glmkit
from glmkit import DrawOptions, Message, PluginError, UnknownNameError, UsageError
from glmkit_serve.web.drawing import Brush
from glmkit_serve.web.opinions import improve, rate, turn_at
from glmkit_serve.web.running import Wishes, run
from glmkit_serve.web.tabs import Tab, tabs_of
from glmkit_serve.web.visits import Visits
from glmkit_serve.web.words import LANGUAGES

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
