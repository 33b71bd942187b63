"""Ask a folder of documents: retrieval, cited answers, refusal, and the app ``knowledge-chat``.

Hooks: ``startup``, ``register_commands``, ``register_apps``, ``register_encoders``,
``knowledge_model``, ``extra_context`` and ``response_done``. Importing this module is free; what
does the work is imported when it is first needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import glmkit

if TYPE_CHECKING:
    from pathlib import Path

    from glmkit import (
        ChatModel,
        Glmkit,
        Passage,
        RegisterCommand,
        RegisterSpec,
        Reply,
        Request,
    )

    from .retrieve import KnowledgeQuery

NAME = "knowledge"


@glmkit.hookimpl
def startup(app: Glmkit) -> None:
    """Check ``[plugins.knowledge]``.

    :raises ConfigError: if a key is unknown or a value out of range.
    """
    table = app.plugin_config(NAME)
    if table:
        from .settings import Settings

        Settings.of(table)


@glmkit.hookimpl
def register_commands(register: RegisterCommand) -> None:
    """Add ``glmkit kb``."""
    register(
        "kb", "Index, search, inspect and evaluate knowledge bases.", f"{__name__}.commands:kb"
    )


@glmkit.hookimpl
def register_apps(register: RegisterCommand) -> None:
    """Add ``glmkit run knowledge-chat``."""
    register(
        "knowledge-chat",
        "Ask a folder of documents, with sources.",
        f"{__name__}.app:knowledge_chat",
    )


@glmkit.hookimpl
def register_encoders(register: RegisterSpec) -> None:
    """Add sentence-transformers models as encoders."""
    register(
        glmkit.Spec(
            "sentence-transformers",
            "Any sentence-transformers model, by folder or hub id.",
            f"{__name__}.encoders:load_sentence_transformer",
            accepts=_is_sentence_transformer,
        )
    )


def _is_sentence_transformer(path: Path) -> bool:
    from .encoders import is_sentence_transformer

    return is_sentence_transformer(path)


@glmkit.hookimpl(trylast=True)
def knowledge_model(path: Path, model: ChatModel, app: Glmkit) -> ChatModel:
    """Answer from a folder of documents, or from one of them."""
    from .standing import StandingModel

    return StandingModel.open(app, path, model)


@glmkit.hookimpl
def extra_context(request: Request) -> list[Passage] | None:
    """Offer the passages that answer, where a turn named a knowledge base."""
    query: KnowledgeQuery | None = request.settings.get(NAME)
    return None if query is None else query.passages(request)


@glmkit.hookimpl
def response_done(request: Request, reply: Reply) -> None:
    """Keep a list of what the knowledge base could not answer, if one was asked for."""
    query: KnowledgeQuery | None = request.settings.get(NAME)
    if query is not None and query.log_unanswered is not None and reply.finish_reason == "refused":
        from .unanswered import log

        log(query.log_unanswered, request, query.last)
