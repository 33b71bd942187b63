"""Data to be answered: what is asked in each row, and whatever else stands in it.

Any format that samples are read from will do: the last answer is taken off and becomes the
reference. Rows without an answer do, too. All columns of a row stay beside its question, for
rewards that compare an answer with them.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DataError, UsageError
from ..tables.files import Place
from ..types import Message, Progress
from .columns import ColumnNames
from .data import over
from .info import Listing
from .order import check_order
from .pairs import pair_of
from .samples import BadRow
from .shapes import shape_of
from .sources import listed, rows_in
from .specs import Wanted, wanted
from .turns import Turn, turns_of

_EVERY = 20_000
"""Rows between two lines of progress."""
_NAMED = 10
"""Bad rows that an error lists."""
_ANSWER = "\0answer"
"""A column that no file has."""
_ASKED = (
    ("instruction", "input"),
    ("prompt", None),
    ("question", None),
    ("query", None),
    ("problem", None),
    ("content", None),
    ("input", None),
    ("text", None),
)
"""The columns of questions that are known without an answer: of the question, and of more of it."""


@dataclass(frozen=True)
class Prompt:
    """What is asked in a row."""

    messages: tuple[Message, ...]
    """Ends with a question, or with what a tool returned."""
    reference: str
    """The answer that the file gives; empty where it gives none."""
    row: Mapping[str, Any]
    """All columns, as they stand there."""
    source: str = ""
    """The file that it was read from."""
    place: Place = Place()
    """Where in there."""

    @property
    def question(self) -> str:
        """What is asked last."""
        return self.messages[-1].content

    @property
    def where(self) -> str:
        """The row, for a person: ``"prompts.jsonl, line 3"``."""
        return f"{self.source}, {self.place}"


@dataclass(frozen=True)
class Prompts:
    """The questions of one or several files, in memory."""

    prompts: tuple[Prompt, ...]
    described: str
    """What they are, a line for each file."""
    bad: tuple[BadRow, ...] = ()
    """Rows that were left out."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def fingerprint(self) -> str:
        """A digest of all that was read: equal data, equal fingerprint."""
        whole = hashlib.sha256(b"prompts 1")
        for each in self.prompts:
            said = [[turn.role, turn.content] for turn in each.messages]
            text = json.dumps([said, each.reference, dict(each.row)], sort_keys=True, default=str)
            whole.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
        return whole.hexdigest()

    def split(self, size: float, *, seed: int = 42) -> tuple[Prompts, Prompts]:
        """Return what is learnt from, and what is kept from it for evaluation.

        :param size: a share below 1, or how many.
        :raises UsageError: if nothing would be left to learn from.
        """
        total = len(self.prompts)
        count = round(size * total) if size < 1 else int(size)
        if not 0 <= count < total:
            raise UsageError(
                f"val_size {size:g} keeps {count:,} of {total:,} prompts for evaluation, and none "
                "would be left to learn from"
            )
        held = set(random.Random(f"{seed} split").sample(range(total), count))
        parts = [
            tuple(each for at, each in enumerate(self.prompts) if (at in held) == kept)
            for kept in (False, True)
        ]
        return replace(self, prompts=parts[0]), replace(self, prompts=parts[1])


def reading_prompts(
    specs: Sequence[str],
    *,
    dataset_dir: str | Path | None = None,
    columns: ColumnNames = ColumnNames(),  # noqa: B008
    seed: int = 42,
    skip_bad: bool = False,
) -> Generator[Progress, None, Prompts]:
    """Read the questions of files.

    :param specs: files, folders, or names in ``dataset_info.json``; ``FILE#500`` takes 500 rows.
    :param dataset_dir: where ``dataset_info.json`` lies; None: in ``data``, if there is one.
    :param columns: the columns of questions and answers, where they are not detected.
    :param seed: of what is picked.
    :param skip_bad: leave out rows that ask nothing, rather than refuse them all.
    :raises DataError: if something does not exist, cannot be read or holds bad rows.
    :raises UsageError: if nothing is named, or an amount makes no sense.
    """
    prompts: list[Prompt] = []
    bad: list[BadRow] = []
    said: list[str] = []
    for number, each in enumerate(wanted(specs, Listing.read(dataset_dir))):
        if each.weight is not None:
            raise UsageError(
                f"{each.path}@{each.weight:g}: prompts are not mixed by weights; say how many rows "
                "of each file: FILE#500"
            )
        names = over(each.names, columns)
        good, wrong = yield from _read(each.path, names)
        taken = _taken(good, each, f"{seed} {number}")
        more = f", of which {len(taken):,} are taken" if len(taken) < len(good) else ""
        skipped = f", {len(wrong):,} bad rows skipped" if wrong else ""
        said.append(f"{each.path.name}: {len(good):,} prompts{more}{skipped}")
        prompts += taken
        bad += wrong
    if bad and not (skip_bad and prompts):
        raise DataError(_refusal(bad, len(prompts)))
    return Prompts(tuple(prompts), "\n".join(said), tuple(bad))


