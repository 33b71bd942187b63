"""Who is on the page: each open page has a conversation and a folder of its own."""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from glmkit import Message
from glmkit.stopping import Stop

if TYPE_CHECKING:
    from glmkit import FinishReason, Passage
    from glmkit.feedback import Rating

log = logging.getLogger(__name__)


@dataclass
class Turn:
    """A question and what came of it."""

    question: str
    messages: tuple[Message, ...]
    """As the model was asked: system message, earlier turns, the question."""
    voice: str = ""
    """The model that answered, and the adapter that it wore."""
    adapter: str = ""
    base: str = ""
    """The knowledge base that was asked; empty: none."""
    answer: str = ""
    sources: tuple[Passage, ...] = ()
    ended: FinishReason | None = None
    """None while it is being answered."""
    problem: str = ""
    """Why there is no answer, in the visitor's language."""
    opinion: int | None = None
    """The number under which feedback is stored."""
    rating: Rating = 0


@dataclass
class Visit:
    """One open page."""

    folder: Path
    """For documents and pictures; removed when the visitor leaves."""
    turns: list[Turn] = field(default_factory=list)
    stopped: Stop = field(default_factory=Stop)
    """Set when the answer shall end."""
    undrawn: threading.Event = field(default_factory=threading.Event)
    """Set when the drawing shall end."""
    busy: threading.Lock = field(default_factory=threading.Lock)
    """Held while a question is answered."""
    reviewed: Turn | None = None
    """The turn that a better answer is being written for."""
    gone: bool = False

    @property
    def documents(self) -> Path:
        """The knowledge base of this visit alone."""
        return self.folder / "documents"

    @property
    def pictures(self) -> Path:
        """Where pictures are kept while the page shows them."""
        return self.folder / "pictures"

    def history(self) -> list[Message]:
        """Return what was said, for the model: turns that failed are left out."""
        said: list[Message] = []
        for turn in self.turns:
            if turn.answer and not turn.problem:
                said += [Message("user", turn.question), Message("assistant", turn.answer)]
        return said

    def end(self) -> None:
        """Stop what runs and remove what was kept."""
        self.gone = True
        self.stopped.set()
        self.undrawn.set()
        shutil.rmtree(self.folder, ignore_errors=True)


class Visits:
    """The open pages, by the key that each one sends.

    :param root: where their folders go; None makes one that is removed with the last visit.
    :param most: visits that are remembered; the one that was not heard of for longest goes first.
    :param on_end: told of each visit that has ended, however it did; clears what is kept elsewhere.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        most: int = 1000,
        on_end: Callable[[Visit], None] = lambda visit: None,
    ) -> None:
        self.root = root or Path(tempfile.mkdtemp(prefix="glmkit-web-"))
        """Nobody else on this machine may look into it; removed at the end."""
        self._most, self._on_end = most, on_end
        self._visits: dict[str, Visit] = {}
        self._changed = threading.Lock()

    def of(self, key: str | None) -> Visit:
        """Return the visit with this key, which begins where nobody knows it."""
        key = key or ""
        gone: list[Visit] = []
        with self._changed:
            visit = self._visits.pop(key, None) or Visit(self.root / secrets.token_hex(8))
            self._visits[key] = visit  # the last one is the one heard of last
            while len(self._visits) > self._most:
                gone.append(self._visits.pop(next(iter(self._visits))))
        for each in gone:
            self.end(each)
        return visit

    def leave(self, key: str | None) -> Visit | None:
        """End a visit; return it if there was one."""
        with self._changed:
            visit = self._visits.pop(key or "", None)
        if visit is not None:
            self.end(visit)
        return visit

    def end(self, visit: Visit) -> None:
        """Stop what runs and remove what was kept, here and elsewhere; twice is fine."""
        visit.end()
        try:
            self._on_end(visit)
        except OSError:  # the others are to end, too
            log.exception("what a visitor left cannot be removed")

    def close(self) -> None:
        """End all visits."""
        for key in list(self._visits):
            self.leave(key)
        shutil.rmtree(self.root, ignore_errors=True)

    def __len__(self) -> int:
        return len(self._visits)
