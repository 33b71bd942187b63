"""The panel beside the conversation: what answers rest on, and documents to add."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from .escaping import as_text
from .library import OWN
from .shelf import Shelf
from .uploads import TYPES

if TYPE_CHECKING:
    from .page import Page


def documents_panel(page: Page, blocks: gr.Blocks) -> gr.Dropdown:
    """Build the panel; return the choice of what answers rest on."""
    words, shelf = page.words, Shelf(page)
    added = _Added(page, shelf)
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
        told = gr.HTML(_small(shelf.limits), elem_id="told")
    files.upload(added.add, [files, into], [files, base, into, told], api_visibility="private")
    blocks.load(added.opened, None, [base, into], api_visibility="private", show_progress="hidden")
    return base


class _Added:
    """Takes what the page sends, and shows what came of it."""

    def __init__(self, page: Page, shelf: Shelf) -> None:
        self._page, self._shelf = page, shelf

    def opened(self) -> tuple[Any, Any]:
        """Show the bases that have been made meanwhile."""
        shelf = self._shelf
        return gr.update(choices=shelf.bases()), gr.update(choices=shelf.targets())

    def add(
        self, request: gr.Request, sent: Sequence[str] | None, into: str
    ) -> tuple[None, Any, Any, str]:
        """Take documents in and bring the index up to date; say what happened."""
        visit, shelf = self._page.visits.of(request.session_hash), self._shelf
        name = (into or OWN).strip()
        lines, good = shelf.add(visit, [Path(each) for each in sent or ()], name)
        base = gr.update(choices=shelf.bases(), **({"value": name} if good else {}))
        told = "".join(f"<p>{as_text(line)}</p>" for line in lines)
        return None, base, gr.update(choices=shelf.targets()), told + _small(shelf.limits)


def _small(text: str) -> str:
    return f"<small>{as_text(text)}</small>"
