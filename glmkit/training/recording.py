"""What is kept of a run's figures: a file of lines, a picture, and trackers that people watch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ..errors import UsageError
from ..recipes import StepLog
from .plots import Curve, draw

LOG = "trainer_log.jsonl"
PICTURE = "training_loss.png"
TRACKERS = ("tensorboard", "wandb", "swanlab", "mlflow")
_SHOWN = ("loss", "learning_rate", "grad_norm", "tokens_per_s")


class Tracker(Protocol):
    """What shows figures to people; accelerate's trackers are."""

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """Add figures of a step."""
        ...

    def finish(self) -> None:
        """Say that no more come."""
        ...


def trackers_of(names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> list[Tracker]:
    """Start the trackers of a run.

    :param folder: of the run; TensorBoard's files are in ``runs`` below, the project is its name.
    :param settings: of the run, as they are shown.
    :raises UsageError: if nobody knows a name, or a tracker's package is not installed.
    """
    check_trackers(names)
    return [_tracker(each, folder, settings) for each in names if each != _NONE]


def check_trackers(names: Sequence[str]) -> None:
    """See that trackers are known and installed, before anything is loaded.

    :raises UsageError: saying what is missing.
    """
    for name in names:
        if name not in (*TRACKERS, _NONE):
            raise UsageError(f"report_to must be of {', '.join(TRACKERS)} or none, got {name!r}")
        if name != _NONE and find_spec(name) is None:
            raise UsageError(
                f"--report-to {name} needs the package {name}, which is not installed; run: "
                f"pip install {name}, or give --report-to none"
            )


_NONE = "none"


def _tracker(name: str, folder: Path, settings: Mapping[str, Any]) -> Tracker:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # their methods ask which process this is
    kind = LOGGER_TYPE_TO_CLASS[name]
    place = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
    run = "runs" if name == "tensorboard" else folder.absolute().name
    tracker = kind(run, **place)
    tracker.start()
    tracker.store_init_configuration(dict(settings))
    found: Tracker = tracker
    return found


class Record:
    """Keeps a run's lines.

    :param history: lines of the run before it was resumed, as ``trainer_state.json`` has them.
    :param drawn: figures that the picture shows.
    """

    def __init__(
        self,
        folder: Path,
        trackers: Sequence[Tracker],
        history: Sequence[Mapping[str, Any]] = (),
        *,
        drawn: Sequence[str] = ("loss", "eval_loss"),
    ) -> None:
        self.folder, self.trackers = folder, trackers
        self.curves: dict[str, list[tuple[int, float]]] = {name: [] for name in drawn}
        for line in history:
            self._remember(int(line["step"]), line)

    def keep(self, lines: Iterator[StepLog]) -> Iterator[StepLog]:
        """Pass lines on, and keep them; close the trackers whatever happens."""
        try:
            with (self.folder / LOG).open("a", encoding="utf-8") as file:
                for line in lines:
                    if line.total:
                        file.write(json.dumps(_plain(line), ensure_ascii=False) + "\n")
                        file.flush()
                        self._track(line)
                    yield line
        finally:
            for tracker in self.trackers:
                tracker.finish()

    def draw(self, title: str, unit: str = "loss per token (nats)") -> Path:
        """Draw the curves; return the picture."""
        file = self.folder / PICTURE
        curves: dict[str, Curve] = {name: each for name, each in self.curves.items()}
        draw(curves, file, title=title, label=unit)
        return file

    def _track(self, line: StepLog) -> None:
        figures = {name: getattr(line, name) for name in _SHOWN}
        known = {name: each for name, each in figures.items() if each is not None}
        known |= line.metrics
        self._remember(line.step, known)
        if known:
            # TensorBoard shows what has a slash in groups.
            shown = {_grouped(name): value for name, value in known.items()}
            for tracker in self.trackers:
                tracker.log(shown, step=line.step)

    def _remember(self, step: int, figures: Mapping[str, Any]) -> None:
        for name, curve in self.curves.items():
            if name in figures:
                curve.append((step, float(figures[name])))


def _grouped(name: str) -> str:
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def _plain(line: StepLog) -> dict[str, Any]:
    """Return what a line has to say, for a file of JSON."""
    fields = asdict(line)
    metrics: dict[str, Any] = fields.pop("metrics")
    return {name: each for name, each in fields.items() if each not in (None, "")} | metrics
