"""``glmkit run chat``: talk to a model in the terminal or through a pipe."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ..repl import Repl

if TYPE_CHECKING:
    from ..app import Glmkit


@click.command()
@click.option("--model", help="Catalog name, hub id or folder; default: the configured model.")
@click.option("--system", help="System message.")
@click.option("--ask", "question", help="Ask one question, print the answer and leave.")
@click.option("--max-tokens", type=int, help="Most new tokens of an answer.")
@click.option("--temperature", type=float, help="0 is greedy; higher is more random.")
@click.option("--top-p", type=float, help="Keep the likeliest tokens up to this probability mass.")
@click.option("--top-k", type=int, help="Keep this many of the likeliest tokens; 0 keeps all.")
@click.option("--repetition-penalty", type=float, help="Above 1 discourages repetition.")
@click.option("--seed", type=int, help="Same seed, same answer.")
@click.option("--device", help="cpu, cuda, cuda:1 or mps.")
@click.option(
    "--family", help="What the model is, where its files do not say: chatglm2, chatglm3..."
)
@click.pass_obj
def chat(
    app: Glmkit,
    /,
    model: str | None,
    system: str | None,
    question: str | None,
    device: str | None,
    family: str | None,
    **sampling: float | None,
) -> None:
    """Talk to a model."""
    if question is not None and not question.strip():
        raise click.UsageError("--ask needs a question")
    given = {key: value for key, value in sampling.items() if value is not None}
    options = replace(app.config.generation, **given)  # type: ignore[arg-type]
    loaded = app.load_model(model, device=device, family=family)
    conversation = app.chat(loaded, system=system, options=options)

    def answer(text: str) -> None:
        for chunk in conversation.stream(text):
            click.echo(chunk.text, nl=False)
        click.echo()

    if question is not None:
        answer(question)
        return
    commands = {"reset": ("forget the conversation", conversation.reset)}
    Repl(answer, commands=commands, history=app.config.home / "history").run()
