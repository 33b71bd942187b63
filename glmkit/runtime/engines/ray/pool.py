"""The workers of a job: started, fed, replaced when they are lost, and ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

from .... import __version__
from ....answers import Outcome
from ....errors import GlmkitError, WorkerLostError
from ....types import Ask, ChatModel
from .cluster import Cluster, Share, joined, nodes_of, reason_of, shared_out, still_joined
from .sharing import AHEAD, Sharing
from .worker import Failed, Opened, Report, Worker

log = logging.getLogger(__name__)

Loader = Callable[[str | None], ChatModel]
"""Takes the device to use, None to pick one."""

_STILLBORN = 3
"""So many workers in a row that end before they have loaded, and no more are started."""

_SLOW_S = 60.0
"""After so long without any worker, what the job waits for is said."""

_NOT_BEGUN = (
    f"a worker cannot begin: {{why}}; every machine of the cluster needs glmkit {__version__}, "
    "installed where its Ray runs"
)
_GIVEN_UP = "three workers ended at this row, the last while it answered nothing else: {why}"


def answers_of(
    load: Loader, asked: Iterable[Ask], cluster: Cluster, *, concurrency: int | None
) -> Iterator[Outcome]:
    """Yield (key, reply) as workers answer; start them for as long as that takes.

    :param load: what each worker calls for its model.
    :raises GlmkitError: if a worker cannot load the model, or none stays alive.
    """
    rows = iter(asked)
    first = next(rows, None)
    if first is None:
        return
    with joined(cluster) as ray:
        share = shared_out(cluster, nodes_of(ray))
        begun = [first, *islice(rows, share.workers - 1)]  # no more workers than rows
        share = share._replace(workers=len(begun))
        ahead = max(AHEAD, concurrency or 0)
        pool = _Pool(ray, share, Sharing(chain(begun, rows), ahead=ahead), load, concurrency)
        try:
            yield from pool.outcomes()
        except ray.exceptions.RayTaskError:
            raise  # our own code failed
        except ray.exceptions.RayError as error:
            raise GlmkitError(
                f"the Ray cluster fails: {reason_of(error)}. What is answered is kept: run this "
                "again to go on"
            ) from error
        finally:
            pool.close()


@dataclass(eq=False)
class _Hired:
    """A worker, and the call that it is at."""

    actor: Any
    call: Any = None
    ready: bool = False
    host: str = "?"
    waiting: int = 0
    """Rows that it had and had not begun, when it last reported."""


class _Pool:
    def __init__(
        self,
        ray: Any,  # noqa: ANN401
        share: Share,
        sharing: Sharing,
        load: Loader,
        concurrency: int | None,  # noqa: ANN401
    ) -> None:
        self._ray, self._share, self._sharing = ray, share, sharing
        self._load, self._concurrency = load, concurrency
        self._hired: list[_Hired] = []
        self._stillborn = 0
        self._barren = 0
        """Workers lost since a row was settled."""
        self._said: set[str] = set()

    def outcomes(self) -> Iterator[Outcome]:
        """Yield what becomes of the rows, until all have an outcome."""
        while len(self._hired) < self._share.workers:
            self._hire()
        while not self._sharing.over:
            self._employ()
            if self._sharing.over:
                return
            calls = {each.call: each for each in self._hired if each.call is not None}
            ready, _ = self._ray.wait([*calls], num_returns=1, timeout=_SLOW_S)
            if not ready:
                self._refuse_alone()
                if not any(each.ready for each in self._hired):
                    self._say("no worker has room in the cluster yet; the job waits for one")
            for call in ready:
                yield from self._heard(calls[call])

    def _refuse_alone(self) -> None:
        """Notice where workers were lost because this machine was.

        :raises GlmkitError: if it is no longer in the cluster, so that nothing will come.
        """
        if not still_joined(self._ray):
            raise GlmkitError(
                "this machine has lost the Ray cluster, and its workers with it. What is answered "
                "is kept: start Ray here again, then run this again to go on"
            )

    def close(self) -> None:
        """End all workers."""
        while self._hired:
            self._dismiss(self._hired[-1])

    def _hire(self) -> None:
        share = self._share
        options: dict[str, Any] = {"num_cpus": share.cpus, "num_gpus": share.gpus}
        options |= {"max_restarts": 0, "scheduling_strategy": "SPREAD"}
        actor = self._ray.remote(Worker).options(**options).remote()
        hired = _Hired(actor)
        load = partial(self._load, None if share.gpus else "cpu")
        hired.call = actor.open.remote(load, self._concurrency)
        self._hired.append(hired)

    def _dismiss(self, hired: _Hired) -> None:
        self._hired.remove(hired)
        self._ray.kill(hired.actor)

    def _employ(self) -> None:
        """Give those work that wait for some."""
        for hired in self._hired:
            if hired.ready and hired.call is None:
                order = self._sharing.order(hired, hired.waiting)
                if order.asks or self._sharing.holds(hired):
                    hired.call = hired.actor.exchange.remote(*order)

    def _heard(self, hired: _Hired) -> Iterator[Outcome]:
        """Take in what a worker returned, or that it was lost."""
        call, hired.call = hired.call, None
        try:
            said = self._ray.get(call)
        except self._ray.exceptions.RayTaskError:
            raise  # our own code failed
        except self._ray.exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False):
                raise GlmkitError(_NOT_BEGUN.format(why=reason_of(error))) from error
            yield from self._lost(hired, reason_of(error))
            return
        for text in said.warnings:
            self._say(text)
        if isinstance(said, Opened):
            self._opened(hired, said)
        else:
            yield from self._settled(hired, said)
        if isinstance(said.fault, Failed):
            raise said.fault._replace(said=f"on {hired.host}: {said.fault.said}").error()
        if said.fault is not None:
            yield from self._lost(hired, f"{said.fault} on {hired.host}")

    def _opened(self, hired: _Hired, said: Opened) -> None:
        if said.version != __version__:
            raise GlmkitError(
                f"the worker on {said.host} runs glmkit {said.version}, this is {__version__}; "
                "install the same version on all machines of the cluster"
            )
        hired.host = said.host
        if said.fault is None:
            hired.ready = True
            self._stillborn = 0
            self._sharing.join(hired)

    def _settled(self, hired: _Hired, said: Report) -> Iterator[Outcome]:
        hired.waiting = said.waiting
        self._sharing.returned(hired, said.returned)
        for key, reply in said.done:
            if self._sharing.settle(hired, key):
                self._barren = 0
                yield key, reply.error() if isinstance(reply, Failed) else reply

    def _lost(self, hired: _Hired, why: str) -> Iterator[Outcome]:
        """Put a worker's rows back, and another one in its place."""
        self._dismiss(hired)
        self._stillborn += not hired.ready
        self._barren += 1
        for key in self._sharing.lose(hired):
            self._barren = 0
            yield key, WorkerLostError(_GIVEN_UP.format(why=why))
        self._refuse_alone()
        self._refuse_to_go_on(why)
        if self._stillborn < _STILLBORN:
            self._say(f"a worker was lost ({why}); its rows are asked again")
            self._hire()
        else:
            self._say(f"no more workers are started, as they end while they load the model: {why}")

    def _refuse_to_go_on(self, why: str) -> None:
        """Stop where nothing is gained any more.

        :raises GlmkitError: saying what the last worker ended of.
        """
        barren = self._barren > _STILLBORN * (1 + self._share.workers)
        none_left = not self._hired and self._stillborn >= _STILLBORN
        if barren or none_left:
            when = "before it had its model" if none_left else "without an answer"
            raise GlmkitError(
                f"one worker after the other ends {when}: {why}; is there memory enough on the "
                "machines for it? What is answered is kept: run this again to go on"
            )

    def _say(self, text: str) -> None:
        """Warn once of what several workers may come upon."""
        if text not in self._said:
            self._said.add(text)
            log.warning("%s", text)
