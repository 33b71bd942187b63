"""The tab to talk in: the conversation, what is chosen beside it, and opinions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from .documents import documents_panel
from .opinions import improve, rate, turn_at
from .talk import Wanted, rows_of
from .voices import suited, told

if TYPE_CHECKING:
    from glmkit.feedback import Rating

    from .page import Page
    from .visits import Visit

Update = Any
"""What Gradio takes for one component: a value, or a change of its properties."""


@dataclass(frozen=True)
class _Parts:
    """The components that take part in a conversation."""

    talk: gr.Chatbot
    box: gr.Textbox
    review: gr.Group
    better: gr.Textbox
    chosen: list[Any]
    """In the order of :class:`~.talk.Wanted`."""


def chat_tab(page: Page, blocks: gr.Blocks) -> None:
    """Build the tab into the block that is open."""
    words = page.words
    with gr.Row(equal_height=False):
        with gr.Column(scale=7, min_width=320):
            talk = _conversation(page)
            with gr.Group(visible=False, elem_id="review") as review:
                better = gr.Textbox(
                    label=words("better"), info=words("better_more"), lines=2, elem_id="better"
                )
                with gr.Row():
                    close = gr.Button(words("close"), size="sm")
                    save = gr.Button(words("save"), size="sm", variant="primary", elem_id="save")
            box = _box(page)
        with gr.Column(scale=3, min_width=280, elem_id="side"):
            fresh = gr.Button(words("new_chat"), size="sm", elem_id="fresh")
            base = documents_panel(page, blocks)
            choices = _choices(page)
    parts = _Parts(talk, box, review, better, [choices[0], base, *choices[1:]])
    _connect(_Turns(page), parts, fresh, page.settings.concurrency)
    _connect_opinions(_Opinions(page), parts, save, close)


def _conversation(page: Page) -> gr.Chatbot:
    words = page.words
    welcome = f"## {words('welcome')}\n{words('welcome_more')}"
    if speaks := told(page.model.languages, words):
        welcome += f"\n\n{speaks}"
    return gr.Chatbot(
        elem_id="talk",
        show_label=False,
        layout="bubble",
        buttons=["copy"],
        placeholder=welcome,
        examples=[{"text": words(f"example_{each}")} for each in (1, 2, 3)],
        height=None,
        group_consecutive_messages=False,
        allow_tags=False,
    )


def _box(page: Page) -> gr.Textbox:
    return gr.Textbox(
        elem_id="box",
        show_label=False,
        placeholder=page.words("message"),
        submit_btn=True,
        stop_btn=False,
        lines=1,
        max_lines=6,
        max_length=page.settings.max_chars,
        autofocus=True,
    )


def _choices(page: Page) -> list[Any]:
    """Build what else is chosen; in the order of :class:`~.talk.Wanted`, the base left out."""
    words, asked = page.words, page.app.config.generation
    warmth, share = suited(page.model)
    names = page.talk.voices.names()
    with gr.Accordion(words("settings"), open=False, elem_id="settings"):
        voice = gr.Dropdown(names, value=names[0], label=words("model"), elem_id="voice")
        system = gr.Textbox(label=words("system"), info=words("system_more"), lines=2, max_lines=4)
        temperature = gr.Slider(
            0,
            2,
            value=warmth if asked.temperature is None else asked.temperature,
            step=0.05,
            label=words("temperature"),
            info=words("temperature_more"),
        )
        top_p = gr.Slider(
            0.05,
            1,
            value=share if asked.top_p is None else asked.top_p,
            step=0.05,
            label=words("top_p"),
            info=words("top_p_more"),
        )
        most = page.settings.max_tokens
        tokens = gr.Slider(
            16, most, value=min(asked.max_tokens, most), step=16, label=words("max_tokens")
        )
        # A field for numbers shows 0 where nothing was given.
        chosen = "" if asked.seed is None else str(asked.seed)
        seed = gr.Textbox(chosen, label=words("seed"), info=words("seed_more"), elem_id="seed")
    return [voice, system, temperature, top_p, tokens, seed]


class _Turns:
    """Asks, and shows what comes."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def _visit(self, request: gr.Request) -> Visit:
        return self._page.visits.of(request.session_hash)

    def _rows(self, visit: Visit) -> Update:
        return rows_of(visit, self._page.words)

    def ask(
        self,
        request: gr.Request,
        question: str,
        *chosen: Any,  # noqa: ANN401
    ) -> Iterator[tuple[Update, Update]]:
        """Yield the conversation and the box while an answer grows."""
        visit = self._visit(request)
        question = (question or "").strip()
        words, most = self._page.words, self._page.settings.max_chars
        if not question:
            yield gr.skip(), gr.skip()
        elif len(question) > most:
            gr.Warning(words("too_long", count=most), title=words("notice"))
            yield gr.skip(), gr.skip()
        elif visit.busy.locked():
            gr.Warning(words("still_answering"), title=words("notice"))
            yield gr.skip(), gr.skip()
        else:
            yield from self._asked(visit, question, Wanted(*chosen))

    def _asked(
        self, visit: Visit, question: str, wanted: Wanted
    ) -> Iterator[tuple[Update, Update]]:
        box = gr.update(value="", submit_btn=False, stop_btn=True)
        for _ in self._page.talk.ask(visit, question, wanted, self._page.words):
            yield self._rows(visit), box
            box = gr.skip()

    def example(
        self,
        request: gr.Request,
        event: gr.SelectData,
        *chosen: Any,  # noqa: ANN401
    ) -> Iterator[tuple[Update, Update]]:
        """Ask one of the examples."""
        text = event.value.get("text", "") if isinstance(event.value, dict) else ""
        yield from self.ask(request, str(text), *chosen)

    def again(
        self,
        request: gr.Request,
        event: gr.RetryData,
        *chosen: Any,  # noqa: ANN401
    ) -> Iterator[tuple[Update, Update]]:
        """Ask the last question once more; its answer and what was thought of it stay stored."""
        visit = self._visit(request)
        if visit.turns and not visit.busy.locked():
            yield from self.ask(request, visit.turns.pop().question, *chosen)
        else:
            yield gr.skip(), gr.skip()

    def undo(self, request: gr.Request) -> tuple[Update, Update]:
        """Take the last turn back, its question into the box."""
        visit = self._visit(request)
        if not visit.turns or visit.busy.locked():
            return gr.skip(), gr.skip()
        question = visit.turns.pop().question
        return self._rows(visit), question

    def stop(self, request: gr.Request) -> None:
        """End the answer that grows."""
        self._visit(request).stopped.set()

    def settle(self, request: gr.Request) -> tuple[Update, Update]:
        """Show how it ended, whatever happened, and take the next question."""
        rows = self._rows(self._visit(request))
        return rows, gr.update(submit_btn=True, stop_btn=False)

    def begin(self, request: gr.Request) -> tuple[Update, Update, Update]:
        """Forget the conversation; documents stay."""
        visit = self._visit(request)
        visit.stopped.set()
        visit.turns, visit.reviewed = [], None
        return [], gr.update(submit_btn=True, stop_btn=False), gr.update(visible=False)


