"""A conversation: context, refusal, history, cancelling."""

import pytest

from glmkit import Chat, GenerationOptions, Passage, Plugins, Policy, Usage, hookimpl, language_of
from glmkit.testing import EchoModel
from glmkit.tools import Tool
from glmkit.types import Chunk, Message, TokenLogprob, ToolCall


class Context:
    """Offers the passages it was given and remembers what happened."""

    def __init__(self, *passages):
        self.passages = list(passages)
        self.requests = []
        self.done = []

    @hookimpl
    def extra_context(self, request):
        self.requests.append(request)
        return self.passages or None

    @hookimpl
    def response_done(self, request, reply):
        self.done.append((request.question, reply))


def chat_with(*contexts, model=None, **options):
    plugins = Plugins()
    for number, context in enumerate(contexts):
        plugins.register(context, name=f"context{number}")
    return Chat(model or EchoModel(), plugins=plugins, **options)


def test_passages_of_all_plugins_reach_the_model_and_the_reply_best_first():
    low, high = Passage("low", "a.md", score=0.2), Passage("high", "b.md", score=0.9)
    chat = chat_with(Context(low), Context(high))
    reply = chat.reply("why?")
    assert reply.sources == (high, low)
    assert chat.model.seen[0][-1].passages == (high, low)


@pytest.mark.parametrize(
    ("question", "refusal"),
    [
        ("世界上最大的河流", "基于本地知识搜索没有找到答案"),
        ("the largest river?", "No answer was found in the local knowledge base."),
    ],
)
def test_without_passages_a_refusal_never_reaches_the_model(question, refusal):
    context = Context()
    chat = chat_with(context, policy=Policy.REFUSE)
    reply = chat.reply(question)
    assert (reply.text, reply.finish_reason, reply.usage) == (refusal, "refused", Usage(0, 0))
    assert chat.model.seen == []
    assert context.done == [(question, reply)]


@pytest.mark.parametrize("policy", [Policy.FALLBACK, Policy.OPTIONAL])
def test_other_policies_answer_without_passages(policy):
    assert chat_with(Context(), policy=policy).reply("hello there").text == "hello there"


def test_history_is_sent_without_old_passages_and_reset_forgets_it():
    chat = chat_with(Context(Passage("t", "p")), system="be kind")
    chat.reply("one")
    chat.reply("two")
    roles = [(message.role, message.content) for message in chat.model.seen[1]]
    assert roles == [("system", "be kind"), ("user", "one"), ("assistant", "one"), ("user", "two")]
    assert [bool(message.passages) for message in chat.model.seen[1]] == [False, False, False, True]
    chat.reset()
    chat.reply("three")
    assert [message.content for message in chat.model.seen[2]] == ["be kind", "three"]


def test_closing_a_stream_cancels_and_keeps_what_was_said():
    context = Context(Passage("t", "p"))
    chat = chat_with(context, model=EchoModel("one two three"))
    stream = chat.stream("count")
    assert next(stream).text == "one "
    stream.close()
    assert context.done[0][1].finish_reason == "cancelled"
    assert [message.content for message in chat.history] == ["count", "one "]


def test_a_failing_model_is_reported_as_an_error_and_leaves_no_turn():
    class Broken(EchoModel):
        def stream(self, messages, options=None):
            yield from ()
            raise RuntimeError("no")

    context = Context()
    chat = chat_with(context, model=Broken())
    with pytest.raises(RuntimeError):
        chat.reply("hello")
    assert context.done[0][1].finish_reason == "error"
    assert chat.history == []


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("世界上最大的河流", "zh"),
        ("GLMKIT_HOME 是做什么用的？", "zh"),
        ("what is glmkit?", "en"),
        ("Who wrote 紅樓夢, the famous classical novel of the Qing dynasty?", "en"),
        ("", "en"),
        ("12345?!", "en"),
    ],
)
def test_language_of(text, language):
    assert language_of(text) == language


class Caller(EchoModel):
    """Asks for the weather until it is told."""

    def stream(self, messages, options=None):
        self.seen.append(tuple(messages))
        if messages[-1].role == "user":
            call = ToolCall("weather", {"city": "Paris"})
            yield Chunk("", "tool_calls", Usage(1, 1), tool_calls=(call,))
        else:
            yield Chunk(f"It says {messages[-1].content}.", "stop", Usage(1, 1))


def test_calls_stay_in_the_history_and_are_answered():
    context = Context()
    schema = {"name": "weather", "parameters": {}}
    chat = chat_with(context, model=Caller(), tools=[schema], policy=Policy.OPTIONAL)
    asked = chat.reply("How is the weather?")
    assert (asked.text, asked.finish_reason) == ("", "tool_calls")
    assert asked.tool_calls == (ToolCall("weather", {"city": "Paris"}),)
    told = chat.reply(Message("observation", "20 degrees"))
    assert told.text == "It says 20 degrees."
    assert chat.model.seen[-1] == (
        Message("system", "", tools=(schema,)),
        Message("user", "How is the weather?"),
        Message("assistant", "", tool_calls=asked.tool_calls),
        Message("observation", "20 degrees"),
    )
    # What a tool found is no question: nobody is asked for context, and nothing is refused.
    assert len(context.requests) == 1 and len(context.done) == 2
    chat.policy = Policy.REFUSE
    assert chat.reply(Message("observation", "5")).finish_reason == "stop"


class Odd(EchoModel):
    """Calls a tool, then answers; tells how likely each token was."""

    honours = frozenset({"logprobs"})

    def stream(self, messages, options=None):
        told = [(TokenLogprob(each, -float(at), None, ()),) for at, each in enumerate("abc")]
        calls = () if messages[-1].role == "observation" else (ToolCall("f", {}),)
        yield Chunk("a", logprobs=told[0])
        yield Chunk("b", logprobs=told[1])
        yield Chunk("", "tool_calls" if calls else "stop", Usage(1, 3), (), calls, logprobs=told[2])


def test_plugins_see_the_odds_of_all_that_was_said():
    def f() -> str:
        """Do nothing."""
        return ""

    context = Context()
    options = GenerationOptions(logprobs=0)
    chat = chat_with(context, model=Odd(), tools=[Tool.of(f)], options=options)
    reply = chat.reply("go")
    assert [each.token for each in reply.logprobs] == [*"abcabc"]
    assert context.done == [("go", reply)]
    stream = chat.stream("again")
    next(stream), next(stream)
    stream.close()
    assert [each.token for each in context.done[-1][1].logprobs] == [*"ab"]
