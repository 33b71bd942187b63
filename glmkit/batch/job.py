"""Running a batch job: rows in, answers out, and what became of them."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import GlmkitError, UsageError
from ..types import Answers, Ask, GenerationOptions, Progress, Reply, ToolCall
from .journal import KEY, Journal
from .rows import BatchRow, Reading, count_rows, read_rows

if TYPE_CHECKING:
    from ..types import ChatModel

Order = Literal["finished", "input"]


@dataclass(frozen=True)
class Job:
    """What a job does.

    :raises UsageError: if ``output`` is the input.
    """

    input: Path
    output: Path
    model: str
    reading: Reading = Reading()
    options: GenerationOptions = GenerationOptions()
    order: Order = "finished"
    """Write rows as they finish, or as they stood."""
    concurrency: int | None = None
    """Answers side by side; None: what suits the model and the machine."""
    response_column: str = "response"
    adapters: tuple[str, ...] = ()
    """What was put on the model, as given; a resumed job has the same."""
    retry_errors: bool = False
    limit: int | None = None
    """Only so many rows of the input."""

    def __post_init__(self) -> None:
        if self.input.resolve() == self.output.resolve():
            raise UsageError(f"{self.output} is the input; give another file to write to")

    def identity(self) -> dict[str, Any]:
        """Return what must be the same when the job is resumed."""
        stat = self.input.stat()
        return {
            "input": self.input.name,
            "input size": stat.st_size,
            "model": self.model,
            "system message": self.reading.system,
            "prompt template": self.reading.template,
            "adapters": list(self.adapters),
            "adapter column": self.reading.adapter_column,
            "generation options": vars(self.options),
            "response column": self.response_column,
        }


@dataclass
class Summary:
    """What became of the rows."""

    answered: int = 0
    failed: int = 0
    before: int = 0
    """Rows that earlier runs had done."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)
    """The first few kinds of errors, and how often each came."""

    @property
    def speed(self) -> float:
        """New tokens per second."""
        return self.completion_tokens / self.seconds if self.seconds else 0.0

    def count(self, reply: Reply | GlmkitError) -> None:
        """Take one row into account."""
        if isinstance(reply, Reply):
            self.answered += 1
            self.prompt_tokens += reply.usage.prompt_tokens
            self.completion_tokens += reply.usage.completion_tokens
            return
        self.failed += 1
        if str(reply) in self.errors or len(self.errors) < _KINDS_OF_ERRORS:
            self.errors[str(reply)] = self.errors.get(str(reply), 0) + 1


_KINDS_OF_ERRORS = 5


def run_job(model: ChatModel, job: Job) -> Generator[Progress, None, Summary]:
    """Answer the rows that are not done yet; report progress; return the summary.

    :raises UsageError: if the output belongs to another job, or one is running.
    :raises DataError: if the input or the output cannot be read.
    """
    total = count_rows(job.input)
    total = job.limit if total is None or (job.limit and job.limit < total) else total
    with Journal(job.output, job.identity(), retry_errors=job.retry_errors) as journal:
        summary = Summary(before=journal.done.count)
        started = time.monotonic()
        for index, columns, reply in _settled(model, job, journal):
            _refuse_clash(columns, job)
            journal.write(index, output_row(index, columns, reply, job))
            summary.count(reply)
            summary.seconds = time.monotonic() - started
            note = f"{summary.speed:.0f} tokens/s" + (
                f", {summary.failed} failed" if summary.failed else ""
            )
            yield Progress(f"answering {job.input.name}", journal.done.count, total, note=note)
    return summary


Settled = tuple[int, Mapping[str, Any], Reply | GlmkitError]


def _settled(model: ChatModel, job: Job, journal: Journal) -> Iterator[Settled]:
    """Yield (index, columns, reply or error) of the rows that are left, in the job's order."""
    asking = _Asking(job, journal)
    results = _answers(model, asking.asked(), job)
    if job.order == "finished":
        for key, reply in results:
            yield from asking.failed()
            yield key, asking.columns.pop(key), reply
        yield from asking.failed()
        return
    waiting: dict[int, Settled] = {}
    for key, reply in results:
        waiting[key] = (key, asking.columns.pop(key), reply)
        waiting.update((each[0], each) for each in asking.failed())
        yield from _in_turn(waiting, asking.order)
    waiting.update((each[0], each) for each in asking.failed())
    yield from _in_turn(waiting, asking.order)


