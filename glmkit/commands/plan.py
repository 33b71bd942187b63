"""``glmkit plan``: whether a model fits, where its layers go, and what would make it fit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..catalog import lookup
from ..errors import UnknownNameError, UsageError
from .options import given_of

if TYPE_CHECKING:
    from ..app import Glmkit
    from ..runtime.demand import Job
    from ..runtime.footprint import Anatomy
    from ..runtime.placement import Device
    from ..runtime.planning import Forecast

_JOB = ("batch", "length", "train", "dtype", "quantize", "checkpointing", "rank", "prefix")
_GIB = 1 << 30


@click.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--gpus",
    metavar="2x16GiB|24GB,16GB|none",
    help="Cards and their sizes; none: the processor alone. Default: what this machine has.",
)
@click.option("--batch", type=click.IntRange(1), help="Rows side by side; default: 1.")
@click.option(
    "--length", type=click.IntRange(1), help="Tokens of a row with its answer; default: 2048."
)
@click.option(
    "--train",
    type=click.Choice(["lora", "qlora", "full", "ptuning"]),
    help="Train; default: answer. qlora: LoRA beside int4 weights.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    help="Default: float16 on cards, float32 on the processor.",
)
@click.option("--quantize", type=click.Choice(["int8", "int4"]), help="Rounded weights.")
@click.option(
    "--checkpointing/--no-checkpointing",
    default=None,
    help="In training: compute the inside of blocks twice instead of keeping it. On by default.",
)
@click.option("--rank", type=click.IntRange(1), help="Rank of LoRA; default: 8.")
@click.option(
    "--targets", help="Linears that get LoRA: query_key_value,dense or all; default: the first."
)
@click.option(
    "--pre-seq-len",
    "prefix",
    type=click.IntRange(1),
    help="Entries of P-Tuning's prefix; default: 128.",
)
@click.option("--optimizer", type=click.Choice(["adamw", "adamw_8bit"]), help="Default: adamw.")
@click.option(
    "--loss-dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Precision of the training loss; default: float32, as in transformers.",
)
@click.option("--split", help="Layers of each card, 14,14 for example; default: as even as can be.")
@click.option(
    "--cpu-memory",
    metavar="24GiB",
    help="Processor memory, for what has no room on cards, or for all; default: what is free.",
)
@click.option("--family", help="What the model is, where its files do not say: chatglm2, ...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def plan(app: Glmkit, /, model: str, as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """Foretell the memory of a job, part by part, and where each layer goes.

    MODEL is a folder with a config.json (weights are not needed), or a name of the catalog or of a
    family. 1 GiB is 2**30 bytes: cards are sold and shown by it; 1 GB is 10**9.
    """
    name, parts, rounded = _model(app, model, given["family"])
    found = _forecast(parts, rounded, given)
    context = parts.config.context_length
    if found.job.length > context:
        click.echo(
            f"warning: length {found.job.length} is beyond the model's context of {context} tokens",
            err=True,
        )
    if as_json:
        click.echo(json.dumps(_described(name, found)))
        return
    for line in _lines(name, found):
        click.echo(line)


def _model(app: Glmkit, name: str, family: str | None) -> tuple[str, Anatomy, str | None]:
    """Return the name, the parts, and how the weights lie rounded, of a folder or a known name."""
    from .. import store
    from ..models.published import QUANTISED, TABLES, published
    from ..runtime.planning import of_folder, of_shape

    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return path.resolve().name, *of_folder(path, family)
    entry = lookup(name, "model")
    pulled = None
    if entry is not None or lookup(name) is None:
        pulled = store.get(app.config, name if entry is None else entry.name)
    if pulled is not None:
        return pulled.manifest.name, *of_folder(pulled.path, family)
    known = published(name)
    if known is None:
        raise _unknown(name, path)
    parts = replace(of_shape(known[1]), table=TABLES.get(known[0]))
    return known[0], parts, QUANTISED.get(known[0])


def _unknown(name: str, path: Path) -> UsageError:
    from ..models.published import SHAPES

    if lookup(name, "encoder") is not None:
        return UsageError(f"{name!r} is an encoder; plans are for chat models")
    if path.is_dir():
        return UsageError(f"{path} holds no config.json; give the folder of a model")
    if path.exists():
        return UsageError(f"{path} is a file; give the folder of a model, with its config.json")
    return UnknownNameError("model", name, SHAPES, hint="Or give a folder with config.json")


_FOR = {
    **{"rank": ("--rank", "lora"), "targets": ("--targets", "lora")},
    **{"prefix": ("--pre-seq-len", "ptuning"), "checkpointing": ("--checkpointing", "")},
    **{"optimizer": ("--optimizer", ""), "loss_dtype": ("--loss-dtype", "")},
}
"""What only training takes, as it is written, and the kind that alone does; empty: all do."""


def _refuse_unused(given: dict[str, Any]) -> None:
    train = given["train"]
    for name, (flag, kind) in _FOR.items():
        if given[name] is not None and (train is None or kind not in train):
            wanted = kind or "lora, full or ptuning"
            raise UsageError(f"{flag} is only for training; with it goes --train {wanted}")


def _forecast(parts: Anatomy, rounded: str | None, given: dict[str, Any]) -> Forecast:
    from ..runtime.planning import forecast

    _refuse_unused(given)
    devices, spare = _devices(given["gpus"], given["cpu_memory"])
    job = _job_of(given, rounded, "float32" if devices[0].is_processor else "float16")
    return forecast(parts, job, devices, split=_split(given["split"]), spare=spare)


def _devices(gpus: str | None, memory: str | None) -> tuple[list[Device], int]:
    """Return what a plan is for, and the bytes of the processor's memory."""
    from ..runtime.devices import here, parse_cards, parse_size
    from ..runtime.pages import available_memory

    devices = here() if gpus is None else parse_cards(gpus)
    spare = available_memory() if memory is None else parse_size(memory)
    return [replace(each, size=spare) if each.is_processor else each for each in devices], spare


