"""What clients send, as OpenAI's API has it, and what becomes of it.

What a field asks for is done or refused, never silently left out, where an answer would differ.
What only OpenAI has a use for (``user``, ``metadata``, ``store``...) is let pass; any other field
that is not known is refused, unless it says what is done anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from glmkit import GenerationOptions, Message, ToolCall, UsageError

from ..http import UnsupportedError
from .wanted import wanted_format

DEFAULT = "default"
_MOST = 2**31 - 1
_SEED = 2**63
Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=_MOST)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow", strict=False)


class _Request(_Body):
    """What a whole request shares: nobody's field is left out in silence."""

    def check(self) -> None:
        """Refuse what would be left out.

        :raises UnsupportedError: naming it.
        """
        for name, value in (self.model_extra or {}).items():
            if name not in _HARMLESS and value not in (None, *_NEUTRAL.get(name, ())):
                raise UnsupportedError(f"{name!a:.64}"[1:-1], _instead(name, type(self)))


_HARMLESS = frozenset(
    (
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prediction"),
        *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
    )
)
"""What only OpenAI has a use for, and what changes no answer."""
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "parallel_tool_calls": (True,),
    "function_call": ("auto", "none"),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "min_p": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "skip_special_tokens": (True,),
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "output_format": ("png",),
    "quality": ("auto", "standard"),
    "stream": (False,),
    "partial_images": (0,),
}
"""What some other fields may say, as it is what is done anyway."""


def _instead(name: str, kind: type[BaseModel]) -> str:
    close = get_close_matches(name, kind.model_fields, n=1)
    return f"did you mean {close[0]}?" if close else "leave it out"


class Part(_Body):
    """A part of a message."""

    type: str
    text: str | None = None


class ChatMessage(_Body):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def as_message(self) -> Message:
        """Return what models read.

        :raises UnsupportedError: if there are pictures or sounds in it.
        :raises UsageError: if it says nothing that could be read.
        """
        calls = tuple(map(ToolCall.of, self.tool_calls or ()))
        content = self.content
        if isinstance(content, list):
            content = "".join(map(_text_of, content))
        if content is None and not calls:
            raise UsageError(f"a message with role {self.role!r} needs content")
        return Message(_ROLES[self.role], content or "", tool_calls=calls)


