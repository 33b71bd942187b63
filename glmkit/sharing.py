"""What threads and plugins share: loaded once, when it is first wanted, and used one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

if TYPE_CHECKING:
    import numpy as np

    from .types import Encoder

Thing = TypeVar("Thing")


class Lazy(Generic[Thing]):
    """Something that is made when it is first wanted, once; a failed attempt is made again.

    :param make: makes it; threads that want it meanwhile wait.
    """

    def __init__(self, make: Callable[[], Thing]) -> None:
        self._make = make
        self._made: list[Thing] = []
        self.lock = threading.Lock()
        """Held while it is made; users may hold it while they use it."""

    def get(self) -> Thing:
        """Return it."""
        with self.lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]


class OneByOne:
    """An encoder that several threads ask: one at a time is as fast as many, in less memory."""

    def __init__(self, encoder: Encoder) -> None:
        self.name, self.dimensions = encoder.name, encoder.dimensions
        self._encoder, self._lock = encoder, threading.Lock()
        if hasattr(encoder, "token_ids"):  # counts tokens; encoders need not know how
            self.token_ids = encoder.token_ids

    def encode(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> np.ndarray:
        """Return unit vectors, float32 (N, D)."""
        with self._lock:
            return self._encoder.encode(texts, kind=kind)
