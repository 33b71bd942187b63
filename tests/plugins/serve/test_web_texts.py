"""What the page says and how it shows what models say."""

import ast
import html
import re
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from glmkit import Passage
from glmkit_serve.web import escaping, words as texts
from glmkit_serve.web.words import TEXTS, Words, preferred

EN, ZH = Words("en"), Words("zh")
WEB = Path(texts.__file__).parent


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


def test_indented_code_stays_as_it_is_but_for_what_may_be_no_code():
    shown = escaping.as_markdown("Run:\n\n    a < b\n\n\tc & d\n\nthen <i>\n    e < f\n")
    assert "    a < b" in shown and "\tc & d" in shown
    assert "then &lt;i>" in shown and "e &lt; f" in shown, "it goes on with a paragraph"
    assert "&lt;i>" in escaping.as_markdown("- item\n\n    <i>of the item\n")
    assert "    <b>" in escaping.as_markdown("- item\n\nafter it\n\n    <b>\n")


@pytest.mark.parametrize("fence", ["```", "~~~~", "  ```python"])
def test_code_that_is_cut_swallows_nothing_that_follows(fence):
    text = f"So:\n\n{fence}\nx = '<p>'"
    kinds = tokens_of(f'{escaping.closed(escaping.as_markdown(text))}\n\n<p class="note">cut</p>')
    assert [kind for kind, _ in kinds if kind in ("fence", "html_block")] == ["fence", "html_block"]
    for whole in ("a", "```\nb\n```", "~~~\nc\n~~~\n", ""):
        assert escaping.closed(whole) == whole


_LINES = (
    "<b>",
    "    <b>",
    "\t<b>",
    "- a",
    "- ",
    "1. a",
    "  - a",
    "> q",
    "  <i>",
    "      ![x](y)",
    "",
    "a",
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(_LINES), max_size=9).map("\n".join))
def test_what_is_indented_is_left_alone_only_where_it_is_code(text):
    kinds = {kind for kind, _ in tokens_of(escaping.as_markdown(text))}
    assert not kinds & {"html_inline", "html_block", "image"}


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
    chinese = escaping.sources_html(passages, ZH)
    assert "a/rivers.md, 第 3 页" in chinese and "相关度" in chinese
    assert escaping.sources_html([], EN) == ""
