"""The tables of the queue. Other programs may insert into the first one: see docs/queue.md.

All times are seconds since 1970 by the clock of the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

VERSION = 2
"""Of the tables; one of an earlier version is brought up to it, one of a later one left alone.

1: the questions. 2: and the workers, with what they answer to.
"""
WAITING, RUNNING, DONE, DEAD, CANCELLED = "waiting", "running", "done", "dead", "cancelled"
STATES = (WAITING, RUNNING, DONE, DEAD, CANCELLED)
OPEN = (WAITING, RUNNING)
"""States that a question leaves by itself; the others are where it ends."""
LONGEST_NAME = 190
"""Characters of a session's or model's name: what MySQL can keep in an index."""


class now(FunctionElement[float]):  # noqa: N801 -- named as the functions of SQL are
    """The time by the clock of the database, in seconds since 1970."""

    type = Double()
    inherit_cache = True
    name = "now_s"


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **options: Any) -> str:  # noqa: ANN401
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: Any, **options: Any) -> str:  # noqa: ANN401
    return "(extract(epoch from clock_timestamp())::double precision)"


@compiles(now, "mysql")
@compiles(now, "mariadb")
def _now_mysql(element: now, compiler: Any, **options: Any) -> str:  # noqa: ANN401
    # Not UNIX_TIMESTAMP(NOW(6)): an hour of local time comes twice a year.
    return "(timestampdiff(microsecond, '1970-01-01', utc_timestamp(6)) / 1e6)"


@dataclass(frozen=True)
class Tables:
    """The tables of one queue."""

    questions: Table
    workers: Table
    version: Table


def is_name(text: str) -> bool:
    """Tell whether a session or a model may be called so."""
    return 0 < len(text) <= LONGEST_NAME and text.isprintable()


def asked_name(questions: Table) -> ColumnElement[str]:
    """Return the model that a question asks for, as databases differ in whether spaces count that
    other programs left at its end.
    """
    return func.rtrim(questions.c.model, type_=questions.c.model.type)


def tables_of(name: str) -> Tables:
    """Describe the tables of the queue that is called ``name``."""
    metadata = MetaData()
    # Columns that other programs write come first; each other one has a default.
    questions = Table(
        name,
        metadata,
        Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
        Column("session", _name()),
        Column("question", _long(), nullable=False),
        Column("model", _name()),
        Column("options", Text),
        Column("state", String(16), nullable=False, server_default=WAITING),
        Column("answer", _long()),
        Column("error", Text),
        Column("finish_reason", String(16)),
        Column("prompt_tokens", Integer),
        Column("completion_tokens", Integer),
        Column("sources", _long()),
        Column("partial", _long()),
        Column("attempts", Integer, nullable=False, server_default=text("0")),
        Column("created", Double, nullable=False, server_default=now()),
        Column("started", Double),
        Column("finished", Double),
        Column("due", Double, nullable=False, server_default=text("0")),
        Column("token", Integer, nullable=False, server_default=text("0")),
        Column("worker", String(LONGEST_NAME)),
        Column("lease_until", Double),
        # The session while one of its questions runs: unique, so that no second one can.
        Column("busy_session", _name(), unique=True),
        CheckConstraint(f"state IN {STATES}", name=f"{name}_state"),
        Index(f"{name}_line", "state", "id"),
        Index(f"{name}_session", "session", "state", "id"),
        Index(f"{name}_lease", "state", "lease_until"),
        sqlite_autoincrement=True,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
    )
    workers = Table(
        f"{name}_workers",
        metadata,
        Column("worker", String(LONGEST_NAME), primary_key=True),
        Column("model", _name(), primary_key=True),
        Column("lease_until", Double, nullable=False),
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
    )
    version = Table(f"{name}_version", metadata, Column("version", Integer, primary_key=True))
    return Tables(questions, workers, version)


def _long() -> Text:
    return Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")


def _name() -> String:
    """Names are told apart by each letter's case, which MySQL must be told."""
    exact = mysql.VARCHAR(LONGEST_NAME, charset="utf8mb4", collation="utf8mb4_bin")
    return String(LONGEST_NAME).with_variant(exact, "mysql", "mariadb")