def _job_of(given: dict[str, Any], rounded: str | None, dtype: str) -> Job:
    from ..runtime.demand import Job

    said = {"dtype": dtype} | given_of(given, (*_JOB, "optimizer", "loss_dtype"))
    if said.get("train") == "qlora":
        said = {"quantize": rounded or "int4"} | said | {"train": "lora"}
    if rounded is not None and said.get("train") != "full":
        said = {"quantize": rounded} | said
    if given["targets"] is not None:
        said["targets"] = tuple(each.strip() for each in given["targets"].split(","))
    return Job(**said)


def _split(text: str | None) -> tuple[int, ...]:
    numbers = text.split(",") if text else []
    if not all(re.fullmatch(r"\s*[0-9]{1,9}\s*", each) for each in numbers):
        raise UsageError(f"--split {text!r}: write the layers of each card, 14,14 for example")
    return tuple(map(int, numbers))


def _described(name: str, found: Forecast) -> dict[str, Any]:
    """Return a forecast as JSON has it; sizes are bytes."""
    placed = found.placement
    return {
        "model": name,
        "job": asdict(found.job),
        "devices": [
            {
                "device": use.device.name,
                "size": use.device.size,
                "layers": use.layers,
                "bytes": asdict(use.parts) | {"total": use.parts.total},
                "fits": use.fits,
            }
            for use in placed.uses
        ],
        "map": placed.map,
        "kept_in_memory": placed.carried.weights,
        "kept_on_disk": placed.on_disk,
        "fits": placed.fits,
        "runs": placed.runs,
        "verdict": found.verdict,
        "helps": list(found.helps),
    }


def _lines(name: str, found: Forecast) -> Iterator[str]:
    from ..runtime.devices import costs

    placed = found.placement
    yield f"{name}: {_job(found)}"
    yield "GiB (2**30 bytes; 1 GiB = 1.074 GB)"
    yield from _table(found)
    yield ""
    width = max(map(len, placed.map))
    yield from (f"{part:<{width}}  {where}" for part, where in placed.map.items())
    yield ""
    yield found.verdict
    if not found.placement.runs or not found.job.train:
        yield from costs(placed, quantize=found.job.quantize)
    if not placed.fits and not found.helps:
        yield "no flag makes it fit here: a smaller model or a larger card would"
    if found.helps:
        yield "what would make it fit:"
        yield from (f"  {each}" for each in found.helps)


def _job(found: Forecast) -> str:
    job = found.job
    how = f"{job.dtype}, {job.quantize} weights" if job.quantize else job.dtype
    what = {"lora": f"LoRA of rank {job.rank}", "full": "training all weights"}
    what |= {"ptuning": f"P-Tuning of {job.prefix} entries"}
    said = what.get(job.train or "", "answering")
    if job.train:
        how += f", {job.optimizer}, {'' if job.checkpointing else 'no '}checkpointing"
    return f"{said}, batch {job.batch}, length {job.length}, {how}"


_NAMES = {"cache": "keys and values", "optimizer": "optimizer state"}


def _table(found: Forecast) -> Iterator[str]:
    """Yield the lines of a table: parts down, devices across."""
    uses = found.placement.uses
    rows = [("", *(use.device.name for use in uses), "all")]
    for each in fields(uses[0].parts):
        sizes = [getattr(use.parts, each.name) for use in uses]
        if any(sizes):
            rows.append((_NAMES.get(each.name, each.name), *_cells([*sizes, sum(sizes)])))
    totals = [use.parts.total for use in uses]
    rows.append(("together", *_cells([*totals, sum(totals)])))
    rows.append(("of", *_cells([use.device.size for use in uses]), ""))
    rows.append(("layers", *(str(use.layers) for use in uses), str(sum(u.layers for u in uses))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()


def _cells(sizes: list[int]) -> list[str]:
    return [f"{size / _GIB:.2f}" for size in sizes]
