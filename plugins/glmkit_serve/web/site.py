"""The web site: the page in each language, behind its entrance."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, Request
from starlette.responses import RedirectResponse, Response

from glmkit import tell_library

from .building import CSS, build, theme
from .entrance import Entrance
from .inspection import Inspection
from .words import LANGUAGES, Words, preferred

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .page import Page
    from .tabs import Tab

_BESIDE = 16
"""Threads of one page for all but answers: uploads, drawing, opinions."""


def site(
    page: Page,
    tabs: list[Tab],
    *,
    keys: tuple[str, ...] = (),
    hosts: tuple[str, ...] | None = None,
) -> FastAPI:
    """Return the whole site; ``/`` leads to the page in the browser's language.

    :param page: what the tabs are built from, in any language.
    :param keys: one of them is asked for as the password; none: nobody is asked.
    :param hosts: names that the site may be called; None: any.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan(page))

    @app.get("/")
    def home(request: Request) -> RedirectResponse:
        language = preferred(request.headers.get("accept-language", ""))
        return RedirectResponse(
            f"{language}/", status_code=307, headers={"vary": "accept-language"}
        )

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)

    # Where Gradio keeps what is sent and drawn: it has no other way to be told, and its own place
    # is shared with every user of the machine.
    tell_library("GRADIO_TEMP_DIR", str(page.visits.root / "gradio"))
    for language in LANGUAGES:
        blocks = build(replace(page, words=Words(language)), tabs)
        blocks.queue(max_size=None, default_concurrency_limit=_BESIDE)
        _mount(app, blocks, language, page)
    app.add_middleware(Inspection)
    app.add_middleware(Entrance, keys=keys, hosts=hosts, proxies=page.settings.hosts)
    return app


def _mount(app: FastAPI, blocks: gr.Blocks, language: str, page: Page) -> None:
    gr.mount_gradio_app(
        app,
        blocks,
        path=f"/{language}",
        footer_links=[],
        run_history=False,
        show_error=True,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        max_file_size=page.settings.max_bytes,
        theme=theme(),
        css=CSS,
    )


def _needed(page: Page) -> int:
    return (page.settings.concurrency + _BESIDE) * len(LANGUAGES)


def _lifespan(page: Page) -> Any:  # noqa: ANN401
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Each answer holds a thread while it waits for its next word; others are to be served, too.
        threads = current_default_thread_limiter()
        threads.total_tokens = max(threads.total_tokens, _needed(page))
        yield
        page.visits.close()

    return lifespan
