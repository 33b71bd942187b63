"""Options that several commands share: which model, and how it picks tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def _schema_in(
    context: click.Context, parameter: click.Parameter, file: Path | None
) -> dict[str, Any] | None:
    """Read the file of a schema into what ``GenerationOptions.response_format`` takes."""
    if file is None:
        return None
    try:
        return {"json_schema": json.loads(file.read_text(encoding="utf-8"))}
    except OSError as error:
        raise click.BadParameter(f"{file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{file} is no JSON: {error}") from error


_MODEL = (
    click.option(
        "--model",
        help="Catalog name, hub id, folder, or what a server calls it; default: as configured.",
    ),
    click.option(
        "--devices",
        "--device",
        "device",
        help="auto, cpu, mps, cuda:1, or several that share the layers: cuda:0,cuda:1 or "
        "cuda:0,cpu.",
    ),
    click.option(
        "--max-memory",
        help="Most that is used: 0=10GiB,cpu=30GiB, or 10GiB,12GiB in the order of the devices.",
    ),
    click.option("--dtype", help="float32, bfloat16 or float16; default: what suits the machine."),
    click.option(
        "--quantize", type=click.Choice(["int4", "int8"]), help="Round the weights while loading."
    ),
    click.option(
        "--adapter-alpha", type=float, help="LoRA's alpha, for raw files that record none."
    ),
    click.option(
        "--family", help="What the model is, where its files do not say: chatglm2, chatglm3..."
    ),
    click.option(
        "--engine",
        help="What runs the model: local, transformers, openai (a server) or (batch only) ray; "
        "default: what suits.",
    ),
    click.option(
        "--base-url",
        "server",
        help="Engine openai: address of the server, http://localhost:8000/v1 for example.",
    ),
)
_SAMPLING = (
    click.option(
        "--max-tokens",
        type=int,
        help="Most new tokens of an answer; default: 512, or as configured.",
    ),
    click.option("--temperature", type=float, help="0 is greedy; higher is more random."),
    click.option(
        "--top-p", type=float, help="Keep the likeliest tokens up to this probability mass."
    ),
    click.option("--top-k", type=int, help="Keep this many of the likeliest tokens; 0 keeps all."),
    click.option("--repetition-penalty", type=float, help="Above 1 discourages repetition."),
    click.option("--seed", type=int, help="Same seed, same answer."),
)
_FORMAT = (
    click.option(
        "--json-schema",
        "response_format",
        type=click.Path(path_type=Path, dir_okay=False),
        callback=_schema_in,
        help="File of a JSON schema that every answer has to fit.",
    ),
)
LOADING = (
    *("device", "max_memory", "dtype", "quantize"),
    *("adapter_alpha", "family", "engine", "server"),
)
"""The parameters of ``load_model`` that :func:`model_options` gives, beside the name."""
SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed")
"""The fields of ``GenerationOptions`` that :func:`sampling_options` gives."""
FORMAT = ("response_format",)
"""Those that :func:`format_options` gives."""


def model_options(command: Command) -> Command:
    """Add the options that name and load a model."""
    return _with(command, _MODEL)


def sampling_options(command: Command) -> Command:
    """Add the options that say how tokens are picked."""
    return _with(command, _SAMPLING)


def format_options(command: Command) -> Command:
    """Add the options that say what answers must look like."""
    return _with(command, _FORMAT)


def given_of(options: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return those of the named options that were given."""
    return {name: options[name] for name in names if options.get(name) is not None}


def _with(command: Command, options: Iterable[Callable[[Command], Command]]) -> Command:
    for option in reversed(tuple(options)):
        command = option(command)
    return command
