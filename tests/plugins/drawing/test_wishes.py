"""Wishes: who words them for which picture model, and what is said when nobody can."""

import json
from dataclasses import dataclass

import pytest
from hypothesis import given, settings, strategies as st

import glmkit_drawing
from glmkit import Chat, Chunk, OfflineError, ToolCall, Usage, UsageError, language_of
from glmkit.testing import EchoModel, make_app
from glmkit_drawing.keywords import TABLE, translate
from glmkit_drawing.opening import About, read_about
from glmkit_drawing.vocabulary import in_known_words, unknown
from glmkit_drawing.wishes import fit, word


@dataclass
class Words:
    """Stands in for a picture model: a token a word."""

    name: str = "words"
    about: About = About()  # noqa: RUF009
    room: int | None = 12
    loras: tuple[str, ...] = ()

    def count(self, text):
        return len(text.split())


PLAIN = Words("default", About(frozenset({"en", "zh"}), plain=True))


class English(EchoModel):
    languages = frozenset({"en"})


def never():
    pytest.fail("the chat model was loaded")


def test_a_model_of_plain_wishes_is_told_them_as_they_are():
    for wish in ("红苹果", "red apple"):
        worded = word(wish, PLAIN, never)
        assert worded.prompt == wish
        assert worded.how == "drawn as wished: 'default' knows short wishes in English and Chinese"
    assert word("红苹果", Words(), None).how == "drawn as wished"


KNOWN = frozenset("a red apple dog photo of with hat 红 苹果 狗 小狗 一 只 的 帽子 可爱 大".split())


def test_a_model_that_lists_its_words_says_what_it_lacks():
    about = About(frozenset({"en", "zh"}), plain=True, words=KNOWN)
    worded = word("一只戴帽子的柯基", Words("default", about), never)
    assert worded.prompt == "一只戴帽子的狗" and worded.how.endswith("; 柯基 is drawn as 狗")
    worded = word("a photo of a Corgi with hats", Words("default", about), never)
    assert worded.prompt == "a photo of a dog with hats" and "corgi is drawn" in worded.how
    lacking = word("一只可爱的独角兽 on a zebra", Words("default", about), never).how
    assert lacking.endswith("; it never met on, zebra, 独角兽 and draws something else for that")
    taught = Words("default", about, loras=("sks",))
    assert "never" not in word("a photo of sks dog", taught, never).how
    assert "never met sks" in word("a photo of sks dog", Words("default", about), never).how


@given(st.lists(st.sampled_from(sorted(KNOWN)), max_size=6))
def test_known_words_are_never_called_strange(words):
    assert in_known_words(" ".join(words), KNOWN) == (" ".join(words), {}, [])
    assert unknown("".join(each for each in words if not each.isascii()), KNOWN) == []


def test_a_chat_model_words_a_chinese_wish_greedily():
    model = EchoModel('"a corgi wearing a hat, soft light"\nAnd more.')
    worded = word("一只戴帽子的柯基", Words(), lambda: model)
    assert worded.prompt == "a corgi wearing a hat, soft light"
    assert worded.how == "worded by 'echo'"
    assert model.seen[0][-1].content == "一只戴帽子的柯基"
    assert "At most 6 words" in model.seen[0][0].content


def test_what_strays_from_the_wish_is_not_drawn():
    for answer in ("a house by the sea", "苹果", "...", ""):
        worded = word("two dogs", Words(), lambda answer=answer: English(answer or " "))
        assert worded.prompt == "two dogs"
        assert worded.how == "drawn as wished: 'echo' strayed from the wish"
    assert word("two dogs", Words(), lambda: English("two dogs, evening")).how.startswith("worded")


def test_what_a_small_model_repeats_is_said_once():
    answer = "two dogs, running, two dogs, a stormy sea, running, The two dogs."
    assert word("two dogs", Words(), lambda: English(answer)).prompt == "two dogs, running"
    kept = word("two dogs, stormy sea", Words(), lambda: English(answer)).prompt
    assert kept == "two dogs, running, a stormy sea"


def test_without_a_model_that_speaks_chinese_a_table_helps():
    worded = word("一只戴帽子的柯基", Words(), English)
    assert worded.prompt == "wearing hat corgi"
    assert worded.how == "translated word by word: 'echo' does not speak its language"
    with pytest.raises(UsageError) as caught:
        word("一只戴博士帽的柯基", Words(), English)
    said = str(caught.value)
    assert "the table of words lacks 博士帽" in said
    assert "--model" in said and "--no-expand" in said


def test_without_a_chat_model_at_hand_a_wish_is_drawn_all_the_same():
    def absent():
        raise OfflineError("not here")

    assert word("two dogs", Words(), absent).how == "drawn as wished: no chat model is here"
    assert word("两只狗", Words(), English).prompt == "two dog"
    assert word("红苹果", Words(), absent).prompt == "red apple"


