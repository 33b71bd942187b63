"""Fine-tuning: the recipes of `glmkit finetune`, `glmkit data` and `glmkit evaluate`.

Hooks: ``register_commands`` and ``register_recipes``. Importing this module is free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import glmkit

if TYPE_CHECKING:
    from glmkit import RegisterCommand, RegisterRecipe

_COMMANDS = {
    "finetune": ("Train a model on data of yours.", "command:finetune"),
    "data": ("Check, convert, measure and preview training data.", "data:data"),
    "evaluate": ("Measure a model, with an adapter or without, on data.", "evaluate:evaluate"),
}
_RECIPES = {
    "lora": "Small matrices beside the linear layers (LoRA, DoRA, rsLoRA, LoRA+).",
    "qlora": "LoRA beside weights rounded to 4 or 8 bits.",
    "ptuning": "A learned prefix in front of every conversation (P-Tuning v2).",
    "full": "All weights.",
    "freeze": "The last layers only; the others stay as they are.",
}


@glmkit.hookimpl
def register_commands(register: RegisterCommand) -> None:
    """Add ``glmkit finetune``, ``glmkit data`` and ``glmkit evaluate``."""
    for name, (help, target) in _COMMANDS.items():
        register(name, help, f"{__name__}.{target}")


@glmkit.hookimpl
def register_recipes(register: RegisterRecipe) -> None:
    """Add the ways to train that glmkit brings."""
    for name, help in _RECIPES.items():
        register(glmkit.RecipeSpec(name, help, f"{__name__}.recipes:{name}"))
