"""A reward for ``glmkit finetune grpo`` and ``ppo``. Importing this module is free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glmkit import hookimpl

if TYPE_CHECKING:
    from glmkit_rlhf.rewards import RegisterReward


@hookimpl
def register_rewards(register: RegisterReward) -> None:
    """Add ``--reward brevity:WORDS``."""
    from glmkit_rlhf.rewards import RewardSpec

    register(
        RewardSpec(
            "brevity",
            "Answers that hold the right one, in so many words at most.",
            f"{__name__}.reward:brevity",
            argument="WORDS",
        )
    )
