"""Whether ``reward`` and ``dpo`` learn what people prefer: measured on pairs that were held out.

    python benchmarks/preferences.py PAIRS... [--model NAME] [--only reward,dpo] [--folds 5]
        [--reward-flags '--tuning full'] [--dpo-flags '--beta 0.05'] [--rows N] [--out FILE]

Everything goes through the commands: ``glmkit finetune reward`` on all folds but one and ``glmkit
reward score`` on that one, until each pair was held out once; then ``glmkit finetune dpo`` with
some rows kept aside. Rows that ask the same stand in one fold.

Of the reward model it says how many pairs it tells right, beside taking the longer answer and
taking the shorter one, with Wilson's intervals, and the difference to each of them on the same
pairs, which are resampled. Of DPO it says how much likelier the better answer of a pair became than
the worse one, by the log-probabilities that model and LoRA give when they are loaded again.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from record import Record, machine_name

REWARD = "--tuning head --pooling mean --max-length 384"
DPO = (
    "--max-length 128 --learning-rate 3e-4 --batch-size 2 --gradient-accumulation 2 --epochs 1 "
    "--beta 0.1"
)
HELD = 100
"""Rows that DPO does not learn from, at most a third of all."""


def main() -> None:
    """Measure both on each file, and keep what they came to."""
    told = arguments()
    import torch

    torch.set_num_threads(told.threads or torch.get_num_threads())
    settings = {"reward": told.reward_flags, "dpo": told.dpo_flags, "folds": told.folds}
    record = Record({**settings, "model": told.model, "seed": told.seed})
    for file in told.pairs:
        rows = read(file, told.rows)
        measured: dict[str, Any] = {"rows": sum(map(len, rows))}
        for name in told.only.split(","):
            with tempfile.TemporaryDirectory() as folder:
                measured |= {name: {"reward": reward, "dpo": dpo}[name](rows, told, Path(folder))}
            print(f"{file.stem}, {name}: {json.dumps(measured[name], indent=1)}", flush=True)
        record.results[file.stem] = measured
    from importlib.metadata import version

    names = ("glmkit", "torch", "peft")
    record.versions = {each: version(each) for each in names} | {"threads": torch.get_num_threads()}
    print(record.write(told.out, name=f"{machine_name()}-preferences"))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path, nargs="+", help="files of preferences")
    parser.add_argument("--model", default="default", help="a name, a hub id or a folder")
    parser.add_argument("--only", default="reward,dpo")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--rows", type=int, help="so many of each file; default: all")
    parser.add_argument("--reward-flags", default=REWARD, help=f"default: {REWARD}")
    parser.add_argument("--dpo-flags", default=DPO, help=f"default: {DPO}")
    parser.add_argument("--seed", type=int, default=0, help="of how the rows are parted")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def read(file: Path, most: int | None) -> list[list[dict[str, Any]]]:
    """Return a file's pairs as rows of messages, those that ask the same together, each once."""
    from glmkit.dataset import open_data
    from glmkit.dataset.converting import PAIR_FORMATS

    found: dict[str, dict[str, dict[str, Any]]] = {}
    for each in open_data([str(file)], kind="preferences").preferences():
        row = PAIR_FORMATS["messages"](each)
        found.setdefault(json.dumps(row["prompt"]), {})[json.dumps(row)] = row
    return [list(rows.values()) for rows in found.values()][:most]


def parted(rows: list[list[dict[str, Any]]], seed: int) -> list[list[dict[str, Any]]]:
    """Return rows in an order by chance."""
    return random.Random(seed).sample(rows, len(rows))


def written(path: Path, groups: Sequence[Sequence[dict[str, Any]]]) -> str:
    """Write rows into a file; return its name."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for rows in groups for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def command(*words: str, flags: str = "") -> None:
    """Run a command of glmkit.

    :raises SystemExit: if it fails.
    """
    from glmkit.cli import main as glmkit

    code = glmkit([*words, *shlex.split(flags)])
    if code:
        raise SystemExit(code)


# ------------------------------------------------------------------------------------ reward model


def reward(
    rows: list[list[dict[str, Any]]], told: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Train on all folds but one and score that one, for each of them."""
    order = parted(rows, told.seed)
    scored: list[dict[str, Any]] = []
    shares: list[float] = []
    for fold in range(told.folds):
        held = order[fold :: told.folds]
        learnt = [each for at, each in enumerate(order) if at % told.folds != fold]
        train, test = written(folder / "train.jsonl", learnt), written(folder / "test.jsonl", held)
        run, out = str(folder / f"run-{fold}"), folder / f"scores-{fold}.jsonl"
        words = ("--model", told.model, "--data", train, "--output", run, "--report-to", "none")
        command("finetune", "reward", *words, flags=told.reward_flags)
        command("reward", "score", test, "--reward", run, "-o", str(out), "--skip-bad")
        found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        shares.append(mean([right(each) for each in found]))
        print(f"fold {fold}: {shares[-1]:.1%} of {len(found)} pairs", flush=True)
        scored += found
    return {
        **compared([right(each) for each in scored], [longer(each) for each in scored]),
        "of each fold": shares,
        "pairs that leave no room": sum(map(len, rows)) - len(scored),
        "margin": mean([each["chosen_score"] - each["rejected_score"] for each in scored]),
    }


