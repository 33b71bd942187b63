"""Measure LoRA training against TRL's SFTTrainer on the embedded default, in turns.

    python benchmarks/train.py [--quick] [--trl PYTHON] [--out FILE]

Each contender is a process of its own. All learn from the same token ids with the same labels, in
the same order, with a LoRA of rank 8 on all linears of the blocks; each round continues where the
one before ended, with rows that nobody has seen. Counted are real tokens: pads are none. What is
timed are the steps, not loading, tokenising or saving. The rows are alpaca_zh_demo, which lies
beside the project (``../shared/data``).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from prepare import default_folder, write_llama
from record import OURS, ROOT, Record
from sections import take_turns
from worker import AbsentError, Worker

ALPACA = ROOT.parent / "shared/data/llama-factory/alpaca_zh_demo.json"
RANK, ROWS_PER_STEP, MAX_LENGTH, LEARNING_RATE = 8, 8, 1024, 2e-4
PLAIN = "glmkit, weights expanded"
BEST, KEEPS, DEFAULTS = "TRL, best settings", "TRL, best settings, memory kept", "TRL, defaults"
SETTINGS: dict[str, dict[str, Any]] = {
    # Tried on two cores: 1, 2, 4 and 8 samples a pass padded, and 2 and 8 free of pads. One a pass
    # was the fastest for each real token; why was not looked into.
    BEST: {
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": ROWS_PER_STEP,
    },
    DEFAULTS: {},
}
SETTINGS[KEEPS] = SETTINGS[BEST]
KEPT = {"MALLOC_TRIM_THRESHOLD_": "1073741824", "MALLOC_MMAP_MAX_": "0"}
"""What lets a process keep freed memory from outside, as glmkit does by itself."""


@dataclass
class Bench:
    """The contenders, and what is measured of them."""

    rounds: int
    trl: str
    record: Record
    workers: dict[str, Worker] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    seen: dict[str, list[int]] = field(default_factory=dict)

    def start(self, folder: Path, hub: Path, *, without: set[str]) -> None:
        """Start everyone who can run here."""
        found = {
            name: partial(
                Worker,
                "with_finetune.py",
                folder=folder,
                rank=RANK,
                batch_size=1,
                accumulation=ROWS_PER_STEP,
                plain=name == PLAIN,
            )
            for name in (OURS, PLAIN)
        }
        for name, settings in SETTINGS.items():
            found[name] = partial(
                Worker,
                "with_trl.py",
                python=self.trl,
                variables=KEPT if name == KEEPS else None,
                folder=hub,
                settings=settings,
                rank=RANK,
            )
        for name in [each for each in found if each not in without]:
            try:
                self.workers[name] = found[name]()
            except AbsentError as error:
                self.record.absent[name] = str(error)

    def speed(self) -> None:
        """Let everyone train on the same rows, round after round."""
        steps = self.rounds + 2
        rows = self.workers[OURS].ask(
            "rows", file=str(ALPACA), count=steps * ROWS_PER_STEP, max_length=MAX_LENGTH
        )
        parts = [rows[at : at + ROWS_PER_STEP] for at in range(0, len(rows), ROWS_PER_STEP)]
        turns = {name: iter(parts) for name in self.workers}
        ways = {name: partial(self._round, name, turns[name]) for name in self.workers}
        slow = ways.pop(DEFAULTS, None)
        take_turns(ways, 1, self.record.absent)  # what grows does so now
        found = take_turns(ways, self.rounds, self.record.absent)
        if slow is not None:
            once = take_turns({OURS: ways[OURS], DEFAULTS: slow}, 1, self.record.absent)
            self.record.add("LoRA, against defaults", once, "tokens/s")
        self.record.add("LoRA", found, "tokens/s")

    def _round(self, name: str, parts: Any) -> float:  # noqa: ANN401
        found = self.workers[name].ask("train", rows=next(parts), learning_rate=LEARNING_RATE)
        self.losses.setdefault(name, []).extend(found["losses"])
        before = self.seen.setdefault(name, [])
        before.append(found["tokens"] + (before[-1] if before else 0))
        return float(found["tokens"] / found["seconds"])

    def told(self) -> None:
        """Add memory, and losses by tokens seen."""
        memory = {
            name: [each.ask("memory")["peak"] / 1e6]
            for name, each in self.workers.items()
            if not each.ended
        }
        self.record.add("memory at most", memory, "MB at most")
        self.record.add("loss, step by step", self.losses, "nats")
        self.record.settings["tokens seen"] = self.seen
        self.record.versions = {
            name: each.ask("about") for name, each in self.workers.items() if not each.ended
        }


def main() -> None:
    """Measure, print, write."""
    options = arguments()
    rounds = 2 if options.quick else 6
    record = Record(
        settings={
            "rows": "alpaca_zh_demo",
            "rank": RANK,
            "rows_per_step": ROWS_PER_STEP,
            "max_length": MAX_LENGTH,
            "learning_rate": LEARNING_RATE,
            "rounds": rounds,
        }
    )
    with tempfile.TemporaryDirectory() as place:
        folder = default_folder()
        hub = write_llama(folder, Path(place) / "llama")
        bench = Bench(rounds, options.trl, record)
        bench.start(folder, hub, without={DEFAULTS} if options.no_defaults else set())
        bench.speed()
        bench.told()
        for each in bench.workers.values():
            each.close()
    for name, why in record.absent.items():
        print(f"absent: {name}: {why}")
    if options.out or not options.quick:
        print(record.write(options.out, name="train") if options.out else _written(record))


def _written(record: Record) -> Path:
    from record import machine_name

    return record.write(name=f"{machine_name()}-train")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-defaults", action="store_true", help="leave out TRL's defaults")
    parser.add_argument("--quick", action="store_true", help="two rounds; writes no file")
    parser.add_argument(
        "--trl",
        metavar="PYTHON",
        default=sys.executable,
        help="interpreter that has trl; default: this one",
    )
    parser.add_argument("--out", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
