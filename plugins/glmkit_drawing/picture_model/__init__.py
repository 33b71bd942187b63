"""The embedded picture model: where it lies, how it is trained and how it is judged.

``python -m glmkit_drawing.picture_model.train --help`` trains it anew,
``python -m glmkit_drawing.picture_model.evaluate --help`` judges it. Importing this is free.
"""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """Return the folder of the embedded picture model, in diffusers' format."""
    return Path(__file__).parent.parent / "weights"
