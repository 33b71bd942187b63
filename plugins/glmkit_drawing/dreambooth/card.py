"""The model card of a LoRA of a picture model."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmkit.training.card import write_card as write_any


def write_card(
    folder: Path, base: Path, *, run: Mapping[str, Any], figures: Mapping[str, float]
) -> Path:
    """Write ``README.md`` into a run folder; the parameters are those of every card."""
    prompt = str(run["config"]["prompt"])
    model, lora = shlex.quote(str(base)), shlex.quote(str(folder))
    uses = [f"glmkit run draw {shlex.quote(prompt)} --image-model {model} --lora {lora}"]
    return write_any(folder, base, run=run, figures=figures, library="diffusers", uses=uses)
