"""A conversation: history, context from plugins, and one stream of chunks per turn."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from .errors import GlmkitError, UnknownNameError, UsageError
from .generation import check_honoured
from .tools import Tool
from .types import (
    Chunk,
    GenerationOptions,
    Message,
    Passage,
    Reply,
    Request,
    TokenLogprob,
    ToolCall,
    Usage,
)

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
    :param tools: functions that the model may ask for. A :class:`~glmkit.tools.Tool` is run here,
        and the model goes on with what it found. A JSON schema is the caller's to run: a reply with
        ``tool_calls`` is answered by ``stream(Message("observation", result))``.
    :param options: how to pick tokens.
    :param policy: what to do when no plugin offers a passage.
    :param settings: what each turn asks of single plugins, by plugin name.
    :param rounds: how often a turn's answer may ask for tools that are run here.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        plugins: Plugins | None = None,
        system: str | None = None,
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        options: GenerationOptions | None = None,
        policy: Policy = Policy.OPTIONAL,
        settings: Mapping[str, Any] | None = None,
        rounds: int = 4,
    ) -> None:
        self.model = model
        self.options = options or GenerationOptions()
        self.policy = policy
        self.settings: Mapping[str, Any] = settings or {}
        self.rounds = rounds
        self._plugins = plugins
        _check_tools(tools)
        self._tools = {each.name: each for each in tools if isinstance(each, Tool)}
        offered = tuple(each.schema if isinstance(each, Tool) else each for each in tools)
        self._foreign = {_name_of(each) for each in tools} - set(self._tools)
        first = Message("system", system or "", tools=offered)
        self._system = [first] if system or tools else []
        self.history: list[Message] = []
        """The turns so far, without passages: evidence belongs to the question it was found for."""

    def reset(self) -> None:
        """Forget the turns so far."""
        self.history.clear()

    def stream(self, question: str | Message) -> Iterator[Chunk]:
        """Yield the answer to ``question``; the last chunk carries reason, usage and sources.

        :param question: what the user asks, or any other message to answer.
        :raises UsageError: if the options ask for what the model does not know.

        Closing the iterator cancels the answer; what was said until then stays in the history.
        """
        asked = Message("user", question) if isinstance(question, str) else question
        check_honoured(self.model, self.options)
        request = Request((*self._system, *self.history, asked), self.options, self.settings)
        reply = Reply("", "error", Usage())
        turn = _Turn()
        try:
            sources = self._context(request)
            for chunk in self._answer(request, sources, turn):
                turn.say(chunk)
                if chunk.finish_reason is not None:
                    chunk = replace(chunk, sources=sources)
                    whole = replace(chunk, text=turn.whole, logprobs=tuple(turn.odds))
                    reply = Reply.join([whole])
                yield chunk
        except (GeneratorExit, KeyboardInterrupt):
            reply = Reply(turn.whole, "cancelled", Usage(), sources, logprobs=tuple(turn.odds))
            raise
        finally:
            self._done(request, reply, turn)

    def reply(self, question: str | Message) -> Reply:
        """Return the whole answer to ``question``."""
        return Reply.join(self.stream(question))

    def _context(self, request: Request) -> tuple[Passage, ...]:
        if self._plugins is None or request.messages[-1].role != "user":
            return ()
        offers: list[list[Passage]] = self._plugins.hook.extra_context(request=request)
        merged = [passage for offer in offers for passage in offer]
        return tuple(sorted(merged, key=lambda passage: -passage.score))

    def _answer(
        self, request: Request, sources: tuple[Passage, ...], turn: _Turn
    ) -> Iterator[Chunk]:
        asked = request.messages[-1].role == "user"
        if asked and not sources and self.policy is Policy.REFUSE:
            yield Chunk(REFUSALS[language_of(request.question)], "refused", Usage())
            return
        *before, question = request.messages
        yield from self._converse([*before, replace(question, passages=sources)], turn)

    def _converse(self, messages: list[Message], turn: _Turn) -> Iterator[Chunk]:
        """Yield the answer, running the tools that it asks for, ``rounds`` times at most.

        Only what the model itself asks for is run: passages and results are text to it.
        """
        usage, left, options = Usage(), self.rounds, self.options
        while True:
            last = yield from self._ask([*messages, *turn.made], options)
            if last is None:
                return
            usage = _sum(usage, last.usage)
            if left < 0 or not self._ours(last.tool_calls):
                yield replace(last, usage=usage)
                return
            yield Chunk(last.text, tool_calls=last.tool_calls, logprobs=last.logprobs)
            found = tuple(self._run(call, allowed=left > 0) for call in last.tool_calls)
            turn.close(last.tool_calls, found)
            yield Chunk("", observations=found)
            left -= 1
            options = replace(options, tool_choice=None)  # what was required has been done

    def _ask(
        self, messages: list[Message], options: GenerationOptions
    ) -> Generator[Chunk, None, Chunk | None]:
        """Yield one answer but for its last chunk, which is the result."""
        for chunk in self.model.stream(messages, options):
            if chunk.finish_reason is not None:
                return chunk
            yield chunk
        return None

    def _ours(self, calls: tuple[ToolCall, ...]) -> bool:
        """Tell whether calls are run here: there are tools, and no call is for the caller's."""
        return bool(calls and self._tools) and not self._foreign & {each.name for each in calls}

    def _run(self, call: ToolCall, *, allowed: bool) -> str:
        """Return what a call found, or why it failed: the model may mend it."""
        tool = self._tools.get(call.name)
        try:
            if not allowed:
                raise UsageError(
                    f"this question has had its {self.rounds} rounds of calls; answer it now"
                )
            if tool is None:
                raise UnknownNameError("tool", call.name, self._tools)
            return tool.call(call.arguments)
        except GlmkitError as error:
            return f"error: {error}"

    def _done(self, request: Request, reply: Reply, turn: _Turn) -> None:
        if reply.finish_reason != "error":
            answer = Message("assistant", turn.text, tool_calls=reply.tool_calls)
            self.history += [request.messages[-1], *turn.made, answer]
        if self._plugins is not None:
            self._plugins.hook.response_done(request=request, reply=reply)


