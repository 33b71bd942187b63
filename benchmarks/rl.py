"""Whether PPO and GRPO raise a reward that a rule gives, and a shuffled reward does not.

    python benchmarks/rl.py [--model FOLDER] [--updates 200] [--only grpo,ppo] [--out FILE]

Without a model it is a generated checkpoint of 100 thousand random weights, and the reward is the
share of small letters among the characters of an answer (0.08 at first). With ``--model default``
it is the embedded default, its prompts are 16 questions, and the reward is 1 for answers with a
digit in their first tokens. Each run stops at so many updates, or when the mean of ten rounds has
passed 0.95. Counted is one update for each round of answers; PPO takes two steps of the optimizer
for each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import Record, machine_name

LOW, HIGH = 0.3, 0.8
"""A reward should rise from below the one to above the other."""
WINDOW = 10
"""Rounds that a figure is the mean of."""
REWARDS = """
def letters(answer, *, question, row):
    return sum(each in "abcdefghijklmnopqrstuvwxyz" for each in answer) / max(8, len(answer))


def digits(answer, *, question, row):
    return float(any(each.isdigit() for each in answer))
"""
TOPICS = (
    *("the sea", "bread", "a dog", "music", "rain", "a friend", "the moon", "tea"),
    *("a garden", "winter", "a book", "the city", "sleep", "a train", "a river", "chess"),
)


@dataclass(frozen=True)
class Trial:
    """One run."""

    recipe: str
    shuffled: bool

    @property
    def name(self) -> str:
        """What the file calls it."""
        return self.recipe + (", rewards shuffled" if self.shuffled else "")


def prepared(folder: Path, model: str | None) -> tuple[str, dict[str, Any]]:
    """Write prompts and rewards; return the model and the settings that suit it."""
    from glmkit.models.tiny import tiny_checkpoint

    tiny = model is None
    asked = [f"say {at}" for at in range(16)] if tiny else [f"Tell me about {t}." for t in TOPICS]
    lines = (json.dumps({"prompt": each}) + "\n" for each in asked)
    (folder / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    settings: dict[str, Any] = {
        "data": (str(folder / "prompts.jsonl"),),
        "reward": (f"{folder / 'rewards.py'}:{'letters' if tiny else 'digits'}",),
        "max_length": 64 if tiny else 96,
        "max_new_tokens": 8 if tiny else 12,
        "batch_size": 32 if tiny else 16,
        "learning_rate": 1e-2 if tiny else 3e-4,
        "rank": 8,
        "report_to": (),
        "save_steps": 100_000,
    }
    if tiny:
        return str(tiny_checkpoint(folder / "tiny", layout="chatglm3")), settings
    from glmkit import Glmkit

    located = Glmkit().locate_model(None if model == "default" else model)
    return str(located.path), settings


OWN: dict[str, dict[str, Any]] = {
    "grpo": {"generations": 8},
    "ppo": {"iterations": 2, "kl_coef": 0.0, "value_learning_rate": 1e-2},
}


def rounds(trial: Trial, model: str, settings: dict[str, Any], updates: int) -> Iterator[float]:
    """Yield the mean reward of each round of answers."""
    from glmkit import Glmkit

    recipe = Glmkit().load_recipe(trial.recipe)
    own = OWN[trial.recipe]
    each = own.get("iterations", 1)
    config = recipe.config_type(
        model=model,
        output=str(Path(settings["data"][0]).parent / trial.name.replace(", ", "-")),
        max_steps=updates * each,
        shuffle_rewards=trial.shuffled,
        **settings,
        **own,
    )
    for line in recipe.run(config):
        if line.loss is not None and line.step % each == 0:
            yield float(line.metrics["reward"])


def measure(trial: Trial, model: str, settings: dict[str, Any], updates: int) -> dict[str, Any]:
    """Run to the end, or until there is nothing more to gain; return what it came to."""
    found: list[float] = []
    reached = None
    for reward in rounds(trial, model, settings, updates):
        found.append(reward)
        last = sum(found[-WINDOW:]) / min(WINDOW, len(found))
        if reached is None and len(found) >= WINDOW and last > HIGH:
            reached = len(found)
        if len(found) in (1, 3) or len(found) % 5 == 0:
            print(f"  {trial.name}: update {len(found)}, reward {last:.3f}", flush=True)
        if len(found) >= 2 * WINDOW and last > 0.95 and not trial.shuffled:
            break
    return {
        "first": sum(found[:3]) / 3,
        "last": sum(found[-WINDOW:]) / WINDOW,
        f"updates until {HIGH}": reached,
        "updates": len(found),
        "rewards": found,
    }


def main() -> None:
    """Run all trials, and keep what they came to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model's name or folder; default: a generated one")
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--only", default="grpo,ppo", help="recipes")
    parser.add_argument("--without-control", action="store_true", help="no shuffled rewards")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="setting=number")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads or torch.get_num_threads())
    record = Record({"updates": given.updates, "model": given.model or "generated, chatglm3"})
    with tempfile.TemporaryDirectory() as folder:
        model, settings = prepared(Path(folder), given.model)
        settings |= {
            name: type(settings.get(name, 1.0))(float(value))
            for name, _, value in (each.partition("=") for each in given.set)
        }
        shown = {key: value for key, value in settings.items() if key not in ("data", "reward")}
        record.settings |= shown | {"of each recipe": OWN}
        for recipe in given.only.split(","):
            for shuffled in (False,) if given.without_control else (False, True):
                trial = Trial(recipe, shuffled)
                found = measure(trial, model, settings, given.updates)
                record.results[trial.name] = found
                print(f"{trial.name}: {found['first']:.3f} -> {found['last']:.3f}", flush=True)
    from importlib.metadata import version

    names = ("glmkit", "torch", "peft")
    record.versions = {each: version(each) for each in names} | {"threads": torch.get_num_threads()}
    print(record.write(given.out, name=f"{machine_name()}-rl"))


if __name__ == "__main__":
    main()
