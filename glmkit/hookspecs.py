"""The extension points of glmkit: everything that a plugin can hook into.

A plugin is any object (usually a module) named by an entry point in the group ``glmkit``. It
implements the hooks below with ``@glmkit.hookimpl`` and names only the arguments that it needs.
Plugins return data; the core acts on it once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from .app import Glmkit
    from .plugins import RegisterCommand, RegisterRecipe, RegisterSpec
    from .runtime.adapters import Adapter
    from .types import ChatModel, InspectableModel, Passage, Reply, Request

hookspec = pluggy.HookspecMarker("glmkit")
hookimpl = pluggy.HookimplMarker("glmkit")


@hookspec
def startup(app: Glmkit) -> None:
    """Check the plugin's own ``[plugins.<name>]`` table; called once, configuration parsed."""


@hookspec
def register_commands(register: RegisterCommand) -> None:
    """Add commands to ``glmkit``: ``register(name, help, "module:attribute")``.

    Called while the command line is built; the module is imported only when the command runs.
    """


@hookspec
def register_apps(register: RegisterCommand) -> None:
    """Add apps to ``glmkit run``: ``register(name, help, "module:attribute")``."""


@hookspec
def register_models(register: RegisterSpec) -> None:
    """Add chat models: ``register(Spec(name, help, "module:function"))``.

    Called at the first model lookup. The function takes ``(name, app)`` and returns a ChatModel.
    """


@hookspec
def register_encoders(register: RegisterSpec) -> None:
    """Add encoders: ``register(Spec(name, help, "module:function"))``.

    Called at the first encoder lookup. The function takes ``(name, app)`` and returns an Encoder.
    """


@hookspec
def register_image_models(register: RegisterSpec) -> None:
    """Add what draws: ``register(Spec(name, help, "module:function"))``.

    Called at the first lookup of an image model. The function takes ``(name_or_path, app)`` and
    returns an :class:`~glmkit.pictures.ImageModel`; with ``accepts`` it takes every folder of its
    format.
    """


@hookspec
def register_tools(register: RegisterSpec) -> None:
    """Add tools of chat models: ``register(Spec(name, help, "module:function"))``.

    Called at the first lookup of a tool. The function takes ``(name, app)`` and returns a typed
    function, whose signature and docstring the models are shown, or a :class:`~glmkit.tools.Tool`.
    """


@hookspec
def register_recipes(register: RegisterRecipe) -> None:
    """Add ways to train: ``register(RecipeSpec(name, help, "module:attribute"))``.

    Called by ``glmkit finetune``; the module is imported only when the recipe runs or shows its
    help. The attribute is a :class:`~glmkit.recipes.Recipe`.
    """


@hookspec(firstresult=True)
def load_adapter(path: Path, model: InspectableModel, alpha: float | None) -> Adapter | None:
    """Read the adapter at ``path`` for ``model``; None where the format is not yours.

    Called when an adapter is asked for; the first answer counts, and the formats that glmkit reads
    are tried last. ``alpha`` is what the user gave. Whether the adapter fits is checked afterwards.
    """


@hookspec(firstresult=True)
def knowledge_model(path: Path, model: ChatModel, app: Glmkit) -> ChatModel | None:
    """Return a model that answers from the documents at ``path``; None where they are not yours.

    Called when an app is asked to answer from documents. The model speaks through ``model``, names
    its sources in the last chunk and keeps nothing between two conversations.
    """


@hookspec
def extra_context(request: Request) -> list[Passage] | None:
    """Offer passages for this turn, with score and origin; called before the prompt is rendered."""


@hookspec
def response_done(request: Request, reply: Reply) -> None:
    """Look at a finished turn; called once when the stream ended, failed or was closed."""
