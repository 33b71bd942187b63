"""Conversations and answers as OpenAI's protocol writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

from ..errors import UsageError
from ..models.passages import speaks_chinese, with_passages
from ..structured import ResponseFormat
from ..texts import is_unicode, readable, texts_in
from ..types import (
    Chunk,
    FinishReason,
    GenerationOptions,
    Message,
    Passage,
    Reply,
    TokenLogprob,
    ToolCall,
    Usage,
)

Json = dict[str, Any]

OPTIONAL = ("temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop")
"""Fields that are sent only where the user asked for them."""


def model_of(name: str, options: GenerationOptions) -> str:
    """Return the model that a row is for: servers know an adapter as a model of its own.

    :raises UsageError: if several adapters, or one by halves, are asked for.
    """
    adapter = options.adapter
    if adapter is None or isinstance(adapter, str):
        return adapter or name
    if not adapter:
        return name
    if len(adapter) > 1 or set(adapter.values()) != {1.0}:
        raise UsageError(
            f"adapter {dict(adapter)!r}: a server mixes no adapters; serve the mix as a model of "
            "its own and give its name"
        )
    return next(iter(adapter))


def fields_of(options: GenerationOptions) -> Json:
    """Return the fields of a request that say how tokens are picked."""
    given: Json = {name: getattr(options, name) for name in OPTIONAL}
    given["stop"] = list(options.stop) or None
    if options.top_k == 0:
        given["top_k"] = -1  # which every server takes for "all"
    if options.response_format is not None:
        given |= _format(options.response_format)
    if options.tool_choice == "required":  # "auto" goes without saying
        given["tool_choice"] = "required"
    if options.logprobs is not None:
        given |= {"logprobs": True, "top_logprobs": options.logprobs}
    return {name: value for name, value in given.items() if value is not None}


def _format(wanted: ResponseFormat) -> Json:
    """Return the fields that say what an answer must look like; OpenAI has none but for JSON."""
    if wanted.any_object:
        return {"response_format": {"type": "json_object"}}
    if wanted.json_schema is not None:
        named = {"name": "answer", "strict": True, "schema": dict(wanted.json_schema)}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    if wanted.choice:
        return {"structured_outputs": {"choice": list(wanted.choice)}}
    return {"structured_outputs": {"regex": wanted.regex}}


def turns_of(messages: Sequence[Message]) -> Json:
    """Return the fields of a request that hold the conversation, evidence written out."""
    language = "zh" if speaks_chinese(messages[-1].content) else "en"
    calls = _Calls()
    turns = [calls.turn(with_passages(each, language)) for each in messages if not _empty(each)]
    tools = [_offered(tool) for each in messages for tool in each.tools]
    return {"messages": turns, "tools": tools} if tools else {"messages": turns}


def _empty(message: Message) -> bool:
    return message.role == "system" and not message.content


def _offered(tool: Mapping[str, Any]) -> Json:
    return dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)}


class _Calls:
    """Numbers the calls of a conversation, so that their results can name them."""

    def __init__(self) -> None:
        self._made = 0
        self._open: list[str] = []

    def turn(self, message: Message) -> Json:
        """Return one message."""
        if message.role in ("tool", "observation"):
            answered = self._open.pop(0) if self._open else f"call_{max(self._made - 1, 0)}"
            return {"role": "tool", "tool_call_id": answered, "content": message.content}
        turn: Json = {"role": message.role, "content": message.content}
        if message.tool_calls:
            turn["tool_calls"] = [self._call(each) for each in message.tool_calls]
            turn["content"] = message.content or None
        return turn

    def _call(self, call: ToolCall) -> Json:
        name = f"call_{self._made}"
        self._made += 1
        self._open.append(name)
        arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
        return {
            "id": name,
            "type": "function",
            "function": {"name": call.name, "arguments": arguments},
        }


_FINISHES: Mapping[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "refused",
    "sensitive": "refused",
    "abort": "cancelled",
    "cancelled": "cancelled",
    "error": "error",
    "network_error": "error",
}
"""Every other reason is an end of the model's own: ``stop``, ``eos``, a stop text."""


