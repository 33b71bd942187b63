"""The reward: a plain function of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glmkit_rlhf.rewards import Reward


def brevity(words: str) -> Reward:
    """Return what rewards right answers of so many words at most.

    :param words: the text behind the colon of ``brevity:12``.
    :raises ValueError: if it is no number.
    """
    most = int(words)

    def reward(answer: str, *, question: str, row: Mapping[str, Any]) -> float:
        right = str(row.get("reference", "")).strip().lower() in answer.lower()
        return float(right) * min(1.0, most / max(1, len(answer.split())))

    return reward
