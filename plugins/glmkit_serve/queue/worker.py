"""A worker: takes questions on, has a model answer them side by side, writes what it says.

One thread does it all, as :class:`~glmkit.live.Live` runs the model in another: it looks what the
model has said, writes it, shows that it lives, and takes on more while there is room.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import IntegrityError

from glmkit import (
    BusyError,
    Chunk,
    ClosedError,
    GenerationOptions,
    GlmkitError,
    Message,
    Reply,
    UsageError,
)

from .database import Database, DatabaseError, RefusedError
from .leases import Lease, Leases
from .presence import Presence
from .settings import QueueSettings
from .store import Store

if TYPE_CHECKING:
    from glmkit.live import Ticket

    from ..api.served import Served

log = logging.getLogger(__name__)

_SIGNS = 3
"""Signs of life in the time of a lease."""
_LONGEST_PAUSE_S = 10.0
"""Between two tries to reach a database that is away."""
_FULL_S = 1.0
"""Pause where the model takes no more."""
_PURGE_EVERY_S = 3600.0
_UNSERVED_EVERY_S = 60.0


@dataclass
class _Run:
    """A question that is being answered."""

    lease: Lease
    renewed: float
    """When it last gave a sign of life, by this machine's own clock."""
    ticket: Ticket | None = None
    history: list[Message] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    written: int = 0
    """Chunks whose text is in the database."""
    outcome: Reply | Exception | None = None

    def leave(self) -> None:
        """Want no more of the answer."""
        if self.ticket is not None:
            self.ticket.close()


