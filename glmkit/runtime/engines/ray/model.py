"""A model that answers on many machines at once, each worker with an engine of its own."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ....answers import Outcome, SideBySideModel
from ....errors import UsageError
from ....generation import SPECIAL
from ....types import Ask, ChatModel, Chunk, GenerationOptions, MessageLike, Reply
from .cluster import Cluster
from .pool import Loader, answers_of


class Worn(NamedTuple):
    """An adapter that workers load."""

    path: Path
    name: str | None
    alpha: float | None


class RayModel(SideBySideModel):
    """Answers rows over a cluster, which it joins for as long as that takes.

    :param load: what each worker calls for its model, with the device to use or None; it must be a
        function of a module, or a ``partial`` of one, that all machines have.
    """

    languages: frozenset[str] | None = None
    honours = SPECIAL

    def __init__(self, load: Loader, *, name: str, cluster: Cluster) -> None:
        self.name = name
        self.cluster = cluster
        self._load = load
        self._adapters: list[Worn] = []

    def load_adapter(
        self, path: Path | str, name: str | None = None, *, alpha: float | None = None
    ) -> None:
        """Let the workers load an adapter; the first is worn by rows that say nothing else.

        :param path: where all machines have it; see the local engine for what it may be.
        """
        path = Path(path).expanduser()
        self._adapters.append(Worn(path.resolve() if path.exists() else path, name, alpha))

    def answers(
        self, asked: Iterable[Ask], *, concurrency: int | None = None
    ) -> Generator[Outcome, None, None]:
        """Yield (key, reply) as answers finish; one that cannot be had is an error, not raised.

        :param concurrency: answers side by side in each worker; None: what suits its machine.
        :raises GlmkitError: if a worker cannot load the model, or none stays alive.
        """
        load = partial(_dressed, self._load, tuple(self._adapters))
        yield from answers_of(load, asked, self.cluster, concurrency=concurrency)

    def reply(
        self, messages: Sequence[MessageLike], options: GenerationOptions | None = None
    ) -> Reply:
        """Return the whole answer."""
        return next(self.batch([messages], options))

    def stream(
        self, messages: Sequence[MessageLike], options: GenerationOptions | None = None
    ) -> Iterator[Chunk]:
        """Refuse: a cluster answers files, and starts anew for each.

        :raises UsageError: always.
        """
        raise UsageError(NO_CHAT)


NO_CHAT = (
    "the engine 'ray' answers files of rows over many machines (glmkit batch) and does not chat; "
    "use --engine local, or --engine openai with a server"
)


def _dressed(load: Loader, adapters: tuple[Worn, ...], device: str | None) -> ChatModel:
    """Load a worker's model and its adapters.

    :raises UsageError: if the model takes none.
    """
    model = load(device)
    wear = getattr(model, "load_adapter", None)
    if adapters and wear is None:
        raise UsageError(f"{model.name} takes no adapters; they need the engine 'local'")
    for path, name, alpha in adapters:
        wear(path, name, alpha=alpha)  # type: ignore[misc]
    return model
