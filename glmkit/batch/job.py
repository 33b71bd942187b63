"""Running a batch job: rows in, answers out, and what became of them."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..answers import answered
from ..errors import GlmkitError, UsageError
from ..remote.faults import TooLongError
from ..tables.files import columns_of, count_rows, plain_errors
from ..types import Ask, GenerationOptions, Progress, Reply, ToolCall
from .journal import KEY, Journal
from .rows import BatchRow, Reading, read_rows, refuse_columns

if TYPE_CHECKING:
    from ..types import ChatModel

Order = Literal["finished", "input"]


@dataclass(frozen=True)
class Job:
    """What a job does.

    :raises UsageError: if ``output`` is the input or named as no JSONL file, or the answer's column
        is one of the job's own.
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
    loading: Mapping[str, Any] = field(default_factory=dict)
    """How the model was loaded, as far as answers depend on it; a resumed job has the same."""
    retry_errors: bool = False
    limit: int | None = None
    """Only so many rows of the input."""

    def __post_init__(self) -> None:
        if self.input.resolve() == self.output.resolve():
            raise UsageError(f"{self.output} is the input; give another file to write to")
        if self.output.suffix.lower() in _OTHER_FILES:
            raise UsageError(
                f"{self.output}: answers are written as JSONL; name it "
                f"{self.output.with_suffix('.jsonl').name}"
            )
        if self.response_column in _OWN:
            raise UsageError(
                f"the answer cannot go into the column {self.response_column!r}, which the job "
                "fills itself; choose another name"
            )

    def identity(self) -> dict[str, Any]:
        """Return what must be the same when the job is resumed.

        All of the input counts: reading it takes seconds for each gigabyte, answering it days.
        """
        return {
            "input": self.input.name,
            "input content": f"SHA-256 {_digest(self.input)}",
            "model": self.model,
            **self.loading,
            "system message": self.reading.system,
            "prompt template": self.reading.template,
            "adapters": list(self.adapters),
            "adapter column": self.reading.adapter_column,
            "generation options": vars(self.options),
            "response column": self.response_column,
        }


_OWN = ("error", KEY)
"""The columns that a job adds beside the answer."""


_OTHER_FILES = (".csv", ".tsv", ".parquet", ".xlsx", ".xls", ".feather", ".arrow")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with plain_errors(path), path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


