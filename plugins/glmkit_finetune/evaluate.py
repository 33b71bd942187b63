"""``glmkit evaluate``: measure a model on data, alone or against what it was tuned from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmkit import LOADING, UsageError, given_of, model_options
from glmkit.dataset import Data, opening
from glmkit.evaluation.scores import LOSS, METRICS, Scorer
from glmkit.training.config import TrainConfig

from .columns import reading_of, reading_options
from .flags import normal

if TYPE_CHECKING:
    from glmkit import ChatModel, Glmkit
    from glmkit.training.measuring import Figures, Subject, Task

    from .report import Report

_ALL = (LOSS, *METRICS)
_TASK = (
    *("system", "max_length", "batch_size"),
    *("max_new_tokens", "concurrency", "forgetting"),
)
RESULT = "evaluation.json"
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command(context_settings={"token_normalize_func": normal})
@click.option("--adapter", help="Adapter to measure; the model without it is measured beside it.")
@click.option("--base", help="Another model to compare with: what --model was tuned from.")
@click.option("--alone", is_flag=True, help="Measure the model with --adapter only.")
@click.option(
    "--data", "sources", multiple=True, help="Files, folders or names in dataset_info.json."
)
@reading_options
@click.option("--skip-bad", is_flag=True, help="Leave out rows that are no samples.")
@click.option("--limit", type=click.IntRange(1), help="Only so many samples, the first ones.")
@click.option(
    "--metrics",
    help=f"What is measured: {', '.join(_ALL)}; default: all that can be.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Most new tokens of a prediction.",
)
@click.option(
    "--max-length",
    type=click.IntRange(8),
    default=TrainConfig.max_length,
    show_default=True,
    help="Most tokens of a sample whose loss is measured; longer ones are cut.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=TrainConfig.batch_size,
    show_default=True,
    help="Samples side by side while losses are measured.",
)
@click.option(
    "--concurrency", type=click.IntRange(1), help="Predictions side by side; default: what suits."
)
@click.option("--system", help="System message of samples that have none; default: the model's.")
@click.option("--forgetting", is_flag=True, help="Ask general questions before and after tuning.")
@click.option(
    "-o",
    "--output",
    type=_FOLDER,
    default=Path("evaluation"),
    show_default=True,
    help="Folder of the predictions and of the figures.",
)
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def evaluate(app: Glmkit, /, as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """Measure a model: loss and perplexity, BLEU-4, ROUGE and exact match of what it says.

    With --adapter, the model is measured without and with it, on the same samples. Predictions
    are written as they come; run again after an interruption, the same command goes on.
    """
    from glmkit.training.measuring import measure_all

    from .report import Report

    wanted = _Wanted.of(app, given)
    task = wanted.task(app)
    try:
        figures: list[Figures] = app.watch(measure_all(wanted.subjects(app), task))
    except KeyboardInterrupt:
        raise click.Abort("the same command goes on behind the predictions so far") from None
    report = Report(tuple(figures), task.total, wanted.forgetting)
    _keep(report, wanted, task)
    click.echo(json.dumps(report.as_dict(), ensure_ascii=False) if as_json else report.text())


@dataclass(frozen=True)
class _Wanted:
    """What somebody asked for, checked before anything is loaded."""

    model: str | None
    given: Mapping[str, Any]
    loading: Mapping[str, Any]

    @classmethod
    def of(cls, app: Glmkit, given: dict[str, Any]) -> _Wanted:
        """Check what was asked for.

        :raises UsageError: if it makes no sense.
        """
        found = cls(given["model"], given, given_of(given, LOADING))
        if not given["sources"] and not found.forgetting:
            raise UsageError("nothing to measure on: give --data FILE, or --forgetting")
        if found.adapter is not None and found.base is not None:
            raise UsageError(
                "--adapter is compared with its own model; leave --base out, or measure --model "
                "with --adapter --alone"
            )
        if found.alone and found.adapter is None:
            raise UsageError("--alone leaves out the model without --adapter; give one, or neither")
        if found.forgetting and len(found.names) < 2:
            raise UsageError(
                "--forgetting compares a tuned model with what it was: give --adapter, or --base"
            )
        _metrics(given["metrics"])
        return found

    @property
    def adapter(self) -> str | None:
        """The adapter, where there is one."""
        found: str | None = self.given["adapter"]
        return found

    @property
    def base(self) -> str | None:
        """What else is measured."""
        found: str | None = self.given["base"]
        return found

    @property
    def alone(self) -> bool:
        """Whether an adapter is measured without what it was trained on."""
        return bool(self.given["alone"])

    @property
    def forgetting(self) -> bool:
        """Whether general questions are asked."""
        return bool(self.given["forgetting"])

    @property
    def names(self) -> tuple[str, ...]:
        """What the models are called."""
        two = self.base is not None or (self.adapter is not None and not self.alone)
        return ("base", "tuned") if two else ("model",)

    def subjects(self, app: Glmkit) -> Iterator[Subject]:
        """Yield the models, each loaded when its turn comes."""
        from glmkit.training.measuring import Subject

        if self.base is not None:
            yield Subject("base", app.load_model(self.base, **self.loading))
            yield Subject("tuned", app.load_model(self.model, **self.loading))
            return
        if self.adapter is None:
            yield Subject("model", app.load_model(self.model, **self.loading))
            return
        model = app.load_model(self.model, adapter=self.adapter, **self.loading)
        name = _worn(model, self.adapter)
        if not self.alone:
            yield Subject("base", model, {})
        yield Subject(self.names[-1], model, name, Path(self.adapter).expanduser())

    def task(self, app: Glmkit) -> Task:
        """Read the data, and return what is measured."""
        from glmkit.training.measuring import Task

        given = self.given
        metrics = _metrics(given["metrics"])
        data = self._data(app) if given["sources"] else None
        total = 0 if data is None else min(len(data), given["limit"] or len(data))
        given["output"].mkdir(parents=True, exist_ok=True)
        scores = [each for each in metrics if each != LOSS]
        scorer = Scorer(scores, cache=app.config.home / "finetune") if scores else None
        return Task(
            given["output"],
            scorer,
            LOSS in metrics if given["metrics"] else None,
            data,
            total,
            loading=self._answered_by(app),
            **given_of(given, _TASK),
        )

    def _data(self, app: Glmkit) -> Data:
        given = self.given
        found: Data = app.watch(
            opening(given["sources"], **reading_of(dict(given)), skip_bad=given["skip_bad"])
        )
        click.echo(found.described, err=True)
        return found

    def _answered_by(self, app: Glmkit) -> dict[str, Any]:
        """Return what answers depend on, so that only the same run is resumed."""
        named = {"model path": self.model or app.config.model, "adapter": self.adapter}
        return {**named, "base": self.base, "system message": self.given["system"], **self.loading}


def _metrics(given: str | None) -> tuple[str, ...]:
    """Return what is to be measured.

    :raises UnknownNameError: if there is no such metric.
    """
    from glmkit import UnknownNameError

    names = tuple(each.strip() for each in (given or ",".join(_ALL)).split(",") if each.strip())
    for name in names:
        if name not in _ALL:
            raise UnknownNameError("metric", name, _ALL)
    return names


def _worn(model: ChatModel, adapter: str) -> str:
    """Return the name of the adapter that a model was loaded with."""
    names: Sequence[str] = list(getattr(model, "active_adapters", {}))
    if not names:
        raise UsageError(f"{model.name} takes no adapter, got {adapter}; the engine 'local' does")
    return names[0]


def _keep(report: Report, wanted: _Wanted, task: Task) -> None:
    """Write the figures beside the predictions."""
    said = {"model": wanted.model, "adapter": wanted.adapter, "base": wanted.base}
    about = {"data": list(wanted.given["sources"]), **said, **report.as_dict()}
    text = json.dumps(about, indent=2, ensure_ascii=False)
    (task.output / RESULT).write_text(text + "\n", encoding="utf-8")
