"""The panel beside the conversation: what answers rest on, and documents to add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from glmkit import GlmkitError

from .escaping import as_text
from .library import OWN, good_name
from .talk import in_words
from .uploads import TYPES, Limits, documents_in, take_in

if TYPE_CHECKING:
    from .page import Page
    from .uploads import Taken
    from .visits import Visit

_SHOWN = 8
"""Names of documents that are listed."""


def documents_panel(page: Page, blocks: gr.Blocks) -> gr.Dropdown:
    """Build the panel; return the choice of what answers rest on."""
    words, shelf = page.words, _Shelf(page)
    base = gr.Dropdown(
        shelf.bases(), value="", label=words("base"), info=words("base_more"), elem_id="base"
    )
    if not page.settings.uploads:
        return base
    with gr.Accordion(words("upload"), open=True, elem_id="documents"):
        files = gr.File(
            file_count="multiple",
            file_types=list(TYPES),
            height=130,
            show_label=False,
            elem_id="files",
        )
        into = gr.Dropdown(
            shelf.targets(),
            value=OWN,
            label=words("upload_to"),
            info=words("upload_to_more"),
            allow_custom_value=True,
            elem_id="into",
        )
        told = gr.HTML(shelf.limits(), elem_id="told")
    files.upload(shelf.add, [files, into], [files, base, into, told], api_visibility="private")
    blocks.load(shelf.opened, None, [base, into], api_visibility="private", show_progress="hidden")
    return base


class _Shelf:
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

    def limits(self) -> str:
        """Say what may be added."""
        return f"<small>{as_text(self._page.words('limits', **self._values))}</small>"

    def opened(self) -> tuple[Any, Any]:
        """Show the bases that have been made meanwhile."""
        return gr.update(choices=self.bases()), gr.update(choices=self.targets())

    def add(
        self, request: gr.Request, sent: Sequence[str] | None, into: str
    ) -> tuple[None, Any, Any, str]:
        """Take documents in and bring the index up to date; say what happened."""
        visit = self._page.visits.of(request.session_hash)
        paths = [Path(each) for each in sent or ()]
        name = (into or OWN).strip()
        problem = self._refused(name)
        lines = [problem] if problem else self._shelved(paths, name, visit)
        for each in paths:  # Gradio's copy
            with suppress(OSError):
                each.unlink()
        good = not problem and self._library.holds(name, visit)
        base = gr.update(choices=self.bases(), **({"value": name} if good else {}))
        told = "".join(f"<p>{as_text(line)}</p>" for line in lines)
        return None, base, gr.update(choices=self.targets()), told + self.limits()

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
        taken = take_in(paths, folder, self._limits)
        lines = self._said(taken)
        if taken.added:
            lines += self._indexed(folder, taken)
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
