"""Conversations in the form of the original scripts: pairs of texts, or messages with metadata.

ChatGLM-6B and ChatGLM2 keep (question, answer) pairs; ChatGLM3 and GLM-4 keep dictionaries with
``role``, ``content``, on an answer ``metadata`` (whom it addresses: empty for the user), and on a
system message ``tools``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import UsageError
from ...types import Message
from ..formats import FORMATS, Piece
from ..formats.glm4_tools import INTRODUCTION, told
from ..formats.replies import JSON, PYTHON, turns_of
from ..formats.roles import (
    Entry,
    fourth_entries,
    fourth_pieces,
    third_entries,
    third_pieces,
)
from ..formats.rounds import TRAINING_TIME
from ..formats.tools import listed
from ..tokenizers import Tokenizer

PAIRS = ("chatglm", "chatglm2")
"""Families whose history is pairs."""
LONGEST = {"chatglm": 2048, "chatglm2": 8192, "chatglm3": 8192, "glm4": 8192}
"""The ``max_length`` of each family's original ``chat``: prompt and answer, in tokens."""


def asked(family: str, query: str, earlier: Sequence[Any], role: str = "user") -> list[Piece]:
    """Write a question behind what was said; ends where the answer begins.

    :param earlier: the history, as :func:`answered` returns it.
    :raises UsageError: if the family is none whose chats are known.
    """
    if family not in LONGEST:
        raise UsageError(
            f"no chat() is known for the family {family!r}; known: {', '.join(LONGEST)}. Say which "
            "it is with AutoTokenizer.from_pretrained(path, family=...)"
        )
    if family in PAIRS:
        return FORMATS[family].pieces([*_messages(earlier), Message("user", query)], "")
    return _from_entries(family, [*_entries(family, earlier), Entry(role, "", query)])


def written(
    family: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    *,
    open_ended: bool,
) -> list[Piece]:
    """Write messages.

    :param tools: functions on offer, put in front.
    :param open_ended: end where an answer begins.
    """
    if tools:
        messages = [{"role": "system", "content": "", "tools": tools}, *messages]
    if family not in PAIRS:
        pieces = _from_entries(family, _entries(family, messages))
        return pieces if open_ended else pieces[:-1]
    plain = [Message.of({"role": each["role"], "content": each["content"]}) for each in messages]
    if plain and plain[-1].role == "assistant":
        return [*FORMATS[family].pieces(plain[:-1], ""), plain[-1].content]
    return FORMATS[family].pieces(plain, "")


def text(pieces: Sequence[Piece]) -> str:
    """Return pieces as one text, special tokens by their names."""
    return "".join(each if isinstance(each, str) else each.name for each in pieces)


def prompt(family: str, query: str, earlier: Sequence[Any]) -> str:
    """Return what is asked as plain text, without the special tokens around it."""
    return "".join(each for each in asked(family, query, earlier) if isinstance(each, str))


def continued(query: str, rounds: int) -> str:
    """Return how ChatGLM2 goes on behind what its cache holds."""
    return f"\n\n[Round {rounds + 1}]\n\n问：{query}\n\n答："


def answered(
    family: str, answer: str, query: str, earlier: Sequence[Any], role: str = "user"
) -> tuple[Any, list[Any]]:
    """Read an answer; return what the scripts are shown, and the history with it.

    What is shown is a text, or where a tool is addressed a dictionary with its ``name`` and either
    ``parameters`` (tools were on offer, and the call parses) or ``content``.
    """
    if family in PAIRS:
        reader = FORMATS[family].reader(())
        shown = reader.push(answer) + reader.finish()
        return shown, [*earlier, (query, shown)]
    entries = [*earlier, {"role": role, "content": query}]
    offered = bool(entries[0].get("tools")) and entries[0]["role"] == "system"
    found: Any = ""
    for turn in turns_of(answer):
        said = turn.says
        entry = {"role": "assistant", "metadata": turn.metadata, "content": turn.content}
        entries.append(entry)
        found = _call(family, turn.metadata, turn.content, offered=offered)
        if said is not None:
            found = said.replace(*TRAINING_TIME)
    return found, entries


def stops(family: str, vocabulary: Tokenizer) -> list[int]:
    """Return the tokens that end an answer."""
    found = (vocabulary.special(each) for each in FORMATS[family].stops)
    return [each for each in found if each is not None]


def _call(family: str, metadata: str, content: str, *, offered: bool) -> dict[str, Any]:
    name = metadata.strip()
    style = PYTHON if family == "chatglm3" else JSON
    call = style.parse(name, content) if offered else None
    if call is None:
        return {"name": name, "content": content}
    return {"name": name, "parameters": dict(call.arguments)}


def _messages(pairs: Sequence[Any]) -> list[Message]:
    messages: list[Message] = []
    for pair in pairs:
        if isinstance(pair, Mapping) or len(pair) != 2:
            raise UsageError(
                f"the history of this generation is (question, answer) pairs, got {pair!r}"
            )
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return messages


def _entries(family: str, messages: Sequence[Any]) -> list[Entry]:
    entries: list[Entry] = []
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message:
            raise UsageError(
                "the history of this generation is dictionaries with role and content, "
                f"got {message!r}"
            )
        entries += _entry(family, message)
    return entries


def _entry(family: str, message: Mapping[str, Any]) -> list[Entry]:
    third = family == "chatglm3"
    if message.get("tool_calls"):
        as_message = [Message.of(message)]
        return third_entries(as_message) if third else fourth_entries(as_message)
    role = "observation" if message["role"] == "tool" else str(message["role"])
    content, metadata = str(message.get("content") or ""), str(message.get("metadata") or "")
    tools = message.get("tools")
    if tools and third:
        return [Entry(role, metadata, f"{content}\n{listed(tools)}")]
    offer = [Entry("system", "", told(tools, INTRODUCTION))] if tools else []
    return [*offer, Entry(role, metadata, content)]


def _from_entries(family: str, entries: Sequence[Entry]) -> list[Piece]:
    return third_pieces(entries) if family == "chatglm3" else fourth_pieces(entries)