class Worker:
    """Answers the questions of a queue until it is told to stop.

    :param database: where the queue is.
    :param settings: how it answers.
    :param models: who answers, by the names that questions may ask for; the first one answers
        those that ask for none.
    :param options: how tokens are picked, unless a question says otherwise.
    :param clock: seconds of this machine, for pauses alone.
    """

    def __init__(
        self,
        database: Database,
        settings: QueueSettings,
        models: Mapping[str, Served],
        *,
        options: GenerationOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = f"{socket.gethostname()[:100]}-{os.getpid()}-{secrets.token_hex(3)}"
        self._leases, self._store = Leases(database, settings), Store(database, settings)
        self._presence = Presence(database, settings)
        self._settings, self._clock = settings, clock
        # As questions for them are looked for; the first of two that differ in no more stays.
        self._models: dict[str, Served] = {}
        for name, served in models.items():
            self._models.setdefault(name.rstrip(" "), served)
        self._options = options or GenerationOptions()
        self._runs: list[_Run] = []
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._look_at = self._beat_at = self._purge_at = self._announce_at = 0.0
        self._unserved_at = math.inf

    def stop(self) -> None:
        """Take no more on; what runs may end in ``stop_s`` seconds, or is given back."""
        self._stopping.set()
        self._news.set()

    def run(self) -> None:
        """Answer until :meth:`stop` is called from another thread or a signal."""
        away = 0
        while not self._stopping.is_set():
            try:
                self.step()
                away = 0
            except DatabaseError as error:
                away += 1
                log.warning("%s; trying again", error)
                self._stopping.wait(min(_LONGEST_PAUSE_S, 0.2 * 2 ** min(away, 10)))
            # The worker outlives whatever a row or a driver came up with.
            except Exception:
                away += 1
                log.exception("a worker's step failed; trying again")
                self._stopping.wait(min(_LONGEST_PAUSE_S, 0.2 * 2 ** min(away, 10)))
            self._news.wait(self._pause())
            self._news.clear()
        self._finish()

    def announce(self) -> None:
        """Say that it lives, and which names it answers to.

        :raises DatabaseError: if the database is away.
        """
        kept = self._presence.announce(self.name, self._models)
        self._announce_at = self._clock() + self._settings.lease_s / _SIGNS
        if not kept:
            # The database or this machine was away: others may come back later than this worker.
            self._unserved_at = self._clock() + self._settings.unserved_s

    def step(self, *, claim: bool = True) -> int:
        """Do what there is to do now, and return how many questions are being answered.

        :param claim: whether to take on more.
        :raises DatabaseError: if the database is away; nothing is lost by that.
        """
        self._collect()
        self._write_ended()
        self._beat()
        if claim:
            if self._clock() >= self._announce_at:
                self.announce()
            self._claim()
            self._purge()
            self._end_unserved()
        self._begin()
        return len(self._runs)

    def _pause(self) -> float:
        """Return the seconds until there is something to do, if nobody says a word."""
        due = [self._look_at] if len(self._runs) < self._settings.slots else []
        due += [self._beat_at] if self._runs else []
        due.append(self._announce_at)
        if any(run.outcome is not None or run.ticket is None for run in self._runs):
            return 0.0
        return max(0.0, min(due) - self._clock())

    def _collect(self) -> None:
        """Take what the models have said."""
        for run in self._runs:
            if run.ticket is None or run.outcome is not None:
                continue
            try:
                run.chunks += run.ticket.take()
                if run.chunks and run.chunks[-1].finish_reason is not None:
                    run.outcome = Reply.join(run.chunks)
            # What breaks the model in whatever way must not end the other questions.
            except Exception as error:  # noqa: BLE001
                self._failed(run, error)

    def _failed(self, run: _Run, error: Exception) -> None:
        if isinstance(error, UsageError) and run.history:
            # Too long, as a rule: what was said longest ago is missed least.
            turns = len(run.history) // 2
            run.history = run.history[2 * ((turns + 1) // 2) :]
            run.chunks.clear()
            run.written = 0
            self._ask(run)
            return
        if not isinstance(error, GlmkitError):
            log.error("question %d broke the model", run.lease.id, exc_info=error)
        run.outcome = error

    def _write_ended(self) -> None:
        """Write the answers that are whole, and why others are none."""
        for run in [each for each in self._runs if each.outcome is not None]:
            if not self._surely_written(run):
                log.warning("question %d was taken from %s", run.lease.id, self.name)
            self._runs.remove(run)
            # There is room, and the session's next question may be claimed; unless the model itself
            # has no room, as others ask it, too.
            full = isinstance(run.outcome, (BusyError, ClosedError))
            self._look_at = self._clock() + _FULL_S if full else 0.0

    def _surely_written(self, run: _Run) -> bool:
        """Write the outcome, or that the database refuses it, so that no other one waits for it."""
        try:
            return self._written(run)
        except (RefusedError, IntegrityError) as error:
            log.error("the end of question %d cannot be written: %s", run.lease.id, error)
        try:
            return self._leases.fail(run.lease, "the database refused the answer", final=True)
        except (RefusedError, IntegrityError):
            return False  # its lease ends, and so do its attempts

    def _written(self, run: _Run) -> bool:
        outcome, lease = run.outcome, run.lease
        if isinstance(outcome, Reply):
            return self._leases.settle(lease, outcome)
        if isinstance(outcome, (BusyError, ClosedError)):
            return self._leases.give_back(lease)
        said = str(outcome) if isinstance(outcome, GlmkitError) else type(outcome).__name__
        log.warning("question %d failed, attempt %d: %s", lease.id, lease.attempts, said)
        return self._leases.fail(lease, said, final=isinstance(outcome, UsageError))

    def _beat(self) -> None:
        """Drop what was cancelled or lost; write what has been said, and that we live."""
        if not self._runs or self._clock() < self._beat_at:
            return
        held = self._leases.held(run.lease for run in self._runs)
        for run in [each for each in self._runs if each.lease.id not in held]:
            run.leave()
            self._runs.remove(run)
            self._look_at = 0.0
        self._renew()
        self._beat_at = self._clock() + min(
            self._settings.stream_s, self._settings.lease_s / _SIGNS
        )

    def _renew(self) -> None:
        old = self._clock() - self._settings.lease_s / _SIGNS
        said: list[tuple[Lease, str | None]] = []
        for run in self._runs:
            if len(run.chunks) > run.written:
                said.append((run.lease, "".join(chunk.text for chunk in run.chunks)))
            elif run.renewed < old:
                said.append((run.lease, None))
        if not said:
            return
        began, renewed = self._clock(), {lease.id for lease, _ in said}
        try:
            self._leases.renew(said)
        except RefusedError:
            # One text that the database refuses must not cost the others their leases.
            self._leases.renew([(lease, None) for lease, _ in said])
        for run in self._runs:
            if run.lease.id in renewed:
                run.written, run.renewed = len(run.chunks), began

    def _claim(self) -> None:
        """Take on as many as there is room for."""
        room = self._settings.slots - len(self._runs)
        if room <= 0 or self._clock() < self._look_at:
            return
        self._look_at = self._clock() + self._settings.poll_s
        began = self._clock()
        taken = self._leases.claim(self.name, room, self._models)
        self._runs += [_Run(lease, began) for lease in taken]

    def _begin(self) -> None:
        """Ask the models what was taken on."""
        for run in self._runs:
            if run.ticket is not None or run.outcome is not None:
                continue
            try:
                run.history = self._leases.history(run.lease)
                self._ask(run)
            except DatabaseError:
                raise
            # A row that other programs wrote may hold anything: it fails alone, and for good.
            except Exception as error:  # noqa: BLE001
                log.error("question %d cannot be asked", run.lease.id, exc_info=error)
                run.outcome = UsageError(f"the row cannot be read: {type(error).__name__}")

    def _ask(self, run: _Run) -> None:
        system = [Message("system", self._settings.system)] if self._settings.system else []
        try:
            served = self._named(run.lease.model)
            question = Message("user", run.lease.question)
            options = options_of(run.lease.options, self._options)
            if served.adapter is not None:
                options = replace(options, adapter=served.adapter)
            messages = [*system, *run.history, question]
            run.ticket = served.live.ask(messages, options, wake=self._news.set)
        except GlmkitError as error:
            run.outcome = error

    def _named(self, name: str | None) -> Served:
        """Return who answers.

        :raises UsageError: if nobody does.
        """
        wanted = name.rstrip(" ") if name else next(iter(self._models))
        found = self._models.get(wanted)
        if found is None:
            raise UsageError(f"no model answers to {wanted!a:.80}")
        return found

    def _purge(self) -> None:
        days = self._settings.keep_days
        if days is None or self._clock() < self._purge_at:
            return
        self._purge_at = self._clock() + _PURGE_EVERY_S
        if removed := self._store.purge(days):
            log.info("removed %d old questions", removed)

    def _end_unserved(self) -> None:
        """End what waits for names that nobody has had all the time that this one has worked."""
        if self._clock() < self._unserved_at:
            return
        # This machine's clock stands still while it sleeps; the database's says for how long.
        self.announce()
        if (now := self._clock()) >= self._unserved_at:
            self._unserved_at = now + min(_UNSERVED_EVERY_S, self._settings.unserved_s)
            if ended := self._presence.end_unserved():
                log.warning("%d questions were for models that no worker has", ended)

    def _finish(self) -> None:
        """Let what runs end while there is time, and give the rest back."""
        until = self._clock() + self._settings.stop_s
        try:
            self._presence.leave(self.name)
            while self._runs and self._clock() < until and self.step(claim=False):
                self._news.wait(min(self._settings.poll_s, max(0.0, until - self._clock())))
                self._news.clear()
            for run in self._runs:
                run.leave()
                self._leases.give_back(run.lease)
        except DatabaseError as error:
            log.warning("%s; others take the questions on when their leases end", error)
        # As above: what is left is given back by its lease.
        except Exception:
            log.exception("a worker did not stop in order")
        self._runs.clear()


def options_of(text: str | None, options: GenerationOptions) -> GenerationOptions:
    """Return how tokens are picked for one question.

    :param text: fields that differ, as JSON.
    :raises UsageError: if it is none, or holds a wrong key or value.
    """
    if not text:
        return options
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the options of a question are no JSON: {error}") from error
    if not isinstance(given, dict):
        raise UsageError(f"the options of a question are a JSON object, got {text!a:.80}")
    return with_options(options, given)


def with_options(options: GenerationOptions, given: Mapping[str, Any]) -> GenerationOptions:
    """Return options with other values in some of their fields.

    :raises UsageError: if a field is none, or a value out of range.
    """
    known = GenerationOptions.__dataclass_fields__
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UsageError(f"unknown option {unknown[0]!a:.80}; known: {', '.join(known)}")
    try:
        return replace(options, **given)
    except TypeError as error:
        raise UsageError(f"options of a question: {error}") from error
