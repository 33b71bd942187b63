"""The example that chats with Streamlit, run by Streamlit's own driver where it is installed."""

import ast
from pathlib import Path

import pytest

import glmkit
from glmkit.testing import EchoModel

EXAMPLE = Path(__file__).parent.parent / "examples" / "streamlit_chat.py"


def test_it_is_short_and_uses_names_that_are_there():
    text = EXAMPLE.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "glmkit":
            assert all(hasattr(glmkit, each.name) for each in node.names)


def test_it_chats_and_remembers(monkeypatch):
    testing = pytest.importorskip(
        "streamlit.testing.v1", reason="Streamlit is not installed; it is no part of glmkit"
    )
    model = EchoModel()
    monkeypatch.setattr(glmkit, "load", lambda name: model)
    app = testing.AppTest.from_file(str(EXAMPLE), default_timeout=60).run()
    assert not app.exception
    app.chat_input[0].set_value("Hello there").run()
    app.slider[0].set_value(16).run()
    app.chat_input[0].set_value("Again").run()
    said = [message.markdown[0].value for message in app.chat_message]
    assert said == ["Hello there", "Hello there", "Again", "Again"] and not app.exception
    assert [each.content for each in model.seen[-1]] == ["Hello there", "Hello there", "Again"]
    app.button[0].click().run()
    assert not app.chat_message
