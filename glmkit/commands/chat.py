"""``glmkit run chat``: talk to a model in the terminal or through a pipe."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ..repl import Repl
from .options import (
    FORMAT,
    LOADING,
    SAMPLING,
    format_options,
    given_of,
    model_options,
    sampling_options,
)

if TYPE_CHECKING:
    from ..app import Glmkit


def _list_tools(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    found = list(ctx.obj.tools)
    for tool in found:
        click.echo(f"{tool.name:<20} {tool.help}")
    if not found:
        click.echo("no plugin brings a tool", err=True)
    ctx.exit()


@click.command()
@click.option("--system", type=Repl.TEXT, help="System message.")
@click.option(
    "--ask", "question", type=Repl.TEXT, help="Ask one question, print the answer and leave."
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    help="LoRA folder or file, or P-Tuning prefix folder, to put on; several are summed.",
)
@click.option(
    "--adapter-weight",
    "weights",
    type=float,
    multiple=True,
    help="How much of each --adapter, in their order; default: 1.",
)
@click.option(
    "--tool",
    "tools",
    multiple=True,
    help="Let the model use a tool, by name; none unless named.",
)
@click.option(
    "--tools",
    "listed",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_tools,
    help="List the tools that plugins bring.",
)
@model_options
@sampling_options
@format_options
@click.pass_obj
def chat(
    app: Glmkit,
    /,
    model: str | None,
    system: str | None,
    question: str | None,
    adapters: tuple[str, ...],
    weights: tuple[float, ...],
    tools: tuple[str, ...],
    **given: Any,  # noqa: ANN401
) -> None:
    """Talk to a model."""
    allowed = [app.load_tool(each) for each in tools]  # before the model, which may take minutes
    if question is not None and not question.strip():
        raise click.UsageError("--ask needs a question")
    options = replace(app.config.generation, **given_of(given, (*SAMPLING, *FORMAT)))
    if weights and len(weights) != len(adapters):
        raise click.UsageError(f"{len(adapters)} --adapter and {len(weights)} --adapter-weight")
    first = adapters[0] if adapters else None
    loaded = app.load_model(model, adapter=first, **given_of(given, LOADING))
    if len(adapters) > 1 or weights:
        _put_on(loaded, adapters, weights, given.get("adapter_alpha"))
    conversation = app.chat(loaded, system=system, tools=allowed, options=options)

    def answer(text: str) -> None:
        for chunk in conversation.stream(text):
            click.echo(chunk.text, nl=False)
            for call in chunk.tool_calls:
                click.echo(f"[asks for {call.name}: {dict(call.arguments)}]", nl=bool(allowed))
            for each in chunk.observations:
                click.echo(f"[{each}]")
        click.echo()

    if question is not None:
        answer(question)
        return
    commands = {"reset": ("forget the conversation", conversation.reset)}
    Repl(answer, commands=commands, history=app.config.home / "history").run()


def _put_on(
    model: Any,  # noqa: ANN401
    adapters: tuple[str, ...],
    weights: tuple[float, ...],
    alpha: float | None,
) -> None:
    """Put several adapters on; the first is loaded already."""
    names = [*model.adapters, *(model.load_adapter(each, alpha=alpha) for each in adapters[1:])]
    model.set_adapter(dict(zip(names, weights or (1.0,) * len(names), strict=True)))