def _connect(turns: _Turns, parts: _Parts, fresh: gr.Button, side_by_side: int) -> None:
    """Say what happens when."""
    shown = [parts.talk, parts.box]
    many: dict[str, Any] = {
        "concurrency_limit": side_by_side,
        "concurrency_id": "ask",
        "show_progress": "hidden",
    }
    now: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    chosen = parts.chosen
    asked = (
        parts.box.submit(turns.ask, [parts.box, *chosen], shown, api_name="ask", **many),
        parts.talk.example_select(turns.example, chosen, shown, api_visibility="private", **many),
        parts.talk.retry(turns.again, chosen, shown, api_visibility="private", **many),
    )
    for each in asked:
        each.then(turns.settle, None, shown, **now)
    parts.talk.undo(turns.undo, None, shown, **now)
    parts.box.stop(turns.stop, None, None, **now)
    for anew in (fresh.click, parts.talk.clear):
        anew(turns.begin, None, [*shown, parts.review], **now)


class _Opinions:
    """Takes what visitors think of answers."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def rate(self, request: gr.Request, event: gr.LikeData) -> tuple[Update, Update]:
        """Store a thumb; ask for a better answer."""
        visit = self._page.visits.of(request.session_hash)
        turn = turn_at(visit, event.index)
        if turn is None:
            return gr.skip(), gr.skip()
        ratings: dict[object, Rating] = {True: 1, False: -1}
        rating = ratings.get(event.liked, 0)
        rate(self._page.store, turn, rating)
        self._say("thanks" if rating else "withdrawn")
        visit.reviewed = turn if rating else None
        return gr.update(visible=rating != 0), ""

    def save(self, request: gr.Request, better: str) -> Update:
        """Store a better answer."""
        visit = self._page.visits.of(request.session_hash)
        if visit.reviewed is not None and better.strip():
            improve(self._page.store, visit.reviewed, better[: self._page.settings.max_chars])
            self._say("improved")
        return self.close(request)

    def _say(self, key: str) -> None:
        gr.Info(self._page.words(key), duration=3, title=self._page.words("feedback"))

    def close(self, request: gr.Request) -> Update:
        """Ask no more."""
        self._page.visits.of(request.session_hash).reviewed = None
        return gr.update(visible=False)


def _connect_opinions(
    opinions: _Opinions, parts: _Parts, save: gr.Button, close: gr.Button
) -> None:
    now: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    parts.talk.like(opinions.rate, None, [parts.review, parts.better], **now)
    save.click(opinions.save, [parts.better], [parts.review], **now)
    close.click(opinions.close, None, [parts.review], **now)
