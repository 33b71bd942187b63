"""A question-and-answer loop for the terminal that also works through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import click

from .errors import GlmkitError
from .texts import readable

Action = Callable[[], None]
_HISTORY_LINES = 1000


class _Typed(click.types.StringParamType):
    """A text on the command line."""

    def convert(
        self,
        value: Any,  # noqa: ANN401
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str:
        """Return the text with U+FFFD for every byte that is none in the terminal's encoding."""
        return readable(super().convert(value, param, ctx))


class Repl:
    """Read questions until the end of the input and have each one answered.

    Ctrl-C stops an answer and keeps the session, and so does an error; Ctrl-D or ``/quit`` leaves.
    Without a terminal there is no prompt and no greeting, so that output can be processed, and an
    error ends it.

    :param answer: prints the answer to one question.
    :param commands: slash commands by name (without the slash): help text and action.
    :param history: where the lines typed are kept between sessions; None keeps none.
    """

    TEXT: ClassVar[click.types.StringParamType] = _Typed()
    """The type of options that take what a person says, such as ``--ask``: valid Unicode always."""

    def __init__(
        self,
        answer: Callable[[str], None],
        *,
        commands: Mapping[str, tuple[str, Action]] | None = None,
        history: Path | None = None,
    ) -> None:
        self._answer = answer
        self._history = history
        self._open = True
        self._commands: dict[str, tuple[str, Action]] = {
            **(commands or {}),
            "help": ("list these commands", self._help),
            "quit": ("leave (so does Ctrl-D)", self._quit),
        }

    def run(self) -> None:
        """Run until the input ends or somebody quits."""
        lines = self._typed() if sys.stdin.isatty() else self._piped()
        for line in lines:
            question = readable(line.strip())
            if question.startswith("/"):
                self._command(question[1:])
            elif question:
                self._guarded(question)
            if not self._open:
                return

    def _guarded(self, question: str) -> None:
        try:
            self._answer(question)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            click.echo("\n(stopped)", err=True)
        except GlmkitError as error:
            # A server that was too busy once costs one answer, not the conversation.
            if not sys.stdin.isatty():
                raise
            click.echo(f"error: {error}", err=True)

    def _command(self, line: str) -> None:
        name = line.split()[0] if line.split() else ""
        if name not in self._commands:
            known = ", ".join(f"/{each}" for each in self._commands)
            click.echo(f"unknown command /{name}; known: {known}", err=True)
            return
        self._commands[name][1]()

    def _help(self) -> None:
        for name, (text, _) in self._commands.items():
            click.echo(f"/{name:<10} {text}")

    def _quit(self) -> None:
        self._open = False

    def _piped(self) -> Iterator[str]:
        yield from sys.stdin

    def _typed(self) -> Iterator[str]:
        self._load_history()
        click.echo("Ask away; /help lists the commands, /quit leaves.", err=True)
        while True:
            try:
                yield input("> ")
            except KeyboardInterrupt:
                click.echo()
            except EOFError:
                click.echo()
                break
            finally:
                self._save_history()

    def _load_history(self) -> None:
        """Give ``input`` line editing and earlier lines where the platform has readline."""
        try:
            import readline
        except ImportError:
            return
        readline.set_history_length(_HISTORY_LINES)
        if self._history and self._history.is_file():
            readline.read_history_file(self._history)

    def _save_history(self) -> None:
        if not self._history or "readline" not in sys.modules:
            return
        import readline

        self._history.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(self._history)
