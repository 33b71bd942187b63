"""Turns around answers in a form: what follows a call, and what cannot be begun."""

from __future__ import annotations

import pytest
from roomy import roomy

from glmkit import Chat, GenerationOptions, Message, UsageError
from glmkit.answers import SideBySideModel, answered
from glmkit.tools import Tool
from glmkit.types import Ask, Chunk, Reply, ToolCall, Usage

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


class Plain(SideBySideModel):
    """Answers several side by side, knows nothing but texts, and notes what it was asked."""

    name, languages = "plain", None

    def __init__(self):
        self.runs = []

    def stream(self, messages, options=None):
        yield Chunk("", "stop", Usage())

    def answers(self, asked, *, concurrency=None):
        waiting = [*asked]
        self.runs.append([each.key for each in waiting])
        for each in reversed(waiting):
            yield each.key, Reply("free", "stop", Usage())


def test_rows_that_a_model_would_answer_by_halves_are_refused_one_by_one():
    model, form = Plain(), GenerationOptions(response_format={"choice": ["x"]})
    drawn = []

    def rows():
        for at, options in enumerate([form, BRIEF, BRIEF, form, REQUIRED, BRIEF, form]):
            drawn.append(at)
            yield Ask(at, HELLO, options)

    found = []
    for key, outcome in answered(model, rows(), concurrency=2):
        assert max(drawn) <= max(key, *found, 0) + 2, "what is refused does not pile up"
        found.append(key)
        assert isinstance(outcome, UsageError) == (key in (0, 3, 4, 6))
    assert model.runs == [[1, 2], [5]] and sorted(found) == [*range(7)]
    with pytest.raises(UsageError, match="plain knows no response_format"):
        [*model.batch([HELLO] * 2, [BRIEF, form])]
