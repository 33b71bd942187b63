"""Turns around answers in a form: what follows a call, and what cannot be begun."""

from __future__ import annotations

import pytest
from roomy import roomy

from glmkit import Chat, GenerationOptions, Message, UsageError
from glmkit.tools import Tool
from glmkit.types import ToolCall

pytestmark = pytest.mark.usefixtures("one_thread")

HELLO = [Message("user", "hi")]
REQUIRED = GenerationOptions(max_tokens=60, tool_choice="required")
BRIEF = GenerationOptions(max_tokens=4)


@pytest.fixture(scope="module")
def untaught(tmp_path_factory):
    """Return a model that was never taught tools."""
    return roomy(tmp_path_factory.mktemp("hub"), "hub")


def ping() -> str:
    """Say pong."""
    return "pong"


def test_a_chat_goes_on_after_a_required_call(untaught):
    chat = Chat(untaught, tools=[Tool.of(ping)], options=REQUIRED, rounds=1)
    reply = chat.reply("hi")
    assert reply.finish_reason in ("stop", "length")
    assert [each.role for each in chat.history] == ["user", "assistant", "observation", "assistant"]
    assert chat.history[1].tool_calls == (ToolCall("ping", {}),)
    assert chat.history[2].content == "pong"


@pytest.mark.parametrize("form", [None, {"regex": "[a-z]{2}"}])
def test_a_model_is_told_of_tools_that_have_been_called(untaught, form):
    system = Message("system", "Be brief.", tools=(Tool.of(ping).schema,))
    call = Message("assistant", "", tool_calls=(ToolCall("ping", {}),))
    turns = [system, *HELLO, call, Message("tool", "pong")]
    options = GenerationOptions(max_tokens=4, response_format=form)
    read = untaught.tokenizer.raw(untaught.begin(turns, options).row.prompt)
    assert "Be brief." in read and "Say pong." in read and '<tool_call>\n{"name": "ping"' in read
    assert untaught.reply(turns, options).usage.completion_tokens
    with pytest.raises(UsageError, match="never taught tools"):
        untaught.reply(turns[:2], options)
