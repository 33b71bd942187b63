"""Raw numbers of every round, ratios, and a file that says on what machine they were measured."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"

OURS = "glmkit"
Rounds = dict[str, list[float]]
"""Contender -> what it did in each round."""


@dataclass
class Record:
    """What was measured."""

    settings: dict[str, Any]
    versions: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    """Contenders that could not run, and why."""
    results: dict[str, Rounds] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    ratios: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, rounds: Rounds, unit: str, *, over: str = OURS) -> None:
        """Keep and print rounds; ratios above 1 mean that ``over`` is the better one."""
        self.results[name], self.units[name] = rounds, unit
        print(f"\n{name} ({unit})", flush=True)
        faster = "tokens/s" not in unit
        for contender, each in rounds.items():
            shown = f"{statistics.median(each):9.3g}   {min(each):.3g} to {max(each):.3g}"
            ratio = self._ratio(rounds, over, contender, faster=faster)
            if ratio:
                self.ratios.setdefault(name, {})[contender] = ratio
                shown += f"   {over} {ratio['median']:.2f}x"
                shown += f" ({ratio['least']:.2f} to {ratio['most']:.2f})"
            print(f"  {contender:34} {shown}", flush=True)

    @staticmethod
    def _ratio(rounds: Rounds, ours: str, other: str, *, faster: bool) -> dict[str, float] | None:
        if ours not in rounds or other == ours:
            return None
        pairs = [
            theirs / own if faster else own / theirs
            for own, theirs in zip(rounds[ours], rounds[other], strict=False)
        ]
        return {"median": statistics.median(pairs), "least": min(pairs), "most": max(pairs)}

    def write(self, path: Path | None = None, *, name: str | None = None) -> Path:
        """Write it as JSON; return where.

        :param name: what was measured on, for the file's name; None: this machine.
        """
        date = datetime.date.today().isoformat()
        path = path or RESULTS / f"{date}-{name or machine_name()}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {"date": date, "machine": machine(), "commit": commit()} | _rounded(vars(self))
        path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path


def _rounded(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def machine() -> dict[str, Any]:
    """Say what the machine is, and nothing that tells which one."""
    return {
        "processor": _said("/proc/cpuinfo", r"model name\s*: (.*)") or platform.machine(),
        "instructions": sorted(_instructions()),
        "cores": cores(),
        "memory_gib": round(int(_said("/proc/meminfo", r"MemTotal:\s+(\d+)") or 0) / 2**20, 1),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def machine_name() -> str:
    """Return a name for files: the processor and how many cores there are."""
    words = (_said("/proc/cpuinfo", r"model name\s*: (.*)") or platform.machine()).lower()
    words = re.sub(r"\(r\)|\(tm\)|@.*|\b(processor|cpu|\d+-core)\b", " ", words)
    finest = next((each for each in _FINEST if each in _instructions()), None)
    slug = re.sub(r"[^a-z0-9]+", "-", words).strip("-")
    return "-".join([slug, *([finest] if finest else []), f"{cores()}c"])


def cores() -> int:
    """Count the processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


_FINEST = ("amx_tile", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "asimd")


def _instructions() -> Iterator[str]:
    flags = set((_said("/proc/cpuinfo", r"(?:flags|Features)\s*: (.*)") or "").split())
    return (each for each in _FINEST if each in flags)


def _said(file: str, pattern: str) -> str | None:
    try:
        found = re.search(pattern, Path(file).read_text(encoding="utf-8"))
    except OSError:
        return None
    return found[1].strip() if found else None


def commit() -> str:
    """Return the commit that was measured, with a mark if files differ from it."""

    def git(*what: str) -> str:
        done = subprocess.run(["git", *what], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "glmkit")
    return git("rev-parse", "--short=12", "HEAD") + (", changed" if changed else "")
