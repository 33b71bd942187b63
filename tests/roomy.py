"""Tiny models with room for long prompts, such as offers of tools."""

from __future__ import annotations

import json

from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.loading import load_local


def loading(tmp_path_factory):
    """Return what loads the tiny model of a layout, made once."""
    made = {}

    def load(layout):
        if layout not in made:
            made[layout] = roomy(tmp_path_factory.mktemp(layout), layout)
        return made[layout]

    return load


def roomy(folder, layout, *, length=4096):
    """Write the tiny checkpoint of a layout with a longer context, and load it."""
    file = tiny_checkpoint(folder, layout=layout) / "config.json"
    raw = json.loads(file.read_text())
    lengths = [each for each in ("seq_length", "max_position_embeddings") if each in raw]
    file.write_text(json.dumps(raw | dict.fromkeys(lengths, length)))
    return load_local(folder)
