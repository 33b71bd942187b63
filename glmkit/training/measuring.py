"""What ``glmkit evaluate`` measures: losses, predictions with their scores, general questions.

Each is measured on one model after the other, row by row, so that two models can be compared on
the same rows.
"""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..answers import answered
from ..errors import DataError, GlmkitError, UsageError
from ..evaluation.comparing import Measure
from ..evaluation.contents import state_of
from ..evaluation.forgetting import Forgetting, Outcome, Question, questions, texts
from ..evaluation.predicting import Predicting, predictions, read_predictions
from ..evaluation.scores import LOSS, Scorer
from ..runtime.engines.local import LocalModel
from ..types import Ask, GenerationOptions, Message, Progress, Reply
from .batches import Batch, Feed
from .encoding import SampleEncoder
from .evaluating import losses
from .examples import Example, Listed
from .learner import Learner
from .plan import Shape

if TYPE_CHECKING:
    from ..dataset import Data, Sample
    from ..types import ChatModel

LONGEST_GENERAL = 96
"""New tokens of an answer to a general question."""


@dataclass
class Subject:
    """A model that is measured."""

    name: str
    """What tables call it: ``base``, ``tuned``."""
    model: ChatModel
    adapter: str | Mapping[str, float] | None = None
    """What it wears; None: whatever it was loaded with."""
    worn: Path | None = None
    """Where the files of what it wears lie."""

    @property
    def state(self) -> dict[str, str]:
        """What its files hold, as far as there are files."""
        folder = getattr(self.model, "folder", None)
        places = {"state of the model": folder, "state of the adapter": self.worn}
        return {what: state_of(Path(each)) for what, each in places.items() if each is not None}

    @property
    def local(self) -> LocalModel | None:
        """The model, where it is one whose losses can be asked for."""
        return self.model if isinstance(self.model, LocalModel) else None

    def options(self, max_new_tokens: int, seed: int | None = None) -> GenerationOptions:
        """Return how it answers: greedily, so that it says the same each time."""
        return GenerationOptions(
            max_tokens=max_new_tokens, temperature=0, seed=seed, adapter=self.adapter
        )


@dataclass
class Figures:
    """What was measured of one model."""

    name: str
    rows: dict[str, dict[int, Measure]] = field(default_factory=dict)
    """By score and row; losses are by batch."""
    lengths: tuple[int, ...] = ()
    """Tokens of each sample whose loss was measured: losses of other tokens compare with none."""
    failed: int = 0
    """Samples that have no answer."""
    answers: dict[Question, str] = field(default_factory=dict)
    """To general questions."""
    general: list[Measure] = field(default_factory=list)
    """Losses of general texts."""


@dataclass(frozen=True)
class Task:
    """What is to be measured."""

    output: Path
    """The folder of predictions."""
    scorer: Scorer | None
    """None: nothing is predicted."""
    loss: bool | None
    """Whether losses are measured; None: where they can be."""
    data: Data | None
    total: int
    """Samples of the data that are looked at."""
    system: str | None = None
    """Said where a sample has no system message; None: what the model says then."""
    max_length: int = 1024
    batch_size: int = 4
    max_new_tokens: int = 256
    concurrency: int | None = None
    forgetting: bool = False
    loading: Mapping[str, Any] = field(default_factory=dict)
    """What answers depend on beside the model, for resuming."""

    def samples(self) -> Iterator[Sample]:
        """Yield the samples."""
        found = islice(self.data.samples(), self.total) if self.data is not None else iter(())
        return (with_system(each, self.system) for each in found)

    def has_loss(self, subject: Subject) -> bool:
        """Tell whether a model is asked for its losses."""
        return self.loss is not False and (self.loss is True or subject.local is not None)


def with_system(sample: Sample, text: str | None) -> Sample:
    """Return a sample with a system message, where it has none and there is a text for it."""
    if text is None or sample.messages[0].role == "system":
        return sample
    messages = (Message("system", text), *sample.messages)
    return replace(sample, messages=messages, weights=(0.0, *sample.weights))


def measure(subject: Subject, task: Task) -> Generator[Progress, None, Figures]:
    """Measure one model."""
    found = Figures(subject.name)
    if task.data is not None and task.has_loss(subject):
        yield from _measure_losses(found, subject, task)
    if task.data is not None and task.scorer is not None:
        yield from _predict(found, subject, task, task.scorer)
    if task.forgetting:
        found.answers = yield from _answers(subject, questions(subject.model.languages))
        if subject.local is not None:
            found.general, _ = yield from _losses(
                subject, list(texts(subject.model.languages)), task, batch_size=1
            )
    return found