@pytest.mark.parametrize(
    ("wish", "english", "unknown"),
    [
        ("红色的苹果", "red apple", ()),
        ("蓝天", "blue", ("天",)),
        ("在海边奔跑的狗，油画", "in seaside running dog oil painting", ("奔",)),
        ("一只 cute 猫", "cute cat", ()),
        ("NASA 火箭", "NASA rocket", ()),
        ("", "", ()),
    ],
)
def test_the_table_translates_the_longest_words_and_says_what_it_lacks(wish, english, unknown):
    found = translate(wish)
    assert found.unknown == unknown
    assert found.english == english


def test_the_table_is_sound():
    assert len(TABLE) > 150
    for chinese, english in TABLE.items():
        assert language_of(chinese) == "zh" and english and language_of(english) == "en"
        assert translate(chinese) == (english, ())


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="ab红苹果 ,，;", max_size=60), st.integers(1, 8))
def test_what_is_cut_and_what_is_kept_are_the_whole(text, room):
    painter = Words(room=room)
    if not text.split():
        return
    worded = fit(painter, text, "")
    assert painter.count(worded.prompt) <= room
    kept = [*worded.prompt, *worded.cut]
    assert [each for each in kept if each not in " ,，;"] == [
        each for each in text if each not in " ,，;"
    ]
    assert bool(worded.cut) <= (painter.count(text) > room)


def test_a_first_word_that_is_too_long_is_an_error():
    painter = Words()
    painter.count = len
    with pytest.raises(UsageError, match="the first word of the wish has more than the 12 tokens"):
        fit(painter, "a" * 20 + " b", "")


def test_a_model_says_what_it_is(tmp_path):
    index = tmp_path / "model_index.json"
    index.write_text('{"_class_name": "KolorsPipeline"}')
    assert read_about(tmp_path) == About(frozenset({"en", "zh"}))
    index.write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert read_about(tmp_path) == About()
    said = {"languages": ["en", "zh"], "plain": True, "steps": 20, "guidance": 3.0}
    (tmp_path / "glmkit.json").write_text(json.dumps(said))
    assert read_about(tmp_path) == About(frozenset({"en", "zh"}), True, 20, 3.0)
    (tmp_path / "glmkit.json").write_text("[1]")
    from glmkit import CheckpointError

    with pytest.raises(CheckpointError, match="is damaged"):
        read_about(tmp_path)


class Artist(EchoModel):
    """Asks for a picture, then tells what it was told."""

    def __init__(self, **arguments):
        super().__init__()
        self.arguments = arguments

    def stream(self, messages, options=None):
        if messages[-1].role == "user":
            call = ToolCall("draw", self.arguments)
            yield Chunk("", "tool_calls", Usage(1, 1), tool_calls=(call,))
        else:
            yield Chunk(f"Here: {messages[-1].content}", "stop", Usage(1, 1))


def test_a_chat_model_draws_by_the_tool(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = make_app(tmp_path / "home", drawing=glmkit_drawing)
    app.load_image_model = lambda name=None: opened
    monkeypatch.setattr(type(opened), "draw", quick(type(opened).draw))
    chat = app.chat(Artist(wish="a red apple", count=2, seed=4), tools=["draw"])
    assert isinstance(chat, Chat)
    reply = chat.reply("Draw me a red apple, twice")
    assert reply.text == "Here: drawn: pictures/a-red-apple-4.png, pictures/a-red-apple-5.png"
    assert (tmp_path / "pictures" / "a-red-apple-5.png").is_file()
    assert "wish" in app.load_tool("draw").parameters["required"]
    reply = app.chat(Artist(wish="a cat", count=9), tools=["draw"]).reply("Nine cats")
    assert reply.text == "Here: error: count must be from 1 to 4, got 9"


def quick(draw):
    """Draw in two steps."""
    from dataclasses import replace

    return lambda self, wish, options=None, **more: draw(
        self, wish, replace(options, steps=2), **more
    )


def test_the_chat_command_lists_tools_and_allows_them_by_name(tmp_path):
    from click.testing import CliRunner

    from glmkit.commands.chat import chat

    app = make_app(tmp_path, drawing=glmkit_drawing)
    artist = Artist(wish="x", colour=1)
    app.load_model = lambda *a, **k: artist
    done = CliRunner().invoke(chat, ["--tools"], obj=app)
    assert done.stdout.split()[:2] == ["draw", "Draw"]
    done = CliRunner().invoke(chat, ["--ask", "Draw", "--tool", "draw"], obj=app)
    lines = done.stdout.splitlines()
    assert lines[0] == "[asks for draw: {'wish': 'x', 'colour': 1}]"
    assert lines[1].startswith("[error: tool 'draw' has no parameter 'colour'")
    assert lines[2].startswith("Here: error:")
    assert "unknown tool 'drw'" in str(
        CliRunner().invoke(chat, ["--ask", "x", "--tool", "drw"], obj=app).exception
    )
    done = CliRunner().invoke(chat, ["--tools"], obj=make_app(tmp_path / "none"))
    assert done.stderr == "no plugin brings a tool\n"
