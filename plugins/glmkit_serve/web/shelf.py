"""Puts documents that visitors send where they are asked for. Light: no web framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmkit import GlmkitError

from .library import OWN, good_name
from .talk import in_words
from .uploads import TYPES, Limits, documents_in, take_in

if TYPE_CHECKING:
    from .page import Page
    from .uploads import Taken
    from .visits import Visit

_SHOWN = 8
"""Names of documents that are listed."""


class Shelf:
    """Puts documents where they are asked for."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._library = page.talk.library
        settings = page.settings
        self._limits = Limits(settings.max_bytes, settings.max_files)
        self._values: dict[str, Any] = {
            "size": f"{settings.max_file_mb:g}",
            "count": settings.max_files,
            "types": " ".join(TYPES),
        }

    @property
    def limits(self) -> str:
        """What may be added, in words."""
        return self._page.words("limits", **self._values)

    def bases(self) -> list[tuple[str, str]]:
        """Return what answers may rest on, as shown and by key."""
        words = self._page.words
        first = [(words("base_none"), ""), (words("base_own"), OWN)]
        named = [(each, each) for each in self._library.names()]
        return [*(first if self._page.settings.uploads else first[:1]), *named]

    def targets(self) -> list[tuple[str, str]]:
        """Return where documents may be added."""
        own = [(self._page.words("base_own"), OWN)]
        return own + [(each, each) for each in self._library.named()]

    def add(self, visit: Visit, paths: Sequence[Path], name: str) -> tuple[list[str], bool]:
        """Take documents in and bring the index up to date.

        :return: what happened, line by line, and whether the base can be asked now.
        """
        problem = self._refused(name)
        lines = [problem] if problem else self._shelved(paths, name, visit)
        for each in paths:  # the page's copies
            with suppress(OSError):
                each.unlink()
        known = name in (key for _, key in self.bases())
        return lines, not problem and known and self._library.holds(name, visit)

    def _refused(self, name: str) -> str | None:
        """Return why nothing may be added to a base of this name."""
        words, named = self._page.words, self._library.named()
        if name == OWN or name in named:
            return None
        if name in self._library.fixed:
            return words("read_only", name=name)
        if not good_name(name):
            return words("bad_base")
        most = self._page.settings.max_bases
        return words("too_many_bases", count=len(named)) if len(named) >= most else None

    def _shelved(self, paths: Sequence[Path], name: str, visit: Visit) -> list[str]:
        folder = visit.documents if name == OWN else self._library.shelf / name
        with self._library.shelving:
            taken = take_in(paths, folder, self._limits)
        lines = self._said(taken)
        if taken.added:
            lines += self._indexed(folder, taken)
        if visit.gone and name == OWN:  # left while this was read
            self._page.visits.end(visit)
        self._library.tidy(folder)
        held = documents_in(folder)
        if set(held) > set(taken.added):
            names = ", ".join(held[:_SHOWN]) + (" …" if len(held) > _SHOWN else "")
            lines.append(self._page.words("held", count=len(held), names=names))
        return lines

    def _said(self, taken: Taken) -> list[str]:
        words = self._page.words
        return [words(key, **{"name": name, **self._values}) for key, name in taken.refused]

    def _indexed(self, folder: Path, taken: Taken) -> list[str]:
        """Read what was added; what cannot be read does not stay."""
        words, voice = self._page.words, self._page.talk.voices.of(None)
        try:
            unread: Mapping[str, str] = self._library.update(folder, voice.model)
        except GlmkitError as error:
            unread = dict.fromkeys(taken.added, in_words(error, words))
        lines = []
        for name in taken.added:
            if name in unread:
                (folder / name).unlink(missing_ok=True)
                lines.append(words("unread", name=name, reason=unread[name]))
        read = [each for each in taken.added if each not in unread]
        return [*lines, words("added", names=", ".join(read)) if read else words("none_added")]
