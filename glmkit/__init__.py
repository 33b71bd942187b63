"""glmkit runs, extends and trains the ChatGLM / GLM family.

Importing this package is free: no torch, no network, no command line. Public names load what they
need when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .app import (
        Glmkit as Glmkit,
        ModelInfo as ModelInfo,
    )
    from .chat import (
        REFUSALS as REFUSALS,
        Chat as Chat,
        Policy as Policy,
        language_of as language_of,
    )
    from .commands.options import (
        LOADING as LOADING,
        SAMPLING as SAMPLING,
        given_of as given_of,
        model_options as model_options,
        sampling_options as sampling_options,
    )
    from .config import (
        Config as Config,
        refuse_unknown as refuse_unknown,
        tell_library as tell_library,
    )
    from .console import (
        show_progress as show_progress,
    )
    from .errors import (
        BadStepError as BadStepError,
        BusyError as BusyError,
        CheckpointError as CheckpointError,
        ClosedError as ClosedError,
        ConfigError as ConfigError,
        DataError as DataError,
        GlmkitError as GlmkitError,
        MissingExtraError as MissingExtraError,
        OfflineError as OfflineError,
        OutOfMemoryError as OutOfMemoryError,
        PluginError as PluginError,
        ServerError as ServerError,
        SourceError as SourceError,
        TimeLimitError as TimeLimitError,
        UnknownNameError as UnknownNameError,
        UsageError as UsageError,
    )
    from .generation import (
        GenerationOptions as GenerationOptions,
    )
    from .hookspecs import (
        hookimpl as hookimpl,
        hookspec as hookspec,
    )
    from .loading import (
        load as load,
        load_encoder as load_encoder,
    )
    from .pictures import (
        DrawOptions as DrawOptions,
        ImageModel as ImageModel,
        Picture as Picture,
    )
    from .plugins import (
        Plugins as Plugins,
        RegisterCommand as RegisterCommand,
        RegisterRecipe as RegisterRecipe,
        RegisterSpec as RegisterSpec,
        Spec as Spec,
    )
    from .recipes import (
        Alias as Alias,
        Recipe as Recipe,
        RecipeSpec as RecipeSpec,
        StepLog as StepLog,
    )
    from .repl import (
        Repl as Repl,
    )
    from .runtime.adapters import (
        Adapter as Adapter,
        LowRank as LowRank,
        read_adapter as read_adapter,
    )
    from .servers import (
        Server as Server,
    )
    from .structured import (
        ResponseFormat as ResponseFormat,
    )
    from .tools import (
        Tool as Tool,
    )
    from .types import (
        Answers as Answers,
        Ask as Ask,
        ChatModel as ChatModel,
        Chunk as Chunk,
        Encoder as Encoder,
        FinishReason as FinishReason,
        InspectableModel as InspectableModel,
        Message as Message,
        MessageLike as MessageLike,
        Passage as Passage,
        Progress as Progress,
        Reply as Reply,
        Request as Request,
        StreamedModel as StreamedModel,
        TokenLogprob as TokenLogprob,
        ToolCall as ToolCall,
        Usage as Usage,
    )

_HOMES = {
    "app": ("Glmkit", "ModelInfo"),
    "chat": ("REFUSALS", "Chat", "Policy", "language_of"),
    "commands.options": (
        "LOADING",
        "SAMPLING",
        "given_of",
        "model_options",
        "sampling_options",
    ),
    "config": ("Config", "refuse_unknown", "tell_library"),
    "console": ("show_progress",),
    "errors": (
        "BadStepError",
        "BusyError",
        "CheckpointError",
        "ClosedError",
        "ConfigError",
        "DataError",
        "GlmkitError",
        "MissingExtraError",
        "OfflineError",
        "OutOfMemoryError",
        "PluginError",
        "ServerError",
        "SourceError",
        "TimeLimitError",
        "UnknownNameError",
        "UsageError",
    ),
    "generation": ("GenerationOptions",),
    "hookspecs": ("hookimpl", "hookspec"),
    "loading": ("load", "load_encoder"),
    "pictures": ("DrawOptions", "ImageModel", "Picture"),
    "plugins": (
        "Plugins",
        "RegisterCommand",
        "RegisterRecipe",
        "RegisterSpec",
        "Spec",
    ),
    "recipes": ("Alias", "Recipe", "RecipeSpec", "StepLog"),
    "repl": ("Repl",),
    "runtime.adapters": ("Adapter", "LowRank", "read_adapter"),
    "servers": ("Server",),
    "structured": ("ResponseFormat",),
    "tools": ("Tool",),
    "types": (
        "Answers",
        "Ask",
        "ChatModel",
        "Chunk",
        "Encoder",
        "FinishReason",
        "InspectableModel",
        "Message",
        "MessageLike",
        "Passage",
        "Progress",
        "Reply",
        "Request",
        "StreamedModel",
        "TokenLogprob",
        "ToolCall",
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
