"""The formats of ChatGLM-6B and ChatGLM2-6B: rounds of 问 and 答 in plain text.

Neither knows system messages or tools. What a system message says is put before the first round,
as plain text: it steers as far as any text does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...types import Message, ToolCall
from ..settling import Chain, Settling, Stage, Stripping, replacing
from .base import ChatFormat, Piece, Special, refuse_tools

TRAINING_TIME = ("[[训练时间]]", "2023年")
"""What the models write for the date their knowledge ends, and what the original code shows."""

_FULL_WIDTH = str.maketrans(",!:;?", "，！：；？")
_CJK = "[\u4e00-\u9fff]"
_BESIDE_CJK = re.compile(rf"(?<={_CJK})[,!:;?]|[,!:;?](?={_CJK})")
_MAY_BE_BESIDE = re.compile(rf"(?<!{_CJK})[,!:;?]\Z")


@dataclass
class Round:
    """A question and its answer; None where it is still to come."""

    question: str
    answer: str | None = None


def rounds_of(messages: Sequence[Message]) -> tuple[str, list[Round]]:
    """Return what system messages say, and the rounds of a conversation."""
    told = [each.content for each in messages if each.role == "system" and each.content]
    rounds: list[Round] = []
    for message in messages:
        if message.role == "user":
            _ask(rounds, message.content)
        elif message.role == "assistant":
            _answer(rounds, message.content)
    return "\n".join(told), rounds


def _ask(rounds: list[Round], question: str) -> None:
    if rounds and rounds[-1].answer is None:
        rounds[-1].question += f"\n{question}"
    else:
        rounds.append(Round(question))


def _answer(rounds: list[Round], answer: str) -> None:
    if not rounds:
        rounds.append(Round(""))
    before = rounds[-1].answer
    rounds[-1].answer = answer if before is None else f"{before}\n{answer}"


def _first(messages: Sequence[Message], system: str) -> list[Piece]:
    """Write ChatGLM-6B's rounds, counted from 0; a lone question stands bare."""
    refuse_tools(messages, "ChatGLM-6B")
    told, rounds = rounds_of(messages)
    *before, last = rounds
    text = "".join(
        f"[Round {at}]\n问：{each.question}\n答：{each.answer}\n" for at, each in enumerate(before)
    )
    text += f"[Round {len(before)}]\n问：{last.question}\n答：" if before else last.question
    told = told or system
    return [f"{told}\n{text}" if told else text, Special("[gMASK]"), Special("<sop>")]


def _second(messages: Sequence[Message], system: str) -> list[Piece]:
    """Write ChatGLM2-6B's rounds, counted from 1."""
    refuse_tools(messages, "ChatGLM2-6B")
    told, rounds = rounds_of(messages)
    text = "".join(
        f"[Round {at}]\n\n问：{each.question}\n\n答：{each.answer}\n\n"
        for at, each in enumerate(rounds[:-1], 1)
    )
    text += f"[Round {len(rounds)}]\n\n问：{rounds[-1].question}\n\n答："
    told = told or system
    return [Special("[gMASK]"), Special("sop"), f"{told}\n\n{text}" if told else text]


def _said(message: Message) -> list[Piece]:
    refuse_tools((message,), "ChatGLM")
    return [message.content]


class PlainReader:
    """Reads an answer without tool calls.

    :param widen: give punctuation next to a Chinese character its full width.
    """

    calls: tuple[ToolCall, ...] = ()

    def __init__(self, *, widen: bool = False) -> None:
        stages: list[Stage] = [Stripping(), replacing(*TRAINING_TIME)]
        if widen:
            stages.append(Settling(_widened, _MAY_BE_BESIDE, lookback=1))
        self._chain = Chain(*stages)

    def push(self, text: str) -> str:
        """Return what is settled by now."""
        return self._chain.push(text)

    def finish(self) -> str:
        """Return the rest."""
        return self._chain.finish()


def _widened(text: str) -> str:
    return _BESIDE_CJK.sub(lambda found: found[0].translate(_FULL_WIDTH), text)


CHATGLM = ChatFormat(
    "chatglm",
    _first,
    stops=("<eop>",),
    reader=lambda messages: PlainReader(widen=True),
    skip_special=False,
    temperature=0.95,
    top_p=0.7,
    answer=_said,
)
CHATGLM2 = ChatFormat(
    "chatglm2",
    _second,
    stops=("<eos>",),
    reader=lambda messages: PlainReader(),
    skip_special=False,
    temperature=0.8,
    top_p=0.8,
    answer=_said,
)
