"""Curves over the steps of a run, as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import MissingExtraError

Curve = Sequence[tuple[int, float]]
"""Steps and values."""

_SMOOTH = 0.9
"""Weight of what came before in the line through noisy points."""


def draw(curves: Mapping[str, Curve], file: Path, *, title: str, label: str) -> None:
    """Draw curves into one picture; a long one also as a smooth line.

    :param curves: by name; those without points are left out.
    :param file: a PNG.
    :param label: of the upward axis.
    :raises MissingExtraError: if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise MissingExtraError("a picture of curves", "matplotlib", "finetune") from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for at, (name, points) in enumerate((name, each) for name, each in curves.items() if each):
        steps, values = zip(*points, strict=True)
        color, many = f"C{at}", len(points) > _MANY
        marker = "" if len(points) > _MARKED else "o"
        faint = 0.3 if many else 1.0
        axes.plot(steps, values, color=color, alpha=faint, marker=marker, label=name)
        if many:
            axes.plot(steps, smooth(values), color=color, label=f"{name}, smoothed")
    axes.set(title=title, xlabel="step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend()
    partial = file.with_name(f".{file.name}.partial")
    figure.savefig(partial, format="png", dpi=120)
    partial.replace(file)


_MANY = 30
_MARKED = 60


def smooth(values: Sequence[float]) -> list[float]:
    """Return a running mean in which older values count ever less; the first is as it is."""
    smoothed: list[float] = []
    mean = weight = 0.0
    for value in values:
        mean = _SMOOTH * mean + (1 - _SMOOTH) * value
        weight = _SMOOTH * weight + (1 - _SMOOTH)
        smoothed.append(mean / weight)
    return smoothed
