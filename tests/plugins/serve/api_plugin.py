"""What the server of the tests has beside a model: a painter, an encoder, a model that is told."""

from __future__ import annotations

from glmkit import Chunk, Message, Passage, Picture, ToolCall, Usage, hookimpl
from glmkit.plugins import Spec
from glmkit.testing import HashEncoder
from glmkit.types import Progress, StreamedModel


class Scripted(StreamedModel):
    """Calls the tool that it is offered, and says so of its result."""

    name, languages = "scripted", None

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
