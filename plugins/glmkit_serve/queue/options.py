"""Options that name a queue, and the settings that they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .settings import QueueSettings

if TYPE_CHECKING:
    from glmkit import Glmkit

Command = TypeVar("Command", bound=Callable[..., Any])


def database_options(command: Command) -> Command:
    """Add ``--db`` and ``--table``."""
    database = click.option(
        "--db",
        envvar="GLMKIT_QUEUE_DB",
        help="sqlite:///questions.db, postgresql://user@host/name, mysql://... (GLMKIT_QUEUE_DB, "
        "which keeps a password out of the list of processes).",
    )
    return database(click.option("--table", help="Table with the questions.")(command))


def queue_settings(app: Glmkit, **flags: Any) -> QueueSettings:  # noqa: ANN401
    """Return the settings of ``[plugins.serve.queue]``, overridden by flags that are not None.

    :raises ConfigError: if a key is unknown or a value out of range.
    """
    return QueueSettings.of(app.plugin_config("serve").get("queue", {}), **flags)
