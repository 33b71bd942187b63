"""Rewards that a rule gives: how long an answer is, what form it has, whether it is right.

Each is a plain function ``(answer, *, question, row) -> float``, or makes one of the text behind
the colon of its name. They look at the text of an answer only and are quick; see `rewards.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from glmkit import UsageError

from .rewards import REFERENCE, Reward

_NUMBER = re.compile(r"(?:(?<!\w)-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_TAG = re.compile(r"[A-Za-z][\w-]*")


def length(argument: str) -> Reward:
    """Return what rewards answers of a length in characters.

    ``20``: 1 at 20 characters, and less by the share that an answer is off: 0.5 at 10 or 30, 0 at
    none or from 40 on. ``10-20``: 1 from 10 to 20 characters, and less by the share that an
    answer is shorter than 10 or longer than 20.

    :raises UsageError: if the text is neither.
    """
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", argument.strip())
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 0 < least <= most:
        raise UsageError(
            f"the reward length takes characters from 1 on, length:20 or length:10-20; got "
            f"{argument!r}"
        )

    def reward(answer: str, *, question: str, row: Mapping[str, Any]) -> float:
        size = len(answer.strip())
        off = (least - size) / least if size < least else max(0, size - most) / most
        return max(0.0, 1.0 - off)

    return reward


def format_(argument: str) -> Reward:
    """Return what rewards answers of a form: 1 for those that have it, 0 for others.

    ``json``: the answer is JSON and nothing else. ``think+answer``, names of tags: the answer is
    ``<think>...</think>`` and ``<answer>...</answer>``, in this order, none of them empty or twice,
    and nothing but white space around them.

    :raises UsageError: if the text is neither.
    """
    if argument.strip() == "json":
        return _is_json
    tags = [each.strip() for each in argument.split("+")]
    if not all(_TAG.fullmatch(each) for each in tags) or len(set(tags)) < len(tags):
        raise UsageError(
            f"the reward format takes json or names of tags, format:think+answer; got {argument!r}"
        )
    parts = (f"<{each}>(?P<t{at}>.+?)</{each}>" for at, each in enumerate(tags))
    pattern = re.compile(r"\s*" + r"\s*".join(parts) + r"\s*", re.DOTALL)
    marks = [mark for each in tags for mark in (f"<{each}>", f"</{each}>")]

    def reward(answer: str, *, question: str, row: Mapping[str, Any]) -> float:
        found = pattern.fullmatch(answer)
        whole = found is not None and all(each.strip() for each in found.groups())
        return float(whole and all(answer.count(each) == 1 for each in marks))

    return reward


def _is_json(answer: str, *, question: str, row: Mapping[str, Any]) -> float:
    try:
        json.loads(answer)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


def regex(argument: str) -> Reward:
    """Return what gives 1 to answers in which a pattern is found, and 0 to others.

    :param argument: a regular expression of Python; write ``^yes$`` for the whole answer.
    :raises UsageError: if it is none.
    """
    try:
        pattern = re.compile(argument, re.DOTALL)
    except re.error as error:
        raise UsageError(
            f"the reward regex takes a regular expression, got {argument!r}: {error}"
        ) from error
    if not argument:
        raise UsageError("the reward regex takes a regular expression: regex:^yes")

    def reward(answer: str, *, question: str, row: Mapping[str, Any]) -> float:
        return float(pattern.search(answer.strip()) is not None)

    return reward


def exact(answer: str, *, question: str, row: Mapping[str, Any]) -> float:
    """Return 1 for an answer that is the one of the file, white space aside, else 0.

    :raises UsageError: if the file gives none.
    """
    return float(" ".join(answer.split()) == " ".join(_reference(row, "exact").split()))


def gsm8k(answer: str, *, question: str, row: Mapping[str, Any]) -> float:
    r"""Return 1 where the result of an answer is the number that is right, else 0.

    The result is the number behind ``####``, else in ``\boxed{}``, else the last one. The right
    one stands behind ``####`` in the row's answer (or is its last number).

    :raises UsageError: if the row has no number.
    """
    wanted = result_of(_reference(row, "gsm8k"))
    if wanted is None:
        raise UsageError(f"the reward gsm8k needs a number in the row's answer, got {row!r:.200}")
    return float(result_of(answer) == wanted)


def result_of(text: str) -> Decimal | None:
    """Return the number that a worked answer comes to; None where it has none."""
    marked = text.rpartition("####")
    boxed = _BOXED.findall(text)
    if marked[1]:
        numbers = _NUMBER.findall(marked[2])[:1]
    else:
        numbers = _NUMBER.findall(boxed[-1] if boxed else text)[-1:]
    try:
        return Decimal(re.sub(r"[$,]", "", numbers[0])) if numbers else None
    except InvalidOperation:
        return None


def _reference(row: Mapping[str, Any], name: str) -> str:
    for key in (REFERENCE, "solution", "answer"):
        value = row.get(key)
        if isinstance(value, (str, int, float)) and str(value).strip():
            return str(value)
    raise UsageError(
        f"the reward {name} compares with the right answer, and the row has none: give data with "
        f"an answer, or a column 'solution'; it has {', '.join(map(repr, row)) or 'no columns'}"
    )