class Reading:
    """Puts an answer together from what the server sends of it, in one piece or in many.

    :param sources: the passages that the question was asked with.
    """

    def __init__(self, sources: tuple[Passage, ...] = ()) -> None:
        self._sources = sources
        self._usage: Usage | None = None
        self._finish: FinishReason | None = None
        self._calls: list[_Call] = []
        self._half = ""
        self._odds: list[TokenLogprob] = []
        self.begun = False
        """Whether anything of the answer has come."""

    @property
    def ended(self) -> bool:
        """Whether the server said why the answer ends."""
        return self._finish is not None

    def push(self, piece: Json) -> str:
        """Take a piece, or the whole; return the text that it adds."""
        self._usage = _usage(piece.get("usage")) or self._usage
        choice = _first_choice(piece)
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            self._finish = _FINISHES.get(reason, "stop")
        self._odds += _odds(_mapping(choice.get("logprobs")).get("content"))
        said = _mapping(choice.get("delta")) or _mapping(choice.get("message"))
        text = _text(said.get("content"))
        if not text and isinstance(said.get("refusal"), str):
            text, self._finish = said["refusal"], "refused"
        self._take_calls(said)
        self.begun = self.begun or bool(text or self._calls)
        return self._whole(text)

    def _whole(self, text: str) -> str:
        """Join halves of characters that came in two pieces; replace those that stay alone."""
        text = self._half + text
        self._half = ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        if text.isascii():
            return text
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def told(self) -> tuple[TokenLogprob, ...]:
        """Return the tokens whose odds have come since the last call."""
        told, self._odds = tuple(self._odds), []
        return told

    def _take_calls(self, said: Json) -> None:
        old = said.get("function_call")
        calls = [{"index": 0, "function": old}] if isinstance(old, dict) else []
        for at, each in enumerate([*calls, *_sequence(said.get("tool_calls"))]):
            self._take_call(_mapping(each), at)

    def _take_call(self, piece: Json, at: int) -> None:
        index, key = piece.get("index"), piece.get("id") or None
        told = index is not None or key is not None or at == 0
        found = [each for each in self._calls if told and each.continues(index, key)]
        if not found:
            self._calls.append(_Call(index, key))
            found = self._calls
        found[-1].take(_mapping(piece.get("function")))

    def finish(self) -> Iterator[Chunk]:
        """Yield the rest: calls that are none as text, and the chunk that closes the answer."""
        calls, rest = [], "\ufffd" if self._half else ""
        for each in self._calls:
            call = each.call()
            if call is None:
                rest += each.text()
            else:
                calls.append(call)
        if rest:
            yield Chunk(rest)
        reason: FinishReason = self._finish or "stop"
        if calls and reason == "stop":
            reason = "tool_calls"
        elif reason == "tool_calls" and not calls:
            reason = "stop"
        usage = self._usage or Usage()
        yield Chunk("", reason, usage, self._sources, tuple(calls), logprobs=self.told())


def whole_reply(answer: Json, sources: tuple[Passage, ...]) -> Reply:
    """Return an answer that came in one piece."""
    reading = Reading(sources)
    text = Chunk(reading.push(answer), logprobs=reading.told())
    return Reply.join([text, *reading.finish()])


class _Call:
    """A call of which the name comes first and the arguments bit by bit."""

    def __init__(self, index: object, key: object) -> None:
        self._index, self._key = index, key
        self._name = ""
        self._arguments: list[str] = []

    def continues(self, index: object, key: object) -> bool:
        """Tell whether a piece belongs here: some servers number calls, some name them."""
        if key is not None and self._key is not None and key != self._key:
            return False
        return index is None or self._index is None or index == self._index

    def take(self, function: Json) -> None:
        """Take a piece."""
        name, arguments = function.get("name"), function.get("arguments")
        if isinstance(name, str) and name != self._name:
            self._name += name
        if isinstance(arguments, Mapping):
            arguments = json.dumps(arguments)
        if isinstance(arguments, str):
            self._arguments.append(arguments)

    def text(self) -> str:
        """Return what was called, as text."""
        return readable(f"{self._name}\n{''.join(self._arguments)}")

    def call(self) -> ToolCall | None:
        """Return the call; None where its arguments are no JSON object."""
        name, _, arguments = self.text().partition("\n")
        try:
            call = ToolCall.of({"name": name, "arguments": arguments})
        except UsageError:
            return None
        return call if name and all(map(is_unicode, texts_in(call.arguments))) else None


def _usage(value: object) -> Usage | None:
    counts = _mapping(value)
    found = [counts.get(each) for each in ("prompt_tokens", "completion_tokens")]
    good = [each if type(each) is int and each >= 0 else None for each in found]
    if good == [None, None]:
        return None
    return Usage(good[0] or 0, good[1] or 0)


def _odds(content: object) -> list[TokenLogprob]:
    """Return how likely tokens were; what a server says in another way is left out."""
    told = []
    for each in map(_mapping, _sequence(content)):
        token, logprob = each.get("token"), _finite(each.get("logprob"))
        if isinstance(token, str) and logprob is not None:
            top = tuple(_odds(each.get("top_logprobs")))
            told.append(TokenLogprob(readable(token), logprob, _bytes(each.get("bytes")), top))
    return told


def _finite(value: object) -> float | None:
    """Return a number that JSON has; Python reads others, too."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if isfinite(value) else None
    except OverflowError:
        return None


def _bytes(value: object) -> bytes | None:
    numbers = [each for each in _sequence(value) if type(each) is int and 0 <= each < _BYTES]
    return bytes(numbers) if isinstance(value, list) and len(numbers) == len(value) else None


_BYTES = 256


def _first_choice(piece: Json) -> Json:
    choices = [_mapping(each) for each in _sequence(piece.get("choices"))]
    return next((each for each in choices if each.get("index", 0) in (0, None)), {})


def _text(content: object) -> str:
    """Return what is said: a text, or the texts among several parts."""
    if isinstance(content, str):
        return content
    parts = [_mapping(each) for each in _sequence(content)]
    return "".join(each["text"] for each in parts if isinstance(each.get("text"), str))


def _mapping(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _sequence(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()
