"""What the server of the tests has beside a model: a painter, an encoder, a model that is told."""

from __future__ import annotations

from api_server import serving_of

from glmkit import Chunk, Message, Passage, Picture, ToolCall, Usage, hookimpl
from glmkit.live import Live
from glmkit.plugins import Spec
from glmkit.testing import EchoModel, HashEncoder
from glmkit.types import Progress, StreamedModel
from glmkit_serve.api.served import Served


class Scripted(StreamedModel):
    """Calls the tool that it is offered, and says so of its result."""

    name, languages = "scripted", None
    honours = frozenset({"tool_choice"})

    def stream(self, messages, options=None):
        messages = [Message.of(each) for each in messages]
        usage = Usage(5, 2)
        if messages[-1].role == "tool":
            yield Chunk(f"It is {messages[-1].content}.")
            yield Chunk("", "stop", usage, (Passage("sun all day", "news.md", "line 3", 0.9),))
            return
        calls = [
            ToolCall(each["function"]["name"], {"city": "北京"})
            for message in messages
            for each in message.tools
        ]
        yield Chunk("" if calls else "nothing to call")
        yield Chunk("", "tool_calls" if calls else "stop", usage, (), tuple(calls))


class Painter:
    """Draws a byte for each picture."""

    name = "painter"

    def draw(self, wish, options=None):
        for at in range(options.count):
            yield Progress("drawing", at)
        first = 7 if options.seed is None else options.seed
        return [Picture(b"\x89PNG%d" % at, wish, first + at) for at in range(options.count)]


def load_painter(name, app):
    return Painter()


def load_hashes(name, app):
    return HashEncoder(8)


class Plugin:
    @hookimpl
    def register_encoders(self, register):
        register(Spec("hashes", "None.", f"{__name__}:load_hashes"))

    @hookimpl
    def register_image_models(self, register):
        register(Spec("painter", "None.", f"{__name__}:load_painter"))


def everything(home, model):
    """Return what serves a model, beside it one that repeats and one that calls tools."""
    found = serving_of(
        home,
        model,
        plugins={"mine": Plugin()},
        config={"encoder": "hashes"},
        max_tokens=400,
        concurrency=4,
        max_waiting=4,
        max_body_bytes=20_000,
    )
    found.models["echo"] = Served("echo", "chat", Live(EchoModel()))
    found.models["scripted"] = Served("scripted", "chat", Live(Scripted()))
    return found