_ROLES: dict[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def _text_of(part: Part) -> str:
    if part.type != "text" or part.text is None:
        raise UnsupportedError("messages.content", "models read text here; send parts of type text")
    return part.text


class Function(_Body):
    """A function that a model may ask for."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(_Body):
    """A tool; only functions are there."""

    type: Literal["function"] = "function"
    function: Function

    def as_schema(self) -> dict[str, Any]:
        """Return what models read."""
        function = self.function.model_dump(include={"name", "description", "parameters"})
        told = {key: value for key, value in function.items() if value is not None}
        return {"type": "function", "function": told}


class StreamOptions(_Body):
    """How to stream."""

    include_usage: bool | None = None


class _Sampling(_Request):
    """What says how tokens are picked, alike for chats and texts."""

    model: str = DEFAULT
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Count | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=_MOST)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=100)] | None = None
    seed: Annotated[int, Field(ge=-_SEED, lt=_SEED)] | None = None
    stop: str | list[str] | None = None
    frequency_penalty: Number | None = None
    presence_penalty: Number | None = None
    logit_bias: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None

    @property
    def wanted_tokens(self) -> int | None:
        """Most new tokens, where the client says."""
        return self.max_tokens

    @property
    def choices(self) -> int:
        """Answers that are asked for."""
        return 1 if self.n is None else self.n

    def check(self) -> None:
        """Refuse what would be left out.

        :raises UnsupportedError: naming it.
        """
        super().check()
        for name in ("frequency_penalty", "presence_penalty"):
            if getattr(self, name):
                raise UnsupportedError(name, "use repetition_penalty, above 1")
        if self.logit_bias:
            raise UnsupportedError("logit_bias", "leave it out")

    def beyond(self) -> dict[str, Any]:
        """Return the options that chats and texts ask for in ways of their own.

        :raises UsageError: if one is no such thing.
        """
        guided = {name: getattr(self, f"guided_{name}") for name in ("json", "regex", "choice")}
        wanted = wanted_format(self.response_format, self.structured_outputs, guided)
        return {"response_format": wanted}

    def options(self, default: GenerationOptions, *, most: int) -> GenerationOptions:
        """Return how to pick tokens; what is not said is as configured.

        :param most: new tokens that may be asked for.
        :raises UsageError: if a value is out of range.
        """
        self.check()
        tokens = self.wanted_tokens
        if tokens is not None and tokens > most:
            raise UsageError(f"max_tokens may be {most} here, got {tokens}")
        given: dict[str, Any] = {
            "max_tokens": tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == -1 else self.top_k,
            "repetition_penalty": self.repetition_penalty,
            "seed": self.seed,
        }
        given |= self.beyond()
        given = {name: value for name, value in given.items() if value is not None}
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > _STOPS:
            raise UsageError(f"stop may be {_STOPS} texts, got {len(stops)}")
        if stops:
            given["stop"] = tuple(stops)
        options = replace(default, **given)
        return replace(options, max_tokens=min(options.max_tokens, most))


_STOPS = 16


class ChatRequest(_Sampling):
    """A conversation to answer."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    functions: list[Any] | None = None
    modalities: list[str] | None = None

    @property
    def wanted_tokens(self) -> int | None:
        """Most new tokens, under its newer name or its older one."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def check(self) -> None:
        """Refuse what would be left out."""
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise UsageError("top_logprobs goes with logprobs: true; say both or neither")
        if self.functions:
            raise UnsupportedError("functions", "send them as tools")
        if self.modalities and set(self.modalities) != {"text"}:
            raise UnsupportedError("modalities", "answers are text")

    def beyond(self) -> dict[str, Any]:
        """Return the options that chats ask for in ways of their own."""
        forced = self.tool_choice not in (None, "auto", "none")
        odds = (self.top_logprobs or 0) if self.logprobs else None
        tool_choice = "required" if forced else None
        return {**super().beyond(), "logprobs": odds, "tool_choice": tool_choice}

    def conversation(self) -> list[Message]:
        """Return what models read, the tools that are on offer among it."""
        messages = [each.as_message() for each in self.messages]
        tools = tuple(each.as_schema() for each in self.offered())
        if not tools:
            return messages
        if messages[0].role == "system":
            return [replace(messages[0], tools=tools), *messages[1:]]
        return [Message("system", "", tools=tools), *messages]

    def offered(self) -> Sequence[Tool]:
        """Return the tools that the choice leaves.

        The name of one narrows the offer to it.

        :raises UsageError: if a tool is chosen that is not there.
        """
        tools, choice = self.tools or [], self.tool_choice
        if choice == "none":
            return []
        if choice is None or choice in ("auto", "required"):
            return tools
        function = choice.get("function") if isinstance(choice, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        chosen = [each for each in tools if each.function.name == name]
        if not chosen:
            raise UsageError(
                "tool_choice must be auto, none, required or one of the tools, as "
                '{"type": "function", "function": {"name": ...}}'
            )
        return chosen


class CompletionRequest(_Sampling):
    """A text to go on with."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def beyond(self) -> dict[str, Any]:
        """Return the options that texts ask for in ways of their own."""
        return {**super().beyond(), "logprobs": self.logprobs}

    def check(self) -> None:
        """Refuse what would be left out."""
        super().check()
        if self.logprobs is not None and self.echo:
            raise UnsupportedError("logprobs", "tokens of the prompt come without; leave echo out")
        if self.suffix:
            raise UnsupportedError("suffix", "texts are gone on with at their end only")
        if self.best_of is not None and self.best_of != self.choices:
            raise UnsupportedError("best_of", "ask for n answers")

    def texts(self) -> list[str]:
        """Return the texts.

        :raises UnsupportedError: if they are tokens, of whatever vocabulary.
        :raises UsageError: if there is none.
        """
        return _texts("prompt", self.prompt)


class EmbeddingRequest(_Request):
    """Texts to embed."""

    model: str = DEFAULT
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    input_type: Literal["query", "passage"] = "passage"
    """What the texts are: some encoders mark questions and documents differently."""

    def texts(self) -> list[str]:
        """Return the texts.

        :raises UnsupportedError: if they are tokens, of whatever vocabulary.
        :raises UsageError: if there is none.
        """
        return _texts("input", self.input)


def _texts(name: str, value: str | list[str] | list[int] | list[list[int]]) -> list[str]:
    if isinstance(value, str):
        return [value]
    texts = [each for each in value if isinstance(each, str)]
    if len(texts) < len(value):
        raise UnsupportedError(name, "send text, not tokens of another vocabulary")
    if not texts:
        raise UsageError(f"{name} must hold at least one text")
    return texts


class ImageRequest(_Request):
    """A picture to draw."""

    prompt: str = Field(min_length=1, max_length=4000)
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: str | None = Field(None, max_length=20)
    response_format: Literal["b64_json", "url"] | None = None
    negative_prompt: str | None = Field(None, max_length=4000)
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance: Annotated[Number, Field(ge=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=0, lt=_SEED)] | None = None
