"""What the rows that are decoded wear: the adapters of each, for as long as it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..errors import UsageError
from .lora import ONE_PREFIX, AdapterSet, Mix
from .rows import Row


class Within:
    """Dresses the model for the rows that it is about to run; see ``entrance.Dress``.

    What a row wears is settled when it is drawn: later changes of what is active do not reach it.

    :param first: of the first row; its prefix is that of all of them.
    """

    def __init__(self, adapters: AdapterSet, first: Mix) -> None:
        self.adapters, self.first = adapters, first
        self._mixes: dict[Row, Mix] = {}

    @contextmanager
    def __call__(self, rows: Sequence[Row]) -> Iterator[None]:
        """Wear what the rows were begun with; without rows, what the first one is."""
        with self.adapters.wearing([self._mixes[row] for row in rows] or [self.first]):
            yield

    def bare(self, rows: Sequence[Row]) -> bool:
        """Tell whether none of the rows wears anything."""
        return not any(self._mixes[row] for row in rows)

    def begin(self, row: Row) -> tuple[int, Mix]:
        """Settle what a row wears, and hold it until the row ends.

        :raises UsageError: if it wears another prefix than the first row.
        """
        adapters = self.adapters
        mix = adapters.mix(row.adapter)
        if adapters.prefix_of(mix) is not adapters.prefix_of(self.first):
            raise UsageError(ONE_PREFIX)
        self._mixes[row] = mix
        adapters.hold(mix)
        return adapters.changes, mix

    def end(self, row: Row) -> None:
        """Let go of what a row wore."""
        mix = self._mixes.pop(row, None)
        if mix is not None:
            self.adapters.let_go(mix)
