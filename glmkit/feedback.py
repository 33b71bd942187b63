"""What people thought of answers: a table, and preference pairs from it.

Light floor: SQLite of the standard library. Threads and processes may write one table at a time
side by side: each call is a transaction of its own, in a write-ahead log.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from .errors import DataError, UsageError
from .types import Message, Passage

_APPLICATION = 0x676C6662  # "glfb": tells our tables from others' in SQLite's header
_VERSION = 1
_WAIT_S = 20.0
_SCHEMA = """
CREATE TABLE feedback (
    number INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    model TEXT NOT NULL,
    adapter TEXT NOT NULL,
    knowledge TEXT NOT NULL,
    messages TEXT NOT NULL,
    answer TEXT NOT NULL,
    rating INTEGER NOT NULL CHECK (rating IN (-1, 0, 1)),
    better TEXT NOT NULL,
    sources TEXT NOT NULL
)
"""

Rating = Literal[-1, 0, 1]


def default_path(home: Path) -> Path:
    """Return where the table is kept unless somebody says otherwise."""
    return home / "feedback.db"


@dataclass(frozen=True)
class Feedback:
    """What somebody thought of one answer.

    :raises UsageError: if the rating is none of -1, 0 and 1, or nothing was asked.
    """

    messages: tuple[Message, ...]
    """The conversation as the model was asked it; the last message is the question."""
    answer: str
    """What was shown."""
    rating: Rating = 0
    """1: thumb up, -1: thumb down, 0: neither."""
    better: str = ""
    """What the answer should have been, in the words of the person who asked."""
    model: str = ""
    adapter: str = ""
    knowledge: str = ""
    """The knowledge base that was asked; empty: none."""
    sources: tuple[Passage, ...] = ()
    """What the answer rests on."""
    time: float = field(default_factory=time.time)
    """Seconds since 1970."""

    def __post_init__(self) -> None:
        if self.rating not in (-1, 0, 1):
            raise UsageError(f"a rating is -1, 0 or 1, got {self.rating!r}")
        if not self.messages:
            raise UsageError("feedback needs the messages that were answered")

    @property
    def asked(self) -> str:
        """The conversation as one text: equal for equal questions."""
        return _as_json([_plain(each) for each in self.messages])


class FeedbackStore:
    """A table of feedback in one SQLite file, which is made where there is none.

    :param path: the file; its folder is made too.
    :raises DataError: if the file is something else, or was written by a later glmkit.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot use the feedback table {path}: {error}") from error
        with self._connected() as connection:
            self._prepare(connection)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        with _transaction(connection, "DEFERRED"):
            version = self._version(connection)
        if version == 0:
            _write_ahead(connection)
            with _transaction(connection):
                if self._version(connection) == 0:  # nobody else was faster
                    connection.execute(_SCHEMA)
                    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                    connection.execute(f"PRAGMA user_version = {_VERSION}")

    def _version(self, connection: sqlite3.Connection) -> int:
        """Return the version of the table, 0 where the file is new.

        Call it in a transaction: another may make the table between two of these questions.

        :raises DataError: if it is no table of ours, or of a later version.
        """
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if owner != _APPLICATION and (owner or version or tables):
            raise DataError(f"{self.path} is a database of something else; name another file")
        if version > _VERSION:
            raise DataError(
                f"{self.path} has version {version} of the feedback table, this glmkit knows "
                f"{_VERSION}; install a later glmkit"
            )
        return int(version)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one call, so that threads and forks share nothing."""
        try:
            with closing(sqlite3.connect(self.path, _WAIT_S, isolation_level=None)) as connection:
                yield connection
        except sqlite3.Error as error:
            raise DataError(f"cannot use the feedback table {self.path}: {error}") from error

    def add(self, feedback: Feedback) -> int:
        """Store ``feedback`` and return its number."""
        row = _row(feedback)
        marks = ", ".join("?" * len(row))
        command = f"INSERT INTO feedback ({', '.join(row)}) VALUES ({marks})"
        with self._connected() as connection, _transaction(connection):
            return int(connection.execute(command, tuple(row.values())).lastrowid or 0)

    def revise(
        self, number: int, *, rating: Rating | None = None, better: str | None = None
    ) -> None:
        """Change what was thought of an answer; None leaves as it is.

        :raises UsageError: if the rating is none of -1, 0 and 1, or there is no such number.
        """
        if rating not in (None, -1, 0, 1):
            raise UsageError(f"a rating is -1, 0 or 1, got {rating!r}")
        with self._connected() as connection, _transaction(connection):
            changed = connection.execute(
                "UPDATE feedback SET rating = coalesce(?, rating), better = coalesce(?, better) "
                "WHERE number = ?",
                (rating, better, number),
            )
            if changed.rowcount != 1:
                raise UsageError(f"{self.path} has no feedback number {number}")

    def __len__(self) -> int:
        with self._connected() as connection:
            return int(connection.execute("SELECT count(*) FROM feedback").fetchone()[0])

    def __iter__(self) -> Iterator[Feedback]:
        """Yield all feedback, the oldest first."""
        with self._connected() as connection:
            cursor = connection.execute(f"SELECT {_COLUMNS} FROM feedback ORDER BY number")
            for values in cursor:
                yield self._read(dict(zip(_NAMES, values, strict=True)))

    def _read(self, row: dict[str, Any]) -> Feedback:
        try:
            row["messages"] = tuple(map(_message, json.loads(row["messages"])))
            row["sources"] = tuple(Passage(**each) for each in json.loads(row["sources"]))
            return Feedback(**row)
        except (ValueError, TypeError, UsageError) as error:
            raise DataError(f"{self.path} holds feedback that cannot be read: {error}") from error

    def pairs(self) -> Pairs:
        """Return the preferences that the table holds."""
        return pairs_of(self)


@contextmanager
def _transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """Write all or nothing, one writer at a time; ``DEFERRED``: read one state of the file."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Choose the write-ahead log, for which SQLite doesn't wait by itself while others do so."""
    until = time.monotonic() + _WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


