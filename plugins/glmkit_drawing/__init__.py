"""Drawing: pictures by diffusion models, LoRA for them, DreamBooth.

Importing this module is free; what does the work is imported when it is first needed.
"""

from __future__ import annotations

NAME = "drawing"
