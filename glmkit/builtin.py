"""Our own implementations of hooks; they are asked after everybody else's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .hookspecs import hookimpl

if TYPE_CHECKING:
    from .runtime.adapters import Adapter


@hookimpl(trylast=True)
def load_adapter(path: Path, alpha: float | None) -> Adapter:
    """Read PEFT folders, Trainer saves, raw LoRA files and P-Tuning prefixes."""
    from .runtime.adapters import read_adapter

    return read_adapter(path, alpha=alpha)
