"""glmkit runs, extends and trains the ChatGLM / GLM family.

Importing this package is free: no torch, no network, no command line. Public names load what they
need when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .app import Glmkit, ModelInfo, load, load_encoder
    from .chat import REFUSALS, Chat, Policy, language_of
    from .config import Config
    from .console import show_progress
    from .errors import (
        CheckpointError,
        ConfigError,
        DataError,
        GlmkitError,
        MissingExtraError,
        OfflineError,
        PluginError,
        SourceError,
        UnknownNameError,
        UsageError,
    )
    from .hookspecs import hookimpl, hookspec
    from .plugins import Plugins, Spec
    from .repl import Repl
    from .types import (
        ChatModel,
        Chunk,
        Encoder,
        GenerationOptions,
        InspectableModel,
        Message,
        Passage,
        Progress,
        Reply,
        Request,
        Usage,
    )

_HOMES = {
    "app": ("Glmkit", "ModelInfo", "load", "load_encoder"),
    "chat": ("REFUSALS", "Chat", "Policy", "language_of"),
    "config": ("Config",),
    "console": ("show_progress",),
    "errors": (
        "CheckpointError",
        "ConfigError",
        "DataError",
        "GlmkitError",
        "MissingExtraError",
        "OfflineError",
        "PluginError",
        "SourceError",
        "UnknownNameError",
        "UsageError",
    ),
    "hookspecs": ("hookimpl", "hookspec"),
    "plugins": ("Plugins", "Spec"),
    "repl": ("Repl",),
    "types": (
        "ChatModel",
        "Chunk",
        "Encoder",
        "GenerationOptions",
        "InspectableModel",
        "Message",
        "Passage",
        "Progress",
        "Reply",
        "Request",
        "Usage",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
