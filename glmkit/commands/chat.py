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
@click.option("--adapter", help="LoRA folder or file, or P-Tuning prefix folder, to put on.")
@click.option("--adapter-alpha", type=float, help="LoRA's alpha, for raw files that record none.")
@click.option(
    "--family", help="What the model is, where its files do not say: chatglm2, chatglm3..."
)
@click.option(
    "--engine", help="What runs the model: local or transformers; default: what suits it."
)
@click.pass_obj
def chat(
    app: Glmkit,
    /,
    model: str | None,
    system: str | None,
    question: str | None,
    device: str | None,
    adapter: str | None,
    adapter_alpha: float | None,
    family: str | None,
    engine: str | None,
    **sampling: float | None,
) -> None:
    """Talk to a model."""
    if question is not None and not question.strip():
        raise click.UsageError("--ask needs a question")
    given = {key: value for key, value in sampling.items() if value is not None}
    options = replace(app.config.generation, **given)  # type: ignore[arg-type]
    worn = {"adapter": adapter, "adapter_alpha": adapter_alpha}
    loaded = app.load_model(model, device=device, family=family, engine=engine, **worn)  # type: ignore[arg-type]
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