def _in_turn(waiting: dict[int, Settled], order: list[int]) -> Iterator[Settled]:
    while order and order[0] in waiting:
        yield waiting.pop(order.pop(0))


class _Asking:
    """Draws rows only as the model takes them, so that a job of any length stays small."""

    def __init__(self, job: Job, journal: Journal) -> None:
        self.job, self.journal = job, journal
        self.columns: dict[int, Mapping[str, Any]] = {}
        self.order: list[int] = []
        self._failed: list[Settled] = []

    def asked(self) -> Iterator[Ask]:
        """Yield what is to be asked; rows that cannot be are put aside."""
        for row in read_rows(self.job.input, self.job.reading):
            if self.job.limit is not None and row.index >= self.job.limit:
                return
            if row.index in self.journal.done:
                continue
            self.order.append(row.index)
            try:
                ask = self._ask(row)
            except GlmkitError as error:
                self._failed.append((row.index, row.columns, error))
                continue
            self.columns[row.index] = row.columns
            yield ask

    def _ask(self, row: BatchRow) -> Ask:
        if row.error is not None:
            raise GlmkitError(row.error)
        try:
            options = replace(self.job.options, **row.options)
        except TypeError as error:
            raise UsageError(str(error)) from error
        return Ask(row.index, row.messages, options)

    def failed(self) -> list[Settled]:
        """Return the rows put aside since the last call."""
        found, self._failed = self._failed, []
        return found


def _answers(
    model: ChatModel, asked: Iterator[Ask], job: Job
) -> Iterator[tuple[int, Reply | GlmkitError]]:
    if isinstance(model, Answers):
        yield from model.answers(asked, concurrency=job.concurrency)
        return
    for ask in asked:
        try:
            yield ask.key, model.reply(ask.messages, ask.options)
        except GlmkitError as error:
            yield ask.key, error


def _refuse_clash(columns: Mapping[str, Any], job: Job) -> None:
    if _is_request(columns):
        return
    for name in (job.response_column, "error", KEY):
        if name in columns:
            raise UsageError(
                f"the input has a column {name!r}, where the job would write; rename it"
                + (", or give --response-column" if name == job.response_column else "")
            )


def _is_request(columns: Mapping[str, Any]) -> bool:
    """Tell whether a row is a request of OpenAI's batch API."""
    return "custom_id" in columns and "body" in columns


def output_row(
    index: int, columns: Mapping[str, Any], reply: Reply | GlmkitError, job: Job
) -> dict[str, Any]:
    """Return what is written for a row: its columns, the answer or the error, and the counts.

    A request of OpenAI's batch API gets the shape of that API's results.
    """
    about: dict[str, Any] = {"index": index}
    if isinstance(reply, Reply):
        about |= {"finish_reason": reply.finish_reason, "usage": vars(reply.usage)}
        if reply.tool_calls:
            about["tool_calls"] = [vars(each) for each in reply.tool_calls]
    if _is_request(columns):
        return {**_result(index, columns, reply, job), KEY: about}
    text, error = (reply.text, None) if isinstance(reply, Reply) else (None, str(reply))
    return {**columns, job.response_column: text, "error": error, KEY: about}


def _result(
    index: int, columns: Mapping[str, Any], reply: Reply | GlmkitError, job: Job
) -> dict[str, Any]:
    row = {"id": f"glmkit-{index}", "custom_id": columns["custom_id"]}
    if not isinstance(reply, Reply):
        failed = {"code": type(reply).__name__, "message": str(reply)}
        return {**row, "response": None, "error": failed}
    usage = vars(reply.usage)
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.tool_calls:
        message["tool_calls"] = [_called(at, each) for at, each in enumerate(reply.tool_calls)]
    body = {
        "object": "chat.completion",
        "model": job.model,
        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason}],
        "usage": {**usage, "total_tokens": sum(usage.values())},
    }
    return {**row, "response": {"status_code": 200, "body": body}, "error": None}


def _called(at: int, call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": f"call_{at}", "type": "function", "function": function}
