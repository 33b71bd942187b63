"""What stands in for a worker's process where only its life matters; light, as each imports it."""

from __future__ import annotations

import os
import sys
import time
from typing import Any


def lasting(post: Any) -> None:
    """Write down who it is, and go on until it is told to stop."""
    with open(post.settings.db, "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(60)


def hopeless(post: Any) -> None:
    """End as a worker does that cannot load its model."""
    sys.exit(78)
