"""A conversation: history, context from plugins, and one stream of chunks per turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from .types import Chunk, GenerationOptions, Message, Passage, Reply, Request, Usage

if TYPE_CHECKING:
    from .plugins import Plugins
    from .types import ChatModel

REFUSALS: Mapping[str, str] = {
    "zh": "基于本地知识搜索没有找到答案",
    "en": "No answer was found in the local knowledge base.",
}
_CJK_SHARE = 0.2


class Policy(Enum):
    """What a turn does when no plugin offers a passage."""

    OPTIONAL = "optional"
    """Answer; context is a bonus."""
    REFUSE = "refuse"
    """Say that nothing was found, without calling the model."""
    FALLBACK = "fallback"
    """Answer from the model alone; the caller says so."""


def language_of(text: str) -> str:
    """Return ``"zh"`` or ``"en"``, by the share of Chinese characters among the letters.

    A few Latin names inside a Chinese question keep it Chinese: a Chinese character weighs about as
    much as a Latin word, so a fifth of the letters is enough.
    """
    letters = [each for each in text if each.isalpha()]
    chinese = sum("\u3400" <= each <= "\u9fff" for each in letters)
    return "zh" if letters and chinese / len(letters) >= _CJK_SHARE else "en"


class Chat:
    """A conversation with one model.

    :param model: who answers.
    :param plugins: who is asked for context; None for nobody.
    :param system: the system message, if any.
    :param tools: functions that the model may ask for, as JSON schemas; a reply with
        ``tool_calls`` is answered by ``stream(Message("observation", result))``.
    :param options: how to pick tokens.
    :param policy: what to do when no plugin offers a passage.
    :param settings: what each turn asks of single plugins, by plugin name.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        plugins: Plugins | None = None,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        options: GenerationOptions | None = None,
        policy: Policy = Policy.OPTIONAL,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.options = options or GenerationOptions()
        self.policy = policy
        self.settings: Mapping[str, Any] = settings or {}
        self._plugins = plugins
        first = Message("system", system or "", tools=tuple(tools))
        self._system = [first] if system or tools else []
        self.history: list[Message] = []
        """The turns so far, without passages: evidence belongs to the question it was found for."""

    def reset(self) -> None:
        """Forget the turns so far."""
        self.history.clear()

    def stream(self, question: str | Message) -> Iterator[Chunk]:
        """Yield the answer to ``question``; the last chunk carries reason, usage and sources.

        :param question: what the user asks, or any other message to answer.

        Closing the iterator cancels the answer; what was said until then stays in the history.
        """
        asked = Message("user", question) if isinstance(question, str) else question
        request = Request((*self._system, *self.history, asked), self.options, self.settings)
        reply = Reply("", "error", Usage())
        said: list[str] = []
        try:
            sources = self._context(request)
            for chunk in self._answer(request, sources):
                said.append(chunk.text)
                if chunk.finish_reason is not None:
                    chunk = replace(chunk, sources=sources)
                    reply = Reply.join([replace(chunk, text="".join(said))])
                yield chunk
        except (GeneratorExit, KeyboardInterrupt):
            reply = Reply("".join(said), "cancelled", Usage(), sources)
            raise
        finally:
            self._done(request, reply)

    def reply(self, question: str | Message) -> Reply:
        """Return the whole answer to ``question``."""
        return Reply.join(self.stream(question))

    def _context(self, request: Request) -> tuple[Passage, ...]:
        if self._plugins is None or request.messages[-1].role != "user":
            return ()
        offers: list[list[Passage]] = self._plugins.hook.extra_context(request=request)
        merged = [passage for offer in offers for passage in offer]
        return tuple(sorted(merged, key=lambda passage: -passage.score))

    def _answer(self, request: Request, sources: tuple[Passage, ...]) -> Iterator[Chunk]:
        asked = request.messages[-1].role == "user"
        if asked and not sources and self.policy is Policy.REFUSE:
            yield Chunk(REFUSALS[language_of(request.question)], "refused", Usage())
            return
        *before, question = request.messages
        yield from self.model.stream([*before, replace(question, passages=sources)], self.options)

    def _done(self, request: Request, reply: Reply) -> None:
        if reply.finish_reason != "error":
            answer = Message("assistant", reply.text, tool_calls=reply.tool_calls)
            self.history += [request.messages[-1], answer]
        if self._plugins is not None:
            self._plugins.hook.response_done(request=request, reply=reply)