def _taken(prompts: list[Prompt], file: Wanted, seed: str) -> list[Prompt]:
    if file.take is None:
        return prompts
    if file.take > len(prompts):
        raise UsageError(
            f"{file.path}#{file.take}: it has {len(prompts):,} prompts; take that many at most"
        )
    picked = sorted(random.Random(seed).sample(range(len(prompts)), file.take))
    return [prompts[at] for at in picked]


def _refusal(bad: Sequence[BadRow], good: int) -> str:
    more = f"\n  and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else ""
    return (
        f"{len(bad):,} of {len(bad) + good:,} rows ask nothing that can be answered:\n  "
        + "\n  ".join(map(str, bad[:_NAMED]))
        + f"{more}\ncorrect them"
        + (", or leave them out: --skip-bad" if good else "")
    )


def _read(
    path: Path, names: ColumnNames
) -> Generator[Progress, None, tuple[list[Prompt], list[BadRow]]]:
    """Return the prompts of a file, and its bad rows."""
    good: list[Prompt] = []
    bad: list[BadRow] = []
    for number, found in enumerate(rows_in(path), 1):
        if found.error is not None:
            bad.append(BadRow(path.name, found.place, found.error))
            continue
        try:
            good.append(prompt_of(found.columns, names, path.name, found.place))
        except (DataError, UsageError) as error:
            bad.append(BadRow(path.name, found.place, str(error)))
        if number % _EVERY == 0:
            yield Progress(f"reading {path.name}", number)
    if not good and not bad:
        raise DataError(f"{path} holds no rows")
    return good, bad


def prompt_of(
    row: Mapping[str, Any],
    names: ColumnNames = ColumnNames(),  # noqa: B008
    source: str = "",
    place: Place = Place(),  # noqa: B008
) -> Prompt:
    """Return what a row asks.

    :param names: the columns of questions and answers that somebody named.
    :raises DataError: if it asks nothing.
    """
    messages = [each.message for each in _turns(row, names)]
    answers: list[Message] = []
    while messages and messages[-1].role == "assistant":
        answers.insert(0, messages.pop())
    if not messages or messages[-1].role == "system":
        raise DataError("it asks nothing: there is no question in front of an answer")
    check_order([*messages, Message("assistant", "")])
    return Prompt(tuple(messages), _reference(answers), row, source, place)


def _reference(answers: Sequence[Message]) -> str:
    return answers[0].content if answers else ""


def _turns(row: Mapping[str, Any], given: ColumnNames) -> list[Turn]:
    """Return the conversation of a row, behind the question its answer where it has one."""
    names = _names(row, given)
    if names.messages:
        beside = {"system": row.get(names.system or ""), "tools": row.get(names.tools or "")}
        return turns_of(row.get(names.messages), names.tags, **beside)
    answer = row.get(names.response or "")
    if isinstance(answer, (dict, bool)) or (isinstance(answer, list) and not _is_turns(answer)):
        answer = None  # ranked answers, and what is no text
    return pair_of({**row, _ANSWER: answer}, replace(names, response=_ANSWER))


def _is_turns(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], dict)


def _names(row: Mapping[str, Any], given: ColumnNames) -> ColumnNames:
    """Return the columns of a row that hold what is asked."""
    if given.messages:
        return given
    found = shape_of(row)
    known = ColumnNames() if found is None else found.names
    if given.prompt:
        return over(replace(known, messages=None, query=None), given)
    if known.messages or (known.prompt and found is not None and found.kind == "pairs"):
        return over(known, given)
    for column in ("messages", "conversations"):
        if row.get(column) is not None:
            return over(ColumnNames(messages=column, system="system", tools="tools"), given)
    for prompt, query in _ASKED:
        if row.get(prompt) is not None:
            names = ColumnNames(prompt, query, history="history", system="system", tools="tools")
            return over(names, given)
    raise DataError(
        f"it has no column of questions that is known, but {listed(row)}; name it: --prompt-column"
    )
