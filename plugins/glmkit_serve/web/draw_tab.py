"""The tab to draw in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from glmkit import DrawOptions, GlmkitError, UsageError

from .drawing import Brush
from .escaping import as_text
from .talk import in_words, seed_of

if TYPE_CHECKING:
    from .page import Page

_SIZES = ("64x64", "256x256", "512x512", "768x768", "512x768", "768x512", "1024x1024")
_SIZE = re.compile(r"\s*(\d{1,4})\s*[x×*]\s*(\d{1,4})\s*", re.IGNORECASE)
_MOST = 8
"""Pictures at once."""


def draw_tab(page: Page) -> None:
    """Build the tab into the block that is open."""
    words = page.words
    if not page.drawing.offered:
        gr.Markdown(f"{words('no_drawing')}\n\n    pip install 'glmkit[drawing]'")
        return
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=280):
            wish = gr.Textbox(
                label=words("wish"), placeholder=words("wish_example"), lines=2, elem_id="wish"
            )
            with gr.Row():
                go = gr.Button(words("draw_now"), variant="primary", elem_id="draw")
                stop = gr.Button(words("stop"), elem_id="stop-drawing")
            chosen = _choices(page)
        with gr.Column(scale=7, min_width=320):
            told = gr.HTML("", elem_id="drawn")
            gallery = gr.Gallery(
                label=words("pictures"),
                columns=2,
                height=None,
                object_fit="contain",
                elem_id="pictures",
            )
    turns = _Pictures(page)
    for event in (go.click, wish.submit):
        event(
            turns.draw,
            [wish, *chosen],
            [gallery, told],
            api_visibility="private",
            show_progress="hidden",
            concurrency_limit=4,
            concurrency_id="draw",
        )
    stop.click(turns.stop, None, None, queue=False, api_visibility="private")


def _choices(page: Page) -> list[Any]:
    words, names = page.words, page.drawing.names()
    count = gr.Slider(1, _MOST, value=1, step=1, label=words("count"), elem_id="count")
    seed = gr.Textbox("", label=words("picture_seed"), elem_id="picture-seed")
    with gr.Accordion(words("more"), open=False):
        model = gr.Dropdown(
            names or [""],
            value=names[0] if names else "",
            label=words("image_model"),
            visible=bool(names),
        )
        styles = [(words("lora_none"), ""), *((each, each) for each in page.drawing.loras)]
        offered = bool(page.drawing.loras)
        lora = gr.Dropdown(styles, value="", label=words("lora"), visible=offered)
        weight = gr.Slider(-1, 2, value=1, step=0.05, label=words("lora_weight"), visible=offered)
        negative = gr.Textbox(label=words("negative"))
        size = gr.Dropdown(
            [(words("size_own"), ""), *((each, each) for each in _SIZES)],
            value="",
            label=words("size"),
            allow_custom_value=True,
        )
        steps = gr.Slider(0, 100, value=0, step=1, label=words("steps"))
        guidance = gr.Slider(0, 20, value=0, step=0.5, label=words("guidance"))
    return [model, lora, weight, negative, size, steps, guidance, seed, count]


class _Pictures:
    """Draws, and shows how far it is."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def draw(
        self,
        request: gr.Request,
        wish: str,
        model: str,
        lora: str,
        weight: float,
        *chosen: Any,  # noqa: ANN401
    ) -> Iterator[tuple[Any, Any]]:
        """Yield the gallery and what there is to say."""
        words = self._page.words
        if not (wish or "").strip():
            yield gr.skip(), _told(words("no_wish"))
            return
        visit = self._page.visits.of(request.session_hash)
        visit.undrawn.clear()
        yield gr.skip(), _told(words("drawing"))
        try:
            brush, options = Brush(model, lora, weight), _options(*chosen)
            work = self._page.drawing.draw(visit, wish.strip(), options, brush)
            paths = yield from self._watched(work)
        except GlmkitError as error:
            yield gr.skip(), _told(in_words(error, words))
            return
        seeds = ", ".join(each.stem.partition("-")[2] for each in paths)
        shown = [str(each) for each in paths] if paths else gr.skip()
        yield shown, _told(words("drawn", seeds=seeds) if paths else words("stopped"))

    def _watched(self, work: Any) -> Any:  # noqa: ANN401 -- a generator; its return value counts
        while True:
            try:
                step = next(work)
            except StopIteration as done:
                return done.value
            whole = f"/{step.total}" if step.total else ""
            yield gr.skip(), _told(f"{self._page.words('drawing')} {step.done}{whole}")

    def stop(self, request: gr.Request) -> None:
        """End the drawing."""
        self._page.visits.of(request.session_hash).undrawn.set()


def _told(text: str) -> str:
    return f"<p>{as_text(text)}</p>"


def _options(
    negative: str,
    size: str,
    steps: float,
    guidance: float,
    seed: str,
    count: float,
) -> DrawOptions:
    """Return what a visitor chose.

    :raises UsageError: if a value is out of range: they come from browsers.
    """
    if not 1 <= count <= _MOST:
        raise UsageError(f"pictures must be from 1 to {_MOST}, got {count!r}")
    return DrawOptions(
        negative=(negative or "").strip(),
        size=_size(size),
        steps=int(steps) or None,
        guidance=guidance or None,
        seed=seed_of(seed),
        count=int(count),
    )


def _size(text: str | None) -> tuple[int, int] | None:
    if not (text or "").strip():
        return None
    found = _SIZE.fullmatch(str(text))
    if found is None:
        raise UsageError(f"a size is WIDTHxHEIGHT such as 64x64, got {text!r}")
    return int(found[1]), int(found[2])
