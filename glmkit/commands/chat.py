"""``glmkit run chat``: talk to a model in the terminal or through a pipe."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ..repl import Repl
from .options import LOADING, SAMPLING, given_of, model_options, sampling_options

if TYPE_CHECKING:
    from ..app import Glmkit


@click.command()
@click.option("--system", help="System message.")
@click.option("--ask", "question", help="Ask one question, print the answer and leave.")
@click.option("--adapter", help="LoRA folder or file, or P-Tuning prefix folder, to put on.")
@model_options
@sampling_options
@click.pass_obj
def chat(
    app: Glmkit,
    /,
    model: str | None,
    system: str | None,
    question: str | None,
    adapter: str | None,
    **given: Any,  # noqa: ANN401
) -> None:
    """Talk to a model."""
    if question is not None and not question.strip():
        raise click.UsageError("--ask needs a question")
    options = replace(app.config.generation, **given_of(given, SAMPLING))
    loaded = app.load_model(model, adapter=adapter, **given_of(given, LOADING))
    conversation = app.chat(loaded, system=system, options=options)

    def answer(text: str) -> None:
        for chunk in conversation.stream(text):
            click.echo(chunk.text, nl=False)
            for call in chunk.tool_calls:
                click.echo(f"[asks for {call.name}: {dict(call.arguments)}]", nl=False)
        click.echo()

    if question is not None:
        answer(question)
        return
    commands = {"reset": ("forget the conversation", conversation.reset)}
    Repl(answer, commands=commands, history=app.config.home / "history").run()
