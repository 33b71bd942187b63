"""Learning from preferences and rewards: ``reward``, ``dpo``, ``kto``, ``ppo`` and ``grpo``.

Hooks: ``register_commands``, ``register_recipes`` and, of our own, ``register_rewards``. Importing
this module is free; what does the work is imported when it is first needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import glmkit

if TYPE_CHECKING:
    from glmkit import RegisterCommand, RegisterRecipe

    from .rewards import RegisterReward

NAME = "rlhf"
_RECIPES = {
    "reward": ("Tell the better of two answers: a reward model.", "reward:reward"),
    "dpo": ("Find better answers likelier than worse ones (DPO).", "dpo:dpo"),
    "kto": ("Find good answers likelier and others less, without pairs (KTO).", "kto:kto"),
    "ppo": ("Write answers, have them rewarded, learn with a value head (PPO).", "ppo:ppo"),
    "grpo": (
        "Write several answers to each prompt, learn from the better ones (GRPO).",
        "grpo:grpo",
    ),
}
_REWARDS = {
    "length": ("Answers of a length: length:20, length:10-20.", "length", "CHARACTERS"),
    "format": ("Answers of a form: format:json, format:think+answer.", "format_", "FORM"),
    "regex": ("Answers in which a pattern is found: regex:^yes.", "regex", "PATTERN"),
    "exact": ("Answers that are those of the file.", "exact", ""),
    "gsm8k": ("Answers that come to the number of the file's answer.", "gsm8k", ""),
}


@glmkit.hookimpl
def register_commands(register: RegisterCommand) -> None:
    """Add ``glmkit reward``."""
    register("reward", "Ask a reward model what answers are worth.", f"{__name__}.command:reward")


@glmkit.hookimpl
def register_recipes(register: RegisterRecipe) -> None:
    """Add the ways to learn from preferences and rewards."""
    for name, (help, target) in _RECIPES.items():
        register(glmkit.RecipeSpec(name, help, f"{__name__}.{target}"))


@glmkit.hookspec
@glmkit.hookimpl
def register_rewards(register: RegisterReward) -> None:
    """Add rewards of answers: ``register(RewardSpec(name, help, "module:function"))``.

    Called when ``ppo`` or ``grpo`` look for the rewards that they are told. The function is
    ``reward(answer, *, question, row) -> float``; see `rewards.py`. This is the hook, and what
    this plugin itself offers to it.
    """
    from .rewards import RewardSpec

    for name, (help, target, argument) in _REWARDS.items():
        register(RewardSpec(name, help, f"{__name__}.rules:{target}", argument))
