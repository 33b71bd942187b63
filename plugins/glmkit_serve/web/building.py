"""The page in one language: its tabs and its looks."""

from __future__ import annotations

import logging
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import gradio as gr

from .chat_tab import chat_tab
from .draw_tab import draw_tab
from .words import LANGUAGES

if TYPE_CHECKING:
    from .page import Page
    from .tabs import Tab

log = logging.getLogger(__name__)

# Fonts of the reader's own machine: the page fetches nothing from elsewhere.
_FONTS = (
    *("system-ui", "-apple-system", "Segoe UI", "PingFang SC", "Microsoft YaHei"),
    *("Noto Sans CJK SC", "WenQuanYi Zen Hei", "sans-serif"),
)
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

CSS = """
.gradio-container { width: 100% !important; max-width: 1280px !important;
  margin: 0 auto !important; }
.gradio-container > .main, .gradio-container main { padding-top: .5rem !important; }
#head { align-items: center; flex-wrap: nowrap; gap: .5rem; min-height: 2.25rem; }
#title p { font-size: 1.15rem; font-weight: 650; margin: 0; }
#language { text-align: right; }
#language p { margin: 0; }
#talk { height: calc(100dvh - 13.5rem) !important; min-height: 18rem; }
.gradio-container:has(#review) #talk { height: calc(100dvh - 25rem) !important; }
#talk .example { border: 1px solid var(--border-color-primary); border-radius: .6rem; }
#talk .placeholder { text-align: center; }
#side { max-height: calc(100dvh - 6.5rem); overflow-y: auto; }
.sources { margin-top: .75rem; border-top: 1px solid var(--border-color-primary);
  padding-top: .5rem; font-size: .875em; }
.sources-head { margin: 0 0 .25rem !important; font-weight: 600; }
.source { margin: .25rem 0; }
.source summary { cursor: pointer; overflow-wrap: anywhere; }
.source .score { opacity: .65; white-space: nowrap; }
.passage { white-space: pre-wrap; overflow-wrap: anywhere; margin: .35rem 0 .5rem;
  padding: .5rem .75rem; border-left: 3px solid var(--color-accent);
  background: var(--background-fill-secondary); max-height: 16rem; overflow-y: auto; }
.note { opacity: .75; font-style: italic; margin: .25rem 0 0 !important; }
#pictures .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(min(12rem, 45%), 16rem)) !important; }
footer { display: none !important; }
@media (max-width: 768px) {
  .gradio-container { padding: 0 .5rem !important; }
  #side { max-height: none; }
  #talk { height: calc(100dvh - 12.5rem) !important; }
  .gradio-container:has(#review) #talk { height: calc(100dvh - 25.5rem) !important; }
}
"""


def build(page: Page, tabs: list[Tab]) -> gr.Blocks:
    """Return the page with our tabs and those of others."""
    with gr.Blocks(
        title="glmkit",
        analytics_enabled=False,
        fill_height=True,
        delete_cache=(3600, 3600),
    ) as blocks:
        with gr.Row(elem_id="head"):
            gr.Markdown("glmkit", elem_id="title")
            gr.HTML(_switch(page), elem_id="language")
        with gr.Tab(page.words("chat"), id="chat"):
            chat_tab(page, blocks)
        with gr.Tab(page.words("draw"), id="draw"):
            draw_tab(page)
        for each in tabs:
            with gr.Tab(each.title(page.language), id=each.name):
                _foreign(each, page)
        blocks.unload(_leaving(page))
    return blocks


def _switch(page: Page) -> str:
    other = next(each for each in LANGUAGES if each != page.language)
    return f'<a href="../{other}/" lang="{other}" target="_self">{LANGUAGES[other]}</a>'


def _foreign(tab: Tab, page: Page) -> None:
    """Show a plugin's tab, or why it cannot be shown."""
    try:
        resolve_name(tab.target)(page)
    except Exception as error:  # noqa: BLE001 -- third-party code may fail in any way
        log.warning("tab %r: %s", tab.name, error, exc_info=True)
        gr.Textbox(
            page.words("tab_failed", name=tab.name, reason=str(error)),
            show_label=False,
            interactive=False,
        )


def _leaving(page: Page) -> Any:  # noqa: ANN401
    def leave(request: gr.Request) -> None:
        page.visits.leave(request.session_hash)

    return leave


def theme() -> gr.themes.ThemeClass:
    """Return the looks, with fonts that every machine has."""
    return gr.themes.Soft(font=list(_FONTS), font_mono=list(_MONO))