@dataclass
class Summary:
    """What became of the rows."""

    answered: int = 0
    failed: int = 0
    before: int = 0
    """Rows that earlier runs had done."""
    failed_before: int = 0
    """How many of those had failed."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)
    """The first few kinds of errors, and how often each came."""
    more_kinds: int = 0
    """Kinds of errors beside those; the count ends at a thousand."""
    _others: set[int] = field(default_factory=set, repr=False)

    @property
    def speed(self) -> float:
        """New tokens per second."""
        return self.completion_tokens / self.seconds if self.seconds else 0.0

    @property
    def all_failed(self) -> bool:
        """Whether there are rows, and none of them has an answer."""
        rows = self.answered + self.failed + self.before
        return 0 < rows == self.failed + self.failed_before

    def as_dict(self) -> dict[str, Any]:
        """Return what is printed as JSON."""
        fields = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        speed = round(self.speed, 1)
        return fields | {"seconds": round(self.seconds, 3), "tokens_per_second": speed}

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
        elif len(self._others) < _KINDS_COUNTED:
            self._others.add(hash(str(reply)))
            self.more_kinds = len(self._others)


_KINDS_OF_ERRORS = 5
_KINDS_COUNTED = 1000


class Refusals:
    """Tells rows that are wrong from a job that is: all rows refused in the same words, so far.

    :param answered: whether a row has an answer already.
    """

    def __init__(self, answered: bool) -> None:
        self._answered = answered
        self._words, self._count = "", 0

    def take(self, reply: Reply | GlmkitError) -> None:
        """Take one row into account; too long is a row for itself, whatever a server says of it."""
        self._answered = self._answered or isinstance(reply, Reply)
        if self._answered:
            self._count = 0
        elif not isinstance(reply, TooLongError):
            self._count = self._count + 1 if str(reply) == self._words else 1
            self._words = str(reply)

    @property
    def hopeless(self) -> bool:
        """Whether so many were refused alike that all will be."""
        return self._count >= ALIKE

    def check(self) -> None:
        """Go on.

        :raises GlmkitError: if that is hopeless.
        """
        if self.hopeless:
            raise GlmkitError(
                f"the first {ALIKE} rows were all refused: {self._words}; mend that, and run "
                "again with --retry-errors"
            )


ALIKE = 20
"""So many rows that were refused in the same words, and none answered so far, end a job."""


def check_input(job: Job) -> int:
    """Return about how many rows a job has; what is wrong with all of them shows before a model.

    :raises UsageError: if no row can be asked, as a header shows, or the first row has a column
        where the job would write.
    :raises DataError: if the input cannot be read.
    """
    total = count_rows(job.input)
    columns = columns_of(job.input) if total else None
    if columns is not None:
        refuse_columns(columns, job.reading)
    for first in islice(read_rows(job.input, job.reading), 1):
        _refuse_clash(first.columns, job)
    return total if job.limit is None else min(total, job.limit)


def run_job(
    model: ChatModel, job: Job, *, total: int | None = None
) -> Generator[Progress, None, Summary]:
    """Answer the rows that are not done yet; report progress; return the summary.

    :param total: what :func:`check_input` returned; None: it is called here.
    :raises UsageError: if the output belongs to another job, one is running, or the input cannot
        be asked as it is.
    :raises DataError: if the input or the output cannot be read or written.
    :raises GlmkitError: if the first rows are all refused in the same words; they are written.
    """
    total = check_input(job) if total is None else total
    with Journal(job.output, job.identity(), retry_errors=job.retry_errors) as journal:
        run = _Run(job, journal)
        # Closed at once where writing fails: nothing goes on answering what nobody takes.
        with closing(answered(model, run.asked(), concurrency=job.concurrency)) as answers:
            for key, reply in answers:
                run.settle(key, reply)
                yield run.progress(total)
                run.refusals.check()
        run.refusals.check()
        yield run.progress(total)
    return run.summary


Settled = tuple[int, Mapping[str, Any], Reply | GlmkitError]


class _Run:
    """Draws rows only as the model takes them, and keeps only those that are being answered.

    Rows that cannot be asked are written while the model waits for the next one, so that any
    number of them takes no memory either.
    """

    def __init__(self, job: Job, journal: Journal) -> None:
        self.job, self.journal = job, journal
        self.summary = Summary(before=journal.done.count, failed_before=journal.failed)
        self.refusals = Refusals(journal.done.count > journal.failed)
        self._columns: dict[int, Mapping[str, Any]] = {}
        self._order: deque[int] = deque()
        self._waiting: dict[int, Settled] = {}
        self._started = time.monotonic()

    def asked(self) -> Iterator[Ask]:
        """Yield what is to be asked; rows that cannot be are settled at once."""
        for row in islice(read_rows(self.job.input, self.job.reading), self.job.limit):
            if row.index in self.journal.done:
                continue
            if self.job.order == "input":
                self._order.append(row.index)
            self._columns[row.index] = row.columns
            try:
                ask = self._ask(row)
            except GlmkitError as error:
                self.settle(row.index, error)
                if self.refusals.hopeless and not self._columns:
                    return  # nothing is being answered that could prove the opposite
                continue
            yield ask

    def _ask(self, row: BatchRow) -> Ask:
        if row.error is not None:
            raise GlmkitError(row.error)
        _refuse_clash(row.columns, self.job)
        return Ask(row.index, row.messages, replace(self.job.options, **row.options))

    def settle(self, index: int, reply: Reply | GlmkitError) -> None:
        """Write a row that is answered or failed; in the input's order it may have to wait."""
        settled = (index, self._columns.pop(index), reply)
        if self.job.order == "finished":
            self._write(settled)
        else:
            self._waiting[index] = settled
            while self._order and self._order[0] in self._waiting:
                self._write(self._waiting.pop(self._order.popleft()))
        self.refusals.take(reply)

    def _write(self, settled: Settled) -> None:
        index, columns, reply = settled
        self.journal.write(index, output_row(index, columns, reply, self.job))
        self.summary.count(reply)
        self.summary.seconds = time.monotonic() - self._started

    def progress(self, total: int) -> Progress:
        """Return how far the job is."""
        failed = f", {self.summary.failed} failed" if self.summary.failed else ""
        note = f"{self.summary.speed:.0f} tokens/s{failed}"
        return Progress(
            f"answering {self.job.input.name}", self.journal.done.count, total, note=note
        )


def _refuse_clash(columns: Mapping[str, Any], job: Job) -> None:
    if _is_request(columns):
        return
    for name in (job.response_column, *_OWN):
        if name in columns:
            raise UsageError(
                f"the row has a column {name!r}, where the job would write; rename it"
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
