"""The database of a queue: opening it, one transaction at a time, errors that say what to do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, create_engine, event, insert, select, update
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
)

from glmkit import ConfigError, GlmkitError, UsageError

from .settings import QueueSettings
from .tables import VERSION, Tables, tables_of

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

Result = TypeVar("Result")

_EXAMPLES = "sqlite:///questions.db, postgresql://user@host/name or mysql://user@host/name"
_DRIVERS = {
    "sqlite": ("sqlite", "sqlite3"),
    "postgresql": ("postgresql+psycopg", "psycopg"),
    "postgres": ("postgresql+psycopg", "psycopg"),
    "mysql": ("mysql+pymysql", "pymysql"),
    "mariadb": ("mariadb+pymysql", "pymysql"),
}
_BUSY_S = 30.0
"""How long SQLite waits for another writer."""
_TRIES = 6
"""Of a transaction that the database itself took back for another's sake."""
_LOCKED = frozenset(("40001", "40P01", "55P03"))
_LOCKED_MYSQL = frozenset((1205, 1213))


# How a transaction of SQLite begins. A writer says so at once: a reader that wants to write later
# may be refused for good.
_READING = ("BEGIN",)
_LASTING = ("PRAGMA synchronous=FULL", "BEGIN IMMEDIATE")
_FLEETING = ("PRAGMA synchronous=NORMAL", "BEGIN IMMEDIATE")


class DatabaseError(GlmkitError):
    """The database cannot be reached, or refuses."""


class RefusedError(DatabaseError):
    """The database can be reached, and refuses this: what it was given, as a rule."""