def _measure_losses(
    found: Figures, subject: Subject, task: Task
) -> Generator[Progress, None, None]:
    measures, lengths = yield from _losses(
        subject, task.samples(), task, batch_size=task.batch_size
    )
    found.rows[LOSS], found.lengths = dict(enumerate(measures)), lengths


def _losses(
    subject: Subject, samples: Iterable[Sample], task: Task, *, batch_size: int
) -> Generator[Progress, None, tuple[list[Measure], tuple[int, ...]]]:
    """Measure the loss of batches, always the same for the same lengths."""
    local = subject.local
    if local is None:
        raise UsageError(
            f"{subject.model.name} does not run in this process, so its loss cannot be measured; "
            "leave loss out: --metrics bleu,rouge,exact"
        )
    examples = encoded(local, samples, task.max_length)
    if subject.adapter is not None:
        local.set_adapter(subject.adapter)
    feed = Feed(examples, Shape(batch_size=batch_size, group_by_length=True), Batch.of)
    first = local.model.likes[0].device
    measures = yield from losses(Learner(local.model), feed, device=first)
    return measures, tuple(map(int, examples.lengths))


def _predict(
    found: Figures, subject: Subject, task: Task, scorer: Scorer
) -> Generator[Progress, None, None]:
    """Answer the data, and score what is in the file then."""
    data = cast("Data", task.data)
    path = task.output / predictions_file(subject.name)
    job = Predicting(
        path,
        subject.name,
        f"{data.fingerprint}, {task.total} samples",
        task.total,
        subject.options(task.max_new_tokens),
        task.concurrency,
        {**task.loading, **subject.state},
    )
    found.failed = yield from predictions(subject.model, task.samples(), job)
    for done, row in enumerate(read_predictions(path)):
        if row.predict is None:
            continue
        for name, score in scorer.score(row.predict, row.label).items():
            found.rows.setdefault(name, {})[row.index] = Measure(score)
        yield Progress(f"scoring {subject.name}", done + 1, task.total)


def predictions_file(name: str) -> str:
    """Return the file of a model's predictions: the tuned or only one's is as trainers name it."""
    return "generated_predictions.jsonl" if name != "base" else "base_predictions.jsonl"


def _answers(
    subject: Subject, asked: Sequence[Question]
) -> Generator[Progress, None, dict[Question, str]]:
    """Return the answers to general questions; one that cannot be had is empty."""
    stage = f"asking {subject.name} general questions"
    options = subject.options(LONGEST_GENERAL)
    asks = (Ask(at, [Message("user", each.question)], options) for at, each in enumerate(asked))
    found = [""] * len(asked)
    for done, (at, reply) in enumerate(answered(subject.model, asks)):
        yield Progress(stage, done, len(asked))
        found[at] = _said(reply)
    yield Progress(stage, len(asked), len(asked))
    return dict(zip(asked, found, strict=True))


def _said(reply: Reply | GlmkitError) -> str:
    return reply.text if isinstance(reply, Reply) else ""


def forgotten(base: Figures, tuned: Figures) -> Forgetting:
    """Compare what two models say to the general questions that both were asked."""
    both = [each for each in base.answers if each in tuned.answers]
    outcomes = [Outcome(each, base.answers[each], tuned.answers[each]) for each in both]
    if base.answers.keys() != tuned.answers.keys():
        return Forgetting(tuple(outcomes))
    return Forgetting(tuple(outcomes), tuple(base.general), tuple(tuned.general))


def measure_all(
    subjects: Iterator[Subject], task: Task
) -> Generator[Progress, None, list[Figures]]:
    """Measure models one after another; each is let go of before the next one is loaded."""
    found = []
    for subject in subjects:
        found.append((yield from measure(subject, task)))
        del subject
        gc.collect()
    return found


def encoded(local: LocalModel, samples: Iterable[Sample], max_length: int) -> Listed:
    """Return samples as tokens; what is too long is cut as in training.

    :raises DataError: if nothing is left of them.
    """
    if local.folder is None:
        raise UsageError(f"{local.name} was not loaded from a folder; its loss cannot be measured")
    encoder = SampleEncoder.open(local.folder, family=local.family, max_length=max_length)
    left, reason = iter(samples), ""
    rows: list[Example] = []
    while some := list(islice(left, _AT_ONCE)):
        for each in encoder.encode(some):
            rows += each.rows
            reason = reason or each.reason
    if not rows:
        raise DataError(f"no sample has an answer whose loss could be measured: {reason}")
    return Listed(rows)


_AT_ONCE = 1024