_NAMES = tuple(each.name for each in fields(Feedback))
_COLUMNS = ", ".join(_NAMES)


def _row(feedback: Feedback) -> dict[str, Any]:
    sources = _as_json([asdict(each) for each in feedback.sources])
    plain = {name: getattr(feedback, name) for name in _NAMES}
    return {**plain, "messages": feedback.asked, "sources": sources}


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _plain(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.passages:
        plain["passages"] = [asdict(each) for each in message.passages]
    return plain


def _message(value: Mapping[str, Any]) -> Message:
    passages = tuple(Passage(**each) for each in value.get("passages", ()))
    return Message.of({**value, "passages": passages})


@dataclass(frozen=True)
class Pair:
    """Two answers to the same conversation, one of which is preferred."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str

    def as_trl(self) -> dict[str, Any]:
        """Return the pair as a row that TRL reads."""
        return {
            "prompt": [{"role": each.role, "content": each.content} for each in self.messages],
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
        }

    def as_llama_factory(self) -> dict[str, Any]:
        """Return the pair as a row of sharegpt's format for preferences, which LLaMA-Factory reads.

        A system message stands in a column of its own.
        """
        told = "\n".join(each.content for each in self.messages if each.role == "system")
        said = [each for each in self.messages if each.role != "system"]
        return {
            "conversations": [{"from": _FROM[each.role], "value": each.content} for each in said],
            "chosen": {"from": "gpt", "value": self.chosen},
            "rejected": {"from": "gpt", "value": self.rejected},
            **({"system": told} if told else {}),
        }


_FROM = {"user": "human", "assistant": "gpt", "tool": "observation", "observation": "observation"}


@dataclass(frozen=True)
class Pairs:
    """Preferences, and why some feedback became none."""

    pairs: Sequence[Pair]
    skipped: Mapping[str, int]
    """Feedback that is part of no pair, by reason."""


NO_OPINION = "neither a thumb nor a better answer"
SAME_TEXT = "the better answer is the one that was shown"
NO_RIVAL = "no answer to the same question with the other thumb"
DISPUTED = "as many thumbs up as down for the same answer"


def pairs_of(rows: Iterable[Feedback]) -> Pairs:
    """Return the preferences in ``rows``.

    A better answer is preferred to the one that was shown; an answer with thumbs up is preferred to
    one with thumbs down, where both answer the same conversation. Several thumbs for the same words
    are summed. The same preference counts once. What was answered from documents is asked with
    them.
    """
    questions: dict[str, list[Feedback]] = {}
    for row in rows:
        questions.setdefault(row.asked, []).append(row)
    found: dict[tuple[str, str, str], Pair] = {}
    skipped: Counter[str] = Counter()
    for asked, group in questions.items():
        votes = _votes(group)
        for row in group:
            mine = [*_by_correction(row), *_by_thumbs(row, votes)]
            found |= {(asked, each.chosen, each.rejected): each for each in mine}
            if not mine:
                skipped[_why_none(row, votes)] += 1
    return Pairs(list(found.values()), dict(skipped))


def _votes(group: Iterable[Feedback]) -> Counter[str]:
    votes: Counter[str] = Counter()
    for row in group:
        votes[row.answer.strip()] += row.rating
    return votes


def _by_correction(row: Feedback) -> Iterator[Pair]:
    better, shown = row.better.strip(), row.answer.strip()
    if better and shown and better != shown:
        yield Pair(as_asked(row), better, shown)


def _by_thumbs(row: Feedback, votes: Mapping[str, int]) -> Iterator[Pair]:
    """Yield the pairs that the answer of ``row`` is part of."""
    mine = row.answer.strip()
    own = votes[mine]
    if not row.rating or not own or not mine:
        return
    for other in (text for text, vote in votes.items() if text and vote * own < 0):
        chosen, rejected = (mine, other) if own > 0 else (other, mine)
        yield Pair(as_asked(row), chosen, rejected)


def as_asked(row: Feedback) -> tuple[Message, ...]:
    """Return the conversation of ``row`` with the passages that its answer rests on written out.

    Without them, a model would learn to know by heart what it was given to read.
    """
    from .models.passages import speaks_chinese, with_passages

    *before, question = row.messages
    language = "zh" if speaks_chinese(question.content) else "en"
    evidence = question.passages or row.sources
    return (*before, with_passages(replace(question, passages=evidence), language))


def _why_none(row: Feedback, votes: Mapping[str, int]) -> str:
    if row.better.strip() and not row.rating:
        return SAME_TEXT
    if not row.rating:
        return NO_OPINION
    return NO_RIVAL if votes[row.answer.strip()] else DISPUTED
