"""``glmkit run knowledge-chat``: ask a folder of documents."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmkit import LOADING, Repl, model_options

from .session import Session, Turn, open_base
from .settings import ANSWERS, POLICIES, Settings

if TYPE_CHECKING:
    from glmkit import Glmkit, Passage

    from .base import UpdateReport


@click.command()
@click.option(
    "--kb", "folder", required=True, type=click.Path(path_type=Path), help="Folder of documents."
)
@click.option(
    "--ask", "question", type=Repl.TEXT, help="Ask one question, print the answer and leave."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per answer.")
@model_options
@click.option("--adapter", help="LoRA folder or file, or P-Tuning prefix folder, to put on.")
@click.option("--encoder", help="Catalog name, hub id or folder; default: the configured encoder.")
@click.option("--top-k", type=int, help="Most passages to answer from.")
@click.option("--threshold", type=float, help="Least probability of a passage to count, 0..1.")
@click.option("--answer", type=click.Choice(ANSWERS), help="Generate, quote, or whichever suits.")
@click.option(
    "--when-missing",
    type=click.Choice(POLICIES),
    help="When no passage answers: refuse, or let the model answer alone.",
)
@click.option("--show-context", is_flag=True, help="Show the passages too.")
@click.pass_obj
def knowledge_chat(
    app: Glmkit,
    /,
    folder: Path,
    question: str | None,
    as_json: bool,
    model: str | None,
    encoder: str | None,
    show_context: bool,
    **flags: object,
) -> None:
    """Ask a folder of documents and get an answer with its sources.

    Without --ask it talks until /quit; questions can be piped in, one a line.
    """
    loading = {name: flags.pop(name) for name in (*LOADING, "adapter")}
    settings = Settings.of(app.plugin_config("knowledge"), **flags)
    if question is not None and not question.strip():
        raise click.UsageError("--ask needs a question")
    from .retrieve import Retriever

    with open_base(app, folder, encoder) as (base, report):
        _tell(report)
        retriever = Retriever(base, base.encoder, home=app.config.home)
        session = Session(app, retriever, settings, model=model, loading=loading)
        talk = _Talk(session, as_json=as_json, show_context=show_context)
        if question is not None:
            talk.answer(question)
            return
        commands = {
            "sources": ("show where the last answer comes from", talk.sources),
            "reset": ("forget the conversation", talk.reset),
        }
        Repl(talk.answer, commands=commands, history=app.config.home / "history").run()


def _tell(report: UpdateReport) -> None:
    """Say in one line each what was rebuilt or could not be read."""
    if report.rebuilt:
        click.echo(f"index rebuilt: {report.rebuilt}", err=True)
    for path, reason in report.skipped:
        click.echo(f"skipped {path}: {reason}", err=True)


class _Talk:
    """Prints answers, for a person or as JSON lines."""

    def __init__(self, session: Session, *, as_json: bool, show_context: bool) -> None:
        self._session = session
        self._as_json = as_json
        self._show_context = show_context
        self._noted: set[str] = set()
        self._last: Turn | None = None

    def answer(self, question: str) -> None:
        """Answer one question on standard output."""
        if self._as_json:
            self._last = self._session.answer(question)
            self._note(self._last)
            click.echo(json.dumps(self._last.as_dict(), ensure_ascii=False))
            return
        for chunk in self._session.ask(question):
            click.echo(chunk.text, nl=False)
            sys.stdout.flush()
        click.echo()
        self._last = self._session.last
        if self._last is not None:
            self._note(self._last)
            self._print_sources(self._last)

    def sources(self) -> None:
        """Show the sources of the last answer with their text."""
        if self._last is None or not self._last.sources:
            click.echo("no sources: nothing was answered from the documents yet", err=True)
            return
        for line in _source_lines(self._last.sources, with_text=True):
            click.echo(line)

    def reset(self) -> None:
        """Forget the conversation."""
        self._session.chat.reset()
        self._last = None
        click.echo("forgotten", err=True)

    def _print_sources(self, turn: Turn) -> None:
        for line in _source_lines(turn.sources, with_text=self._show_context):
            click.echo(line)

    def _note(self, turn: Turn) -> None:
        """Say a surprising thing once; that an answer is not from the documents, every time."""
        if turn.note and (turn.mode == "fallback" or turn.note not in self._noted):
            self._noted.add(turn.note)
            click.secho(f"({turn.note})", err=True, dim=True)


def _source_lines(sources: tuple[Passage, ...], *, with_text: bool) -> Iterator[str]:
    for number, passage in enumerate(sources, 1):
        where = f"{passage.path}, {passage.location}" if passage.location else passage.path
        yield click.style(f"[{number}] {where} ({passage.score:.2f})", dim=True)
        if with_text:
            yield "\n".join(f"    {line}" for line in passage.text.splitlines())
