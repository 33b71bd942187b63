"""A tokenizer of transformers, and its chat template, behind our own interfaces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...errors import MissingExtraError, UsageError
from ...models.files import read_json
from ...models.formats import FORMATS, ChatFormat, Piece, hermes
from ...models.layouts import family_of
from ...models.tokenizers import Tokenizer, check_texts
from ...models.vocabularies.described import speller
from ...types import Message, ToolCall
from . import OURS
from .typed import Hidden, Names, Rendered, broken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Wrapped(Tokenizer):
    """A tokenizer of transformers behind our own interface."""

    def __init__(self, inner: PreTrainedTokenizerBase) -> None:
        self.inner = inner
        self.names = Names(inner)
        backend = getattr(inner, "backend_tokenizer", None)
        self._spell = speller(backend) if backend is not None else None
        self._added = inner.added_tokens_decoder
        self.size = len(inner)
        known = {**inner.get_added_vocab(), **_named(inner, inner.all_special_tokens)}
        self.specials = known
        self.bos_id, self.eos_id = inner.bos_token_id, inner.eos_token_id
        pads = (inner.pad_token_id, inner.eos_token_id)
        self.pad_id = next((each for each in pads if each is not None), 0)

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Return the ids of ``text``, without prefix and suffix.

        Names in what a template wrote (:class:`Rendered`) are always parsed.
        """
        check_texts((text,))
        if specials or isinstance(text, Rendered):
            return self._ids(text, split=False)
        ids = self._ids(text, split=True)
        if self.names.ids.isdisjoint(ids):
            return ids
        # The vocabulary knows the name as a word, or as a token that it does not call special.
        parts = self.names.parted(text)
        return [number for part in parts for number in self._ids(part, split=True)]

    def _ids(self, text: str, *, split: bool) -> list[int]:
        ids = self.inner.encode(str(text), add_special_tokens=False, split_special_tokens=split)
        return cast("list[int]", ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        return [self.encode(each) for each in texts]

    def token(self, number: int) -> str:
        """Return what the vocabulary calls an id."""
        name = self.inner.convert_ids_to_tokens(number)
        if not isinstance(name, str):
            raise IndexError(f"no token has the id {number}")
        return name

    def spelling(self, number: int) -> bytes | None:
        """Return what an id adds to a text, in UTF-8; None for special tokens.

        :raises UsageError: if the vocabulary is not of a kind whose tokens are known in bytes.
        """
        if self._spell is None:
            raise UsageError(
                "what this model's tokens are in bytes is not known, so its answers are kept to no "
                "form and their tokens not told of; leave response_format, tool_choice and "
                "logprobs out"
            )
        added = self._added.get(number)
        if added is not None:
            return None if added.special else added.content.encode()
        name = self.inner.convert_ids_to_tokens(number) if number < self.size else None
        return self._spell(name) if isinstance(name, str) else None

    @cached_property
    def lead(self) -> str:
        """As every vocabulary's; nothing where tokens are not known in bytes."""
        return "" if self._spell is None else super().lead

    def raw(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of ``ids``."""
        return cast(
            str,
            self.inner.decode(
                list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
            ),
        )


def _named(inner: PreTrainedTokenizerBase, names: Iterable[str]) -> dict[str, int]:
    return {each: cast(int, inner.convert_tokens_to_ids(each)) for each in names}


def template_format(folder: Path, tokenizer: Wrapped) -> ChatFormat | None:
    """Return the chat format that the tokenizer's template is; None where it has none.

    Answers of GLMs are read as their generation writes them; of others', calls as Hermes writes
    them where their template does.
    """
    template = tokenizer.inner.chat_template
    if not template:
        return None
    pieces = partial(_written, tokenizer, json.dumps(template))
    raw = read_json(folder / "config.json")
    family = family_of(folder, raw) if raw.get("model_type") in OURS else None
    known = FORMATS.get(family or "")
    if known is None:
        if _speaks_hermes(json.dumps(template)):
            return ChatFormat("template", pieces, (), hermes.reader, calls=hermes.calls)
        return ChatFormat("template", pieces, stops=())
    return ChatFormat(
        "template",
        pieces,
        known.stops,
        known.reader,
        known.skip_special,
        known.temperature,
        known.top_p,
        opening=known.opening,
        calls=known.calls,
    )


def _speaks_hermes(template: str) -> bool:
    """Tell whether calls are JSON between marks; some models write XML there."""
    return hermes.OPEN in template and "arguments" in template and "<function=" not in template


def _written(
    tokenizer: Wrapped, template: str, messages: Sequence[Message], system: str
) -> list[Piece]:
    """Write a conversation by the template; what people typed stays text.

    :raises UsageError: if the template refuses it.
    :raises MissingExtraError: if jinja2 is not installed.
    """
    if system and messages[0].role != "system":
        messages = [Message("system", system), *messages]
    hidden = Hidden(tokenizer.names)
    text = _rendered(tokenizer, template, hidden.messages(messages))
    if not hidden:
        return [Rendered(text)]
    if hidden.survived(text):
        return tokenizer.names.pieces(text, hidden)
    return [Rendered(_rendered(tokenizer, template, broken(messages, tokenizer.names)))]


def _rendered(tokenizer: Wrapped, template: str, messages: Sequence[Message]) -> str:
    try:
        from jinja2 import TemplateError
    except ImportError as error:
        raise MissingExtraError("a chat template", "jinja2", "hf") from error
    tools: list[Any] = [dict(tool) for message in messages for tool in message.tools]
    turns = [turn for each in messages for turn in _turns(each, template)]
    try:
        text = tokenizer.inner.apply_chat_template(
            turns, tools=tools or None, add_generation_prompt=True, tokenize=False
        )
    except (TemplateError, TypeError) as error:
        raise UsageError(f"the model's chat template refuses this conversation: {error}") from error
    return cast(str, text)


def _turns(message: Message, template: str) -> Iterator[dict[str, Any]]:
    """Yield a message in the form that a template reads."""
    ours = "observation" in template
    results = message.role in ("tool", "observation")
    role = ("observation" if ours else "tool") if results else message.role
    calls = message.tool_calls
    turn: dict[str, Any] = {"role": role, "content": message.content}
    if message.tools and ours:
        turn["tools"] = [dict(each) for each in message.tools]
    if calls and "tool_calls" in template:
        turn["tool_calls"] = [_called(each) for each in calls]
        calls = ()
    if message.content or not calls:
        yield turn
    for each in calls:
        asked = json.dumps(dict(each.arguments), ensure_ascii=False)
        yield {"role": role, "metadata": each.name, "content": asked}


def _called(call: ToolCall) -> dict[str, Any]:
    return {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
