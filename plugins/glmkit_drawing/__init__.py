"""Drawing: pictures by diffusion models, LoRA for them, DreamBooth.

Hooks: ``startup``, ``register_commands``, ``register_apps``, ``register_image_models``,
``register_recipes`` and ``register_tools``. Importing this module is free; what does the work is
imported when it is first needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import glmkit

if TYPE_CHECKING:
    from pathlib import Path

    from glmkit import Glmkit, RegisterCommand, RegisterRecipe, RegisterSpec

NAME = "drawing"


@glmkit.hookimpl
def startup(app: Glmkit) -> None:
    """Check ``[plugins.drawing]``.

    :raises ConfigError: if a key is unknown or a value out of range.
    """
    table = app.plugin_config(NAME)
    if table:
        from .settings import Settings

        Settings.of(table)


@glmkit.hookimpl
def register_commands(register: RegisterCommand) -> None:
    """Add ``glmkit draw``."""
    register("draw", "Merge LoRAs of picture models.", f"{__name__}.commands:draw")


@glmkit.hookimpl
def register_apps(register: RegisterCommand) -> None:
    """Add ``glmkit run draw``."""
    register("draw", "Draw what you wish for.", f"{__name__}.app:draw")


@glmkit.hookimpl
def register_image_models(register: RegisterSpec) -> None:
    """Add the embedded picture model, and every text-to-image folder of diffusers'."""
    opening = f"{__name__}.opening"
    register(
        glmkit.Spec(
            "default",
            "Small, embedded, for short plain wishes.",
            f"{opening}:load_default",
            languages=frozenset({"en", "zh"}),
        )
    )
    register(
        glmkit.Spec(
            "diffusers",
            "Any text-to-image model of diffusers, by folder or hub id.",
            f"{opening}:load_diffusers",
            accepts=_is_diffusers,
        )
    )


def _is_diffusers(path: Path) -> bool:
    from .opening import is_diffusers

    return is_diffusers(path)


@glmkit.hookimpl
def register_recipes(register: RegisterRecipe) -> None:
    """Add ``glmkit finetune dreambooth``."""
    register(
        glmkit.RecipeSpec(
            "dreambooth",
            "Teach a picture model one thing from a few photographs (LoRA).",
            f"{__name__}.dreambooth.recipe:dreambooth",
        )
    )


@glmkit.hookimpl
def register_tools(register: RegisterSpec) -> None:
    """Let chat models draw."""
    register(glmkit.Spec("draw", "Draw pictures of what is wished for.", f"{__name__}.tool:load"))
