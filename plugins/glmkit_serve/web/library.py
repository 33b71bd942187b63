"""The documents that answers may rest on: the operator's, named bases, and a visitor's own."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from glmkit import UnknownNameError

from .uploads import documents_in

if TYPE_CHECKING:
    from glmkit import ChatModel

    from .visits import Visit

OWN = "@own"
"""The key of the base that belongs to one visit."""
_NAME = re.compile(r"[^\W_](?:[\w \-]{0,38}[\w\-])?")


class Library:
    """The knowledge bases that the page offers.

    :param opened: makes a model that answers from a folder and speaks through another; as
        ``Glmkit.knowledge_model``.
    :param fixed: folders of the operator by name; nothing is ever written there.
    :param shelf: the folder with the bases that visitors named.
    """

    def __init__(
        self,
        opened: Callable[[Path, ChatModel], ChatModel],
        *,
        fixed: Mapping[str, Path],
        shelf: Path,
    ) -> None:
        self._opened = opened
        self.fixed = dict(fixed)
        self.shelf = shelf
        self._models: dict[tuple[Path, int], ChatModel] = {}
        self._turns: dict[Path, threading.Lock] = {}
        """By folder: reading documents takes its time, and only those who ask them wait."""
        self._changing = threading.Lock()
        self.shelving = threading.Lock()
        """Held while files are put into folders."""

    def names(self) -> list[str]:
        """Return the bases that everybody may ask."""
        return [*self.fixed, *self.named()]

    def named(self) -> list[str]:
        """Return the bases that visitors named."""
        if not self.shelf.is_dir():
            return []
        found = sorted(each.name for each in self.shelf.iterdir() if each.is_dir())
        return [each for each in found if good_name(each) and each not in self.fixed]

    def folder(self, name: str, visit: Visit) -> Path:
        """Return where the documents of a base are.

        :raises UnknownNameError: if there is none of this name; names come from browsers.
        """
        if name == OWN:
            return visit.documents
        if name in self.fixed:
            return self.fixed[name]
        if name in self.named():
            return self.shelf / name
        raise UnknownNameError("knowledge base", name, self.names())

    def holds(self, name: str, visit: Visit) -> bool:
        """Tell whether there is anything to answer from."""
        folder = self.folder(name, visit)
        return name in self.fixed or bool(documents_in(folder))

    def model(self, name: str, visit: Visit, speaker: ChatModel) -> ChatModel:
        """Return who answers from a base, through ``speaker``.

        :raises GlmkitError: if the documents cannot be read.
        """
        return self._model(self.folder(name, visit), speaker)

    def _model(self, folder: Path, speaker: ChatModel) -> ChatModel:
        key = (folder, id(speaker))
        with self._turn(folder):
            if key not in self._models:
                self._models[key] = self._opened(folder, speaker)
            return self._models[key]

    def _turn(self, folder: Path) -> threading.Lock:
        with self._changing:
            return self._turns.setdefault(folder, threading.Lock())

    def update(self, folder: Path, speaker: ChatModel) -> Mapping[str, str]:
        """Read what changed in a folder; return why some of it could not be read, by name.

        :raises GlmkitError: if nothing there can be read.
        """
        self.forget(folder)
        model = self._model(folder, speaker)
        return {Path(path).name: reason for path, reason in getattr(model, "skipped", ())}

    def forget(self, folder: Path) -> list[ChatModel]:
        """Let the models of a folder go and return them; answers that run on go on with theirs."""
        with self._turn(folder):
            return [self._models.pop(each) for each in list(self._models) if each[0] == folder]

    def remove(self, folder: Path) -> None:
        """Delete the index of a folder whose documents are gone."""
        for model in self.forget(folder):
            remove = getattr(model, "remove", None)
            if remove is not None:
                remove()
        with self._changing:
            self._turns.pop(folder, None)

    def tidy(self, folder: Path) -> None:
        """Remove a folder without documents, and its index."""
        with self.shelving:
            if not documents_in(folder):
                self.remove(folder)
                with suppress(OSError):  # somebody else may have removed it, or keep notes there
                    folder.rmdir()


def good_name(name: str) -> bool:
    """Tell whether a base may be called so: it becomes the name of a folder."""
    return bool(_NAME.fullmatch(name)) and name.strip() == name