class Database:
    """A database with the tables of one queue.

    :param engine: connections to it.
    :param tables: the tables, which exist.
    :param durable: whether SQLite waits for the disk, so that a power cut takes nothing back.
    """

    def __init__(self, engine: Engine, tables: Tables, *, durable: bool = True) -> None:
        self._engine = engine.execution_options(glmkit_begin=_LASTING if durable else _FLEETING)
        self._fleeting = engine.execution_options(glmkit_begin=_FLEETING)
        self._reads = engine.execution_options(glmkit_begin=_READING)
        self.tables = tables
        self.name = shown(engine.url)

    @classmethod
    def open(cls, url: str, table: str, *, durable: bool = True) -> Database:
        """Open a database, and make its tables where they are not there.

        :param url: where it is, in SQLAlchemy's form.
        :param table: name of the table with the questions.
        :raises ConfigError: if ``url`` is none, or lacks its driver.
        :raises DatabaseError: if it cannot be reached, or is a later glmkit's.
        """
        database = cls(engine_of(parsed(url)), tables_of(table), durable=durable)
        try:
            database._prepare()
        except GlmkitError:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Let go of the connections."""
        self._engine.dispose()

    def read(self, work: Callable[[Connection], Result]) -> Result:
        """Return what ``work`` reads, in one transaction that writes nothing.

        :raises DatabaseError: if the database cannot be reached.
        """
        return self._do(self._reads, work)

    def write(self, work: Callable[[Connection], Result], *, lasting: bool = True) -> Result:
        """Do ``work`` in one transaction, from the start again where others were in its way.

        :param lasting: False for what may be lost when the power is.
        :raises RefusedError: if the database refuses what it is given; nothing was done.
        :raises DatabaseError: if the database cannot be reached; nothing says whether it was done.
        :raises IntegrityError: if another transaction wrote what this one may not write too.
        """
        return self._do(self._engine if lasting else self._fleeting, work)

    def _do(self, engine: Engine, work: Callable[[Connection], Result]) -> Result:
        for left in reversed(range(_TRIES)):
            try:
                with engine.begin() as connection:
                    return work(connection)
            except IntegrityError:
                raise
            except DBAPIError as error:
                if not left or not _was_locked(error):
                    raise _told(error)(f"database {self.name}: {_reason(error)}") from error
            time.sleep(0.01 * 2 ** (_TRIES - left))
        raise AssertionError  # the last round returns or raises

    def _prepare(self) -> None:
        try:
            self.write(self._create)
        except (IntegrityError, DatabaseError):
            self.write(self._create)  # somebody else was making the tables at the same time
        found = self.read(lambda connection: connection.scalar(select(self.tables.version)))
        if found != VERSION:
            raise DatabaseError(
                f"the tables in {self.name} are of version {found}, this glmkit's of {VERSION}; "
                "install the glmkit that made them, or name another --table"
            )

    def _create(self, connection: Connection) -> None:
        tables = self.tables
        tables.questions.metadata.create_all(connection)
        found = connection.scalar(select(tables.version))
        if found is None:
            connection.execute(insert(tables.version).values(version=VERSION))
        elif found < VERSION:
            # What the later versions have more are tables, which have just been made.
            connection.execute(update(tables.version).values(version=VERSION))


def open_queue(settings: QueueSettings, *, new: bool = True) -> Database:
    """Open the database that the settings name.

    :param new: make the file of an SQLite database that is not there.
    :raises UsageError: if they name none, or none that is there.
    """
    if settings.db is None:
        raise UsageError(
            "name the database: --db sqlite:///questions.db, GLMKIT_QUEUE_DB, or db under "
            "[plugins.serve.queue]"
        )
    url = parsed(settings.db)
    if not new and url.get_backend_name() == "sqlite" and not _is_there(url):
        raise UsageError(
            f"there is no database {url.database!r}; the first question makes it: glmkit queue "
            "submit, or glmkit run queue"
        )
    return Database.open(settings.db, settings.table)


def _is_there(url: URL) -> bool:
    named = url.database
    return not named or named.startswith((":", "file:")) or Path(named).exists()


def parsed(url: str) -> URL:
    """Return a database's address with the driver that we use.

    :raises ConfigError: if it is none; the message does not repeat it, as it may hold a password.
    """
    try:
        found = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"this is no address of a database; examples: {_EXAMPLES}") from error
    kind, _, driver = found.drivername.partition("+")
    if kind not in _DRIVERS:
        raise ConfigError(f"databases are {_EXAMPLES}, got {kind!r}")
    if not driver:
        name, package = _DRIVERS[kind]
        if find_spec(package) is None:
            raise ConfigError(f"{kind} needs {package}; run: pip install {package}")
        found = found.set(drivername=name)
    if kind == "sqlite" and found.database in (None, "", ":memory:"):
        raise UsageError("a queue needs a file that several can open: sqlite:///questions.db")
    return found


def shown(url: URL) -> str:
    """Return an address to show: no password, and no parameters, which may hold one, too."""
    return url.set(query={}).render_as_string(hide_password=True)


def engine_of(url: URL) -> Engine:
    """Return connections to a database, set up as the queue needs them."""
    given: dict[str, Any] = {"hide_parameters": True}  # questions stay out of messages
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": _BUSY_S}, **given)
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    # A claim must see what others have just written, not what was there at its first look.
    return create_engine(url, pool_pre_ping=True, isolation_level="READ COMMITTED", **given)


def _set_up_sqlite(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # we say ourselves when a transaction begins
    # Other programs insert what they like: a text that is no UTF-8 shall fail alone, as text with
    # surrogates, and not every look at the rows beside it.
    connection.text_factory = _lenient
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")  # readers and the writer do not wait for each other
    cursor.close()


def _lenient(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _begin_sqlite(connection: Connection) -> None:
    for statement in connection.get_execution_options().get("glmkit_begin", _LASTING):
        connection.exec_driver_sql(statement)


def _was_locked(error: DBAPIError) -> bool:
    """Say whether the transaction was taken back because of others, and may be done again."""
    if not isinstance(error, OperationalError) or error.connection_invalidated:
        return False
    cause: Any = error.orig
    first = cause.args[0] if cause.args else None
    state = getattr(cause, "sqlstate", None)
    return state in _LOCKED or first in _LOCKED_MYSQL or "is locked" in str(cause)


def _told(error: DBAPIError) -> type[DatabaseError]:
    """Return what an error means: the database is away, or there is no use in trying again."""
    away = isinstance(error, (OperationalError, InterfaceError)) or error.connection_invalidated
    return DatabaseError if away else RefusedError


def _reason(error: DBAPIError) -> str:
    """Return what the driver says in one line, without what looks like a password."""
    text = " ".join(str(error.orig).split())[:300]
    return re.sub(r"(?i)(password\s*=\s*)\S+|(://[^:/\s]+:)[^@\s]+@", r"\1\2***", text)
