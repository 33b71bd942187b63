"""Learning from preferences and rewards: the recipes ``reward``, ``dpo``, ``ppo`` and ``grpo``.

Importing this module is free; what does the work is imported when it is first needed.
"""

from __future__ import annotations

NAME = "rlhf"
