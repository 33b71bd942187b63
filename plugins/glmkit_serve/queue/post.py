"""What a worker has to know to begin, in this process or another. Light, as it is sent there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glmkit import Config, GenerationOptions

from .settings import QueueSettings

if TYPE_CHECKING:
    from ..api.served import Wanted


@dataclass(frozen=True)
class Post:
    """What a worker has to know to begin."""

    config: Config
    settings: QueueSettings
    wanted: Wanted
    """What it answers with."""
    options: GenerationOptions = GenerationOptions()
    """How tokens are picked, unless a question says otherwise."""


def portable(value: Any) -> Any:  # noqa: ANN401
    """Return settings in plain values, which another process can be sent: views become copies."""
    if isinstance(value, Mapping):
        return {key: portable(each) for key, each in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        old = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        new = {name: portable(each) for name, each in old.items()}
        changed = {name: each for name, each in new.items() if each is not old[name]}
        return dataclasses.replace(value, **changed) if changed else value
    return value
