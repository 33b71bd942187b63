"""Serving: an API as OpenAI's, a page to chat on, a queue of questions.

Hooks: ``startup``, ``register_commands``, ``register_apps``; hooks of its own: ``register_tabs``,
``register_routes``.
Importing this module is free; what does the work is imported when it is first needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import glmkit

if TYPE_CHECKING:
    from fastapi import APIRouter

    from glmkit import Glmkit, RegisterCommand

    from .api.served import Serving
    from .web.tabs import RegisterTab

NAME = "serve"


@glmkit.hookspec
def register_tabs(register: RegisterTab) -> None:
    """Add tabs to the web page: ``register(Tab(name, "module:function", titles))``.

    Called when ``glmkit run web`` starts; the function is imported then, too, and builds its tab
    from Gradio's components.
    """


@glmkit.hookspec
def register_routes(router: APIRouter, serving: Serving) -> None:
    """Add routes to ``glmkit serve``, behind its keys and limits: ``router.get("/mine")(answer)``.

    Called once, when the server starts; ``serving.models`` holds what answers under which name.
    """


@glmkit.hookimpl
def startup(app: Glmkit) -> None:
    """Check ``[plugins.serve]`` and the tables in it.

    :raises ConfigError: if a key is unknown or a value out of range.
    """
    table = app.plugin_config(NAME)
    if table:
        from .settings import Settings

        Settings.of(table)
    if "web" in table:
        from .web.settings import WebSettings

        WebSettings.of(table["web"])
    if "queue" in table:
        from .queue.settings import QueueSettings

        QueueSettings.of(table["queue"])


@glmkit.hookimpl
def register_commands(register: RegisterCommand) -> None:
    """Add ``glmkit serve`` and ``glmkit queue``."""
    register("serve", "Serve models over HTTP, as OpenAI's API.", f"{__name__}.command:serve")
    register("queue", "Ask the queue, and look into it.", f"{__name__}.queue.commands:queue")


@glmkit.hookimpl
def register_apps(register: RegisterCommand) -> None:
    """Add ``glmkit run web`` and ``glmkit run queue``."""
    register(
        "web",
        "Chat, ask documents and draw in a browser.",
        f"{__name__}.web.command:web",
    )
    register(
        "queue",
        "Answer questions out of a database, in order, each once.",
        f"{__name__}.queue.command:queue",
    )
