"""What people type stays text in a chat template: no name in it becomes the token.

A template yields one text, in which the tokenizer reads names of special tokens wherever they come
from. Here those in what people typed are hidden from the template behind placeholders, and the
stretch around them is encoded as text. A conversation without any is encoded as a whole, unchanged.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...errors import UsageError
from ...models.formats import Piece
from ...types import Message, ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKER = re.compile(r"<[|｜]\S+[|｜]>")
"""How tokens that steer are called, also where a vocabulary does not call them special."""


class Rendered(str):
    """A text that a template wrote: names of special tokens in it are these tokens."""


class Names:
    """The names in a tokenizer's vocabulary that text must not be taken for."""

    def __init__(self, inner: PreTrainedTokenizerBase) -> None:
        added = {each.content: each for each in inner.added_tokens_decoder.values()}
        template = json.dumps(inner.chat_template or "", ensure_ascii=False)
        special = {*inner.all_special_tokens, *(n for n, each in added.items() if each.special)}
        steering = {n for n in added if n.strip() and (n in template or _MARKER.fullmatch(n))}
        self.special = _pattern(special)
        self.all = _pattern(special | steering)
        numbers: Any = [inner.convert_tokens_to_ids(each) for each in special | steering]
        self.ids = frozenset(numbers) - {inner.unk_token_id}
        """Of the names; what a vocabulary has no word for may be unknown all the same."""
        self._eats_left = frozenset(n for n, each in added.items() if each.lstrip)
        self._eats_right = frozenset(n for n, each in added.items() if each.rstrip)
        normalised = any(each.normalized for n, each in added.items() if n in special | steering)
        backend = getattr(inner, "backend_tokenizer", None)
        self._normalizer = getattr(backend, "normalizer", None) if normalised else None

    def refuse_hidden(self, text: str) -> None:
        """Refuse a text that gets a name by the vocabulary's own rewriting, such as full width.

        :raises UsageError: naming it.
        """
        if self._normalizer is None:
            return
        found = self.all.search(self._normalizer.normalize_str(self.all.sub(" ", text)))
        if found is not None:
            raise UsageError(
                f"a text is read as the special token {found[0]!r} by this model's vocabulary; "
                "write it in another way"
            )

    def parted(self, text: str) -> Iterator[str]:
        """Yield a text cut within each name, so that none is left."""
        end = 0
        for found in self.all.finditer(text):
            yield text[end : found.start() + 1]
            end = found.start() + 1
        yield text[end:]

    def pieces(self, text: str, hidden: Hidden) -> list[Piece]:
        """Return a rendered text as pieces: stretches in which something is hidden, and the rest.

        A stretch reaches from one token of the template to the next, as the tokenizer cuts.
        """
        parts = self.all.split(text)
        names = ["", *parts[1::2], ""]
        pieces: list[Piece] = []
        plain = ""
        for at, stretch in enumerate(parts[::2]):
            if hidden.within(stretch):
                # What the tokens beside it would have swallowed.
                stretch = stretch.lstrip() if names[at] in self._eats_right else stretch
                stretch = stretch.rstrip() if names[at + 1] in self._eats_left else stretch
                pieces += [Rendered(plain), hidden.restored(stretch)]
                plain = names[at + 1]
            else:
                plain += stretch + names[at + 1]
        return [each for each in (*pieces, Rendered(plain)) if each]


def _pattern(names: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


class Hidden:
    """The names in one conversation, each behind a placeholder that nobody can guess."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._secret = secrets.token_hex(16)
        self._found: dict[str, str] = {}
        self._placeholder = re.compile(f"{self._secret}q[0-9]+q")

    def __bool__(self) -> bool:
        """Tell whether anything is hidden."""
        return bool(self._found)

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages with the names in their texts hidden.

        What a model answered may hold tokens that are not special, such as the ends of its
        thoughts, which templates look for: those stay.
        """
        return [
            rewritten(each, self._hide_special if each.role == "assistant" else self._hide)
            for each in messages
        ]

    def _hide(self, text: str) -> str:
        self._names.refuse_hidden(text)
        return self._names.all.sub(self._put, text)

    def _hide_special(self, text: str) -> str:
        self._names.refuse_hidden(text)
        return self._names.special.sub(self._put, text)

    def _put(self, found: re.Match[str]) -> str:
        placeholder = f"{self._secret}q{len(self._found)}q"
        self._found[placeholder] = found[0]
        return placeholder

    def within(self, text: str) -> bool:
        """Tell whether something is hidden in a rendered text."""
        return self._placeholder.search(text) is not None

    def survived(self, text: str) -> bool:
        """Tell whether every placeholder came through the template, and nothing cut one up."""
        left = self._placeholder.sub("", text)
        return self._secret[:8] not in left.casefold() and all(each in text for each in self._found)

    def restored(self, text: str) -> str:
        """Return a rendered text with the names back in their places."""
        return self._placeholder.sub(lambda found: self._found[found[0]], text)


def broken(messages: Sequence[Message], names: Names) -> list[Message]:
    """Return messages with a space in every name, for templates that rewrite what they are given.

    :raises UsageError: if a name is left all the same.
    """

    def rewrite(text: str) -> str:
        spaced = names.all.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
        if names.all.search(spaced):
            raise UsageError(
                f"this model's chat template rewrites what it is given, and {text!r} holds a "
                "special token that cannot be written as text; leave it out"
            )
        return spaced

    def rewrite_own(text: str) -> str:
        return rewrite(text) if names.special.search(text) else text

    return [
        rewritten(each, rewrite_own if each.role == "assistant" else rewrite) for each in messages
    ]


def rewritten(message: Message, rewrite: Callable[[str], str]) -> Message:
    """Return a message with every text in it rewritten."""
    calls = tuple(
        ToolCall(rewrite(call.name), _within(call.arguments, rewrite))
        for call in message.tool_calls
    )
    tools = tuple(_within(tool, rewrite) for tool in message.tools)
    return replace(message, content=rewrite(message.content), tools=tools, tool_calls=calls)


def _within(value: Any, rewrite: Callable[[str], str]) -> Any:  # noqa: ANN401
    """Return nested mappings and lists with every text rewritten, keys included."""
    if isinstance(value, str):
        return rewrite(value)
    if isinstance(value, Mapping):
        return {_within(key, rewrite): _within(each, rewrite) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_within(each, rewrite) for each in value]
    return value
