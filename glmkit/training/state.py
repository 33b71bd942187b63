"""Where a run stands: what is written beside the weights, to go on from there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..evaluation.comparing import Measure

FILE = "trainer_state.json"


@dataclass
class TrainerState:
    """Where a run stands; the first names are those of transformers."""

    global_step: int = 0
    epoch: float = 0.0
    max_steps: int = 0
    tokens: int = 0
    """Read so far, prompts included, by all processes."""
    seconds: float = 0.0
    """Spent on steps so far."""
    best_step: int = 0
    best_metric: float | None = None
    """The lowest loss of an evaluation, and after which step."""
    bad_evaluations: int = 0
    """Since then."""
    logged_tokens: int = 0
    logged_seconds: float = 0.0
    """Where the last line of the log stood."""
    open_total: float = 0.0
    open_weight: float = 0.0
    """Loss and weight of the steps since then."""
    open_figures: dict[str, Measure] = field(default_factory=dict)
    """What else the learner gave since then, summed, with the weights that it is of."""
    schedule: dict[str, Any] = field(default_factory=dict)
    """The numbers of the learning rate's schedule."""
    log_history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> TrainerState:
        """Read what :meth:`write` wrote.

        :raises CheckpointError: if the file is missing or damaged.
        """
        file = folder / FILE
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
            state = cls(**raw)
            figures = raw.get("open_figures", {}).items()
            state.open_figures = {
                name: Measure(*each) if isinstance(each, list) else Measure(each, state.open_weight)
                for name, each in figures  # earlier versions wrote bare sums
            }
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{file} is missing or damaged ({error}); delete {folder.name} to go on from the "
                "checkpoint before it"
            ) from error
        return state

    def write(self, folder: Path) -> None:
        """Write it into a folder, whole or not at all."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        partial = folder / f".{FILE}.partial"
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(folder / FILE)
