"""The ways to run a model, by name; each is imported when it is first used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

ENGINES: Mapping[str, str] = MappingProxyType(
    {
        "local": "glmkit.runtime.loading:load_local",
        "transformers": "glmkit.runtime.engines.transformers:load_transformers",
        "openai": "glmkit.remote.model:connect",
    }
)
"""Engine -> the function that loads a folder; all take the options of ``load_local``. Only
``openai`` takes the name of a model and its server."""

OURS = frozenset(("chatglm", "glm", "glm4"))
"""Values of ``model_type`` that the local engine is for."""


def suited(folder: Path) -> str:
    """Return the engine for a folder: transformers for what glmkit does not run itself.

    Where config.json is absent or damaged that is ``local``, which says so.
    """
    from ...errors import CheckpointError
    from ...models.files import read_json

    try:
        raw: dict[str, Any] = read_json(folder / "config.json")
    except CheckpointError:
        return "local"
    kind = raw.get("model_type")
    return "transformers" if isinstance(kind, str) and kind not in OURS else "local"
