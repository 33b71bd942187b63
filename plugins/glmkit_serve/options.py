"""What every command that listens shares: where, with which keys, and what answers under a name."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from glmkit import UsageError

Command = TypeVar("Command", bound=Callable[..., Any])


def door_options(port: int) -> Callable[[Command], Command]:
    """Add ``--host``, ``--port`` and ``--api-key``, as ``api_keys``.

    :param port: the default, which the settings know.
    """
    options = (
        click.option("--host", help="Address to listen at; default: 127.0.0.1. Others need a key."),
        click.option("--port", type=int, help=f"Default: {port}; 0 takes any that is free."),
        click.option(
            "--api-key",
            "api_keys",
            multiple=True,
            help="Key that clients have to send; better GLMKIT_API_KEYS, as commands can be seen.",
        ),
    )
    return lambda command: _with(command, options)


def host_option(command: Command) -> Command:
    """Add ``--allow-host``, as ``hosts``."""
    says = "Another name that the server may be called by, without a key."
    return click.option("--allow-host", "hosts", multiple=True, help=says)(command)


def named_options(command: Command) -> Command:
    """Add ``--adapter`` and ``--kb``, as ``adapters`` and ``bases``; see :func:`named_paths`."""
    return _with(
        command,
        (
            _named("--adapter", "adapters", "LoRA or P-Tuning prefix to answer under this name."),
            _named("--kb", "bases", "Documents to answer from under this name."),
        ),
    )


def _named(flag: str, name: str, what: str) -> Callable[[Command], Command]:
    says = f"{what} May be given several times."
    return click.option(flag, name, multiple=True, metavar="[NAME=]PATH", help=says)


def _with(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    for each in reversed(options):
        command = each(command)
    return command


def named_paths(flag: str, given: Sequence[str]) -> dict[str, Path]:
    """Return paths by name: ``NAME=PATH``, or ``PATH``, which is called as its last part.

    :raises UsageError: if there is none at a path, or a name comes twice.
    """
    found: dict[str, Path] = {}
    for each in given:
        name, mark, said = each.partition("=")
        if not mark or not name.strip() or "/" in name:
            name, said = "", each
        path = Path(said).expanduser()
        name = name.strip() or path.resolve().name
        if not said or not name or name in found:
            raise UsageError(f"{flag} takes NAME=PATH, each name once, got {each!r}")
        if not path.exists():
            raise UsageError(
                f"{flag} takes [NAME=]PATH, and there is no such folder or file: {said}"
            )
        found[name] = path
    return found


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Take an address before anything slow is done; the socket does not listen yet.

    :raises UsageError: if the address is taken, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((host, port))
        except OSError as error:
            said = f"cannot listen at {host}, port {port}: {error.strerror or error}"
            hint = "choose another with --port, 0 for any that is free"
            raise UsageError(f"{said}; {hint}") from error
        yield door


def address_of(door: socket.socket) -> str:
    """Return where a socket is: ``http://127.0.0.1:8000``."""
    host, port = door.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
