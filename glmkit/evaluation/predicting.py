"""Answers of a model to a data set, written beside the answers that were wanted.

The file is `generated_predictions.jsonl` as trainers write it, one row for each sample, with
``prompt``, ``predict`` and ``label``. Rows are written in the order of the samples as soon as they
are answered, and a run that was interrupted goes on behind the last one.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..answers import answered
from ..batch.job import Refusals
from ..batch.journal import KEY, Journal
from ..errors import GlmkitError
from ..types import Ask, GenerationOptions, Message, Progress, Reply, ToolCall

if TYPE_CHECKING:
    from ..dataset.samples import Sample
    from ..types import ChatModel

FILE = "generated_predictions.jsonl"


@dataclass(frozen=True)
class Prediction:
    """What a model said, and what it should have."""

    index: int
    """Of the sample, from 0."""
    prompt: str
    predict: str | None
    """None where there is no answer."""
    label: str
    error: str | None = None
    """Why there is none."""


@dataclass(frozen=True)
class Predicting:
    """How a data set is answered."""

    output: Path
    """The file of predictions."""
    model: str
    """Who answers, for a person."""
    data: str
    """The fingerprint of the samples."""
    total: int
    """How many there are."""
    options: GenerationOptions = GenerationOptions(temperature=0)
    concurrency: int | None = None
    """Answers side by side; None: what suits the model."""
    loading: Mapping[str, Any] = field(default_factory=dict)
    """What else answers depend on; a resumed run has the same."""

    def identity(self) -> dict[str, Any]:
        """Return what must be the same when the run is resumed."""
        return {
            "model": self.model,
            **self.loading,
            "data": self.data,
            "generation options": vars(self.options),
        }


def predictions(
    model: ChatModel, samples: Iterable[Sample], job: Predicting
) -> Generator[Progress, None, int]:
    """Answer the samples that have no prediction yet; return how many are without an answer.

    Samples are drawn as the model takes them, and only those are kept that are being answered.

    :raises UsageError: if the file belongs to another run, or one is writing it.
    :raises DataError: if it cannot be read or written.
    :raises GlmkitError: if the first samples are all refused in the same words.
    """
    stage = f"answering with {job.model}"
    with Journal(job.output, job.identity(), retry_errors=True) as journal:
        waiting = _InOrder(samples, journal)
        refusals = Refusals(journal.done.count > 0)
        yield Progress(stage, journal.done.count, job.total)
        asked = waiting.asked(job.options)
        with closing(answered(model, asked, concurrency=job.concurrency)) as answers:
            for key, reply in answers:
                waiting.settle(key, reply)
                refusals.take(reply)
                refusals.check()
                yield Progress(stage, journal.done.count, job.total)
        return waiting.failed


class _InOrder:
    """Holds back answers that come before those of earlier samples."""

    def __init__(self, samples: Iterable[Sample], journal: Journal) -> None:
        self.failed = 0
        self._samples, self._journal = samples, journal
        self._due: deque[int] = deque()
        self._asked: dict[int, Sample] = {}
        self._early: dict[int, Reply | GlmkitError] = {}

    def asked(self, options: GenerationOptions) -> Iterator[Ask]:
        """Yield what is to be asked."""
        for index, sample in enumerate(self._samples):
            if index not in self._journal.done:
                self._due.append(index)
                self._asked[index] = sample
                yield Ask(index, sample.messages[:-1], options)

    def settle(self, index: int, reply: Reply | GlmkitError) -> None:
        """Write an answer, and those that have waited for it."""
        self._early[index] = reply
        while self._due and self._due[0] in self._early:
            due = self._due.popleft()
            done = self._early.pop(due)
            self.failed += not isinstance(done, Reply)
            self._journal.write(due, _row(due, self._asked.pop(due), done))


def _row(index: int, sample: Sample, reply: Reply | GlmkitError) -> dict[str, Any]:
    *before, answer = sample.messages
    row: dict[str, Any] = {"prompt": before[-1].content if before else ""}
    if len(before) > 1:
        row["history"] = [{"role": each.role, "content": _said(each)} for each in before[:-1]]
    done = isinstance(reply, Reply)
    row["predict"] = text_of(reply.text, reply.tool_calls) if isinstance(reply, Reply) else None
    row["label"] = _said(answer)
    row["error"] = None if done else str(reply)
    about: dict[str, Any] = {"index": index}
    if isinstance(reply, Reply):
        about |= {"finish_reason": reply.finish_reason, "usage": vars(reply.usage)}
    return {**row, KEY: about}


def _said(message: Message) -> str:
    return text_of(message.content, message.tool_calls)


def text_of(content: str, calls: Iterable[ToolCall]) -> str:
    """Return an answer as text; a call is a line of JSON, so that it can be compared."""
    lines = [content] if content else []
    for call in calls:
        said = {"name": call.name, "arguments": dict(call.arguments)}
        lines.append(json.dumps(said, ensure_ascii=False, sort_keys=True, default=str))
    return "\n".join(lines)


def read_predictions(path: Path) -> Iterator[Prediction]:
    """Yield the rows of a file that :func:`predictions` wrote, one at a time."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            index = row[KEY]["index"]
            yield Prediction(index, row["prompt"], row["predict"], row["label"], row["error"])