@dataclass
class _Turn:
    """What came of one question so far."""

    text: str = ""
    """What was said since the last call."""
    made: list[Message] = field(default_factory=list)
    """The calls before, each with what it found."""
    whole: str = ""
    """All that was said."""

    odds: list[TokenLogprob] = field(default_factory=list)
    """How likely the tokens of all that was."""

    def say(self, chunk: Chunk) -> None:
        """Take a piece of the answer."""
        self.text += chunk.text
        self.whole += chunk.text
        self.odds += chunk.logprobs

    def close(self, calls: tuple[ToolCall, ...], found: tuple[str, ...]) -> None:
        """Keep calls that were run."""
        self.made.append(Message("assistant", self.text, tool_calls=calls))
        self.made += [Message("observation", each) for each in found]
        self.text = ""


def _sum(before: Usage, more: Usage | None) -> Usage:
    more = more or Usage()
    return Usage(
        before.prompt_tokens + more.prompt_tokens,
        before.completion_tokens + more.completion_tokens,
    )


def _check_tools(tools: Sequence[object]) -> None:
    """Refuse what is no tool, and two of one name, of which a model could call but one."""
    names: set[str] = set()
    for each in tools:
        if not isinstance(each, Tool | Mapping):
            raise UsageError(
                f"a tool is a Tool or a JSON schema, got {each!r:.80}; make one of a function by "
                "Tool.of(function)"
            )
        name = _name_of(each)
        if name in names:
            raise UsageError(f"two tools are called {name!r}; offer one, or name them apart")
        names.add(name)


def _name_of(tool: Tool | Mapping[str, Any]) -> str:
    if isinstance(tool, Tool):
        return tool.name
    inner = tool.get("function", tool)
    inner = inner if isinstance(inner, Mapping) else {}
    return str(inner.get("name", tool.get("type", "")))
