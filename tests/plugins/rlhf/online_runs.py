"""Runs of PPO and GRPO on tiny checkpoints, for the tests."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmkit_rlhf.grpo import Grpo, GrpoConfig
from glmkit_rlhf.ppo import Ppo, PpoConfig

REWARDS = """
CALLS = []
def letters(answer, *, question, row):
    return sum(each in 'abcdefghijklmnopqrstuvwxyz' for each in answer) / max(4, len(answer))
def breaks(answer, *, question, row):
    CALLS.append(answer)
    return float('nan') if len(CALLS) > 40 and row['number'] == 3 else 0.5
"""
PROMPTS = 6
COMMON: dict[str, Any] = {
    "max_new_tokens": 4,
    "max_length": 64,
    "batch_size": 16,
    "rank": 4,
    "report_to": (),
    "save_steps": 1000,
    "learning_rate": 2e-2,
    "dtype": "float32",
    "device": "cpu",
}
OWN: dict[str, dict[str, Any]] = {
    "grpo": {"generations": 4},
    "ppo": {"iterations": 2, "kl_coef": 0.0, "value_learning_rate": 2e-2},
}


@dataclass
class Run:
    """What a run came to."""

    out: Path
    losses: list[float] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, name):
        return [each[name] for each in self.metrics]


def write_prompts(folder):
    rows = ({"prompt": f"say {at}", "number": at} for at in range(PROMPTS))
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    return file


def config_of(name, base, data, out, *, reward="letters", **more):
    kind = {"grpo": GrpoConfig, "ppo": PpoConfig}[name]
    values = COMMON | OWN[name] | {"reward": (f"{data.parent / 'rewards.py'}:{reward}",)} | more
    return kind(model=str(base), data=(str(data),), output=str(out), **values)


def run(name, *args, app=None, **more):
    config = config_of(name, *args, **more)
    recipe = {"grpo": Grpo, "ppo": Ppo}[name](app)
    done = Run(Path(config.output))
    for line in recipe.run(config):
        if line.loss is not None:
            done.losses.append(line.loss)
            done.metrics.append(dict(line.metrics))
        elif line.note:
            done.notes.append(line.note)
    return done
