"""The one word for a picture's colour, where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .data import Pictures

_HUES = ((15, "red"), (42, "orange"), (70, "yellow"), (165, "green"), (255, "blue"),
         (290, "purple"), (340, "pink"), (361, "red"))  # fmt: skip
_MAIN = 0.5
"""Share of a picture's pixels that one colour must have to be its colour."""


def main_colour(picture: Pictures) -> str | None:
    """Name the colour that most of a picture on white has, or None; ``(H, W, 3)``."""
    import numpy as np
    from PIL import Image

    seen = picture[(picture < 235).any(axis=2)]
    if len(seen) < 20:
        return None
    hsv = np.asarray(Image.fromarray(seen[None]).convert("HSV"))[0].astype(float)
    names = [_named(h * 360 / 255, s / 255, v / 255) for h, s, v in hsv[:: max(1, len(hsv) // 400)]]
    most = max(set(names), key=names.count)
    return most if names.count(most) >= _MAIN * len(names) else None


def _named(hue: float, saturation: float, value: float) -> str:
    if value < 0.25:
        return "black"
    if saturation < 0.17:
        return "white" if value > 0.85 else "grey"
    name = next(name for end, name in _HUES if hue < end)
    return "brown" if name in ("orange", "red") and value < 0.68 and hue > 8 else name