def right(row: dict[str, Any]) -> float:
    """Return whether the better answer is worth more; a draw is a half."""
    return beats(row["chosen_score"], row["rejected_score"])


def longer(row: dict[str, Any]) -> float:
    """Return whether the better answer is the longer one, in characters."""
    return beats(*(len(row[each][-1]["content"]) for each in ("chosen", "rejected")))


def beats(one: float, other: float) -> float:
    """Return 1, 0, or a half of the same."""
    return 0.5 if one == other else float(one > other)


def compared(told: list[float], long: list[float]) -> dict[str, Any]:
    """Set pairs told right beside the rules that look at lengths alone."""
    from glmkit.evaluation.comparing import Measure, difference
    from glmkit_rlhf.accuracy import wilson

    count = len(told)
    found: dict[str, Any] = {"pairs": count, "told right": interval(wilson(sum(told), count))}
    for name, rule in {"longer": long, "shorter": [1 - each for each in long]}.items():
        gain = difference(list(map(Measure, rule)), list(map(Measure, told)))
        found[f"the {name} answer"] = interval(wilson(sum(rule), count))
        found[f"more than the {name}"] = interval(gain)
        agree = mean([float(mine == its) for mine, its in zip(told, rule, strict=True)])
        found[f"agrees with the {name}"] = agree
    return found


def interval(found: Any) -> dict[str, float]:  # noqa: ANN401
    """Return a value with its bounds, of whatever has them."""
    return {name: getattr(found, name) for name in ("value", "low", "high")}


def mean(values: Sequence[float]) -> float:
    """Return the mean of numbers."""
    return sum(values) / len(values)


# --------------------------------------------------------------------------------------------- DPO


def dpo(rows: list[list[dict[str, Any]]], told: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train with some rows kept aside, and see what became of them."""
    from glmkit.evaluation.comparing import Measure, difference
    from glmkit_rlhf.accuracy import wilson

    order = parted(rows, told.seed)
    kept = min(HELD, len(order) // 3)
    held, learnt = written(folder / "test.jsonl", order[:kept]), order[kept:]
    run = folder / "run"
    words = ("--model", told.model, "--output", str(run), "--report-to", "none")
    words += ("--data", written(folder / "train.jsonl", learnt), "--eval-data", held)
    command("finetune", "dpo", *words, flags=told.dpo_flags)
    before, after = (list(preferred(run, held, adapter=each)) for each in (False, True))
    beta = config_of(run)["beta"]
    margins = [beta * (new - old) for old, new in zip(before, after, strict=True)]
    zeros = [Measure(0.0)] * len(margins)
    gained = difference(zeros, list(map(Measure, margins)))
    count = len(margins)
    return {
        "pairs": count,
        "pairs that leave no room": sum(map(len, order[:kept])) - count,
        "margin before": 0.0,
        "margin after": interval(gained),
        "gained on the worse answer": interval(wilson(sum(each > 0 for each in margins), count)),
        "better answer likelier": {
            "before": interval(wilson(sum(each > 0 for each in before), count)),
            "after": interval(wilson(sum(each > 0 for each in after), count)),
        },
        "as the run says": evaluated(run),
    }


def preferred(run: Path, held: str, *, adapter: bool) -> Iterator[float]:
    """Yield by how much the better answer of each pair is likelier than the worse one, in nats."""
    import torch

    from glmkit.dataset import open_data
    from glmkit.runtime.loading import load_local
    from glmkit.training.encoding import SampleEncoder
    from glmkit_rlhf.pairs import Sides

    config = config_of(run)
    local = load_local(Path(config["model"]))
    if adapter:
        local.load_adapter(run, "dpo")
    encoder = SampleEncoder.open(Path(config["model"]), max_length=config["max_length"])
    sides = list(Sides(open_data([held], kind="preferences")).samples())
    for pair in zip(sides[::2], sides[1::2], strict=True):
        both = encoder.encode(pair)
        if not all(each.rows for each in both):
            continue
        found = []
        for (example,) in (each.rows for each in both):
            ids = torch.from_numpy(example.ids).long().to(local.model.like.device)
            with torch.no_grad():  # as it learns; answers are written by a quicker kernel
                logs = local.model(ids[None])[0, :-1].float().log_softmax(-1)
            chosen = logs.gather(-1, ids[1:, None])[:, 0].cpu()
            found.append(float(chosen[torch.from_numpy(example.weights[1:]) > 0].sum()))
        yield found[0] - found[1]


def config_of(run: Path) -> dict[str, Any]:
    """Return the settings that a run recorded."""
    told: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]
    return told


def evaluated(run: Path) -> dict[str, float]:
    """Return the figures of a run's last evaluation."""
    state = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))
    line = next(each for each in reversed(state["log_history"]) if "eval_loss" in each)
    return {name: line[name] for name in ("eval_loss", "eval_margin", "eval_accuracy")}


if __name__ == "__main__":
    main()
