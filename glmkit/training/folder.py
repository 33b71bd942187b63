"""The run folder: one run at a time, what it was told and made from, and what a resumed one may
not change.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import CheckpointError, UsageError
from .card import CARD
from .config import RunConfig
from .recording import LOG, PICTURE
from .state import FILE as STATE

RUN = "run.json"
_LOCK = ".glmkit-run.lock"
CLASS_PICTURES = "class_pictures"
_AROUND = (_LOCK, ".tokens", "evaluation", CLASS_PICTURES)
"""What is there before a run has begun, and what `glmkit evaluate` leaves."""
VALIDATION = "validation"
"""Pictures that were drawn while a picture model was trained."""
RECORDS = (
    *(LOG, PICTURE, STATE, CARD, VALIDATION, "runs", "accelerate.yaml", "ds_config.json"),
    RUN,
)
"""What tells of a run; ``run.json`` goes last, which says whose the rest is."""
_RESULTS = frozenset(
    {
        *("adapter_config.json", "adapter_model.safetensors", "glmkit-adapter.json"),
        *("pytorch_model.bin", ".trained.partial"),
    }
)
_STEPS = ("checkpoint-", ".checkpoint-")
_PACKAGES = ("glmkit", "torch", "transformers", "peft", "accelerate", "deepspeed", "diffusers")
_FREE = frozenset(
    {
        *("output", "resume", "overwrite", "report_to", "logging_steps"),
        *("save_steps", "save_total_limit", "device", "max_memory", "nproc", "parallel"),
        *("offload", "deepspeed", "gradient_checkpointing", "gradient_accumulation"),
        *("memory_check", "workers", "cache", "eval_generate", "eval_max_tokens"),
    }
)
"""Settings that may differ when a run is resumed: they change nothing in what it learns, or (passes
of a step) are looked at together."""


@contextmanager
def claimed(config: RunConfig) -> Iterator[Path]:
    """Hold a run folder.

    :raises UsageError: if another process holds it, or it holds what would be lost.
    """
    folder = Path(config.output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose a folder with --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create {folder} ({error.strerror})") from error
    lock = FileLock(folder / _LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"another training runs in {folder}; wait for it to end, or choose another --output"
        ) from error
    try:
        _refuse_full(folder, config)
        yield folder
    finally:
        lock.release()


def _refuse_full(folder: Path, config: RunConfig) -> None:
    held = [each.name for each in folder.iterdir() if each.name not in _AROUND]
    if config.resume:
        if not (folder / RUN).is_file():
            raise UsageError(f"{folder} holds no run that --resume could go on with: no {RUN}")
        return
    if held and not config.overwrite:
        raise UsageError(_taken(folder, len(held)))
    if held and not (folder / RUN).is_file():
        raise UsageError(
            f"{folder} holds {len(held)} files that are no run's, and --overwrite replaces runs "
            "only; choose another --output"
        )


def _taken(folder: Path, files: int) -> str:
    if (folder / RUN).is_file():
        return (
            f"{folder} already holds a run; go on with it by --resume, replace it by --overwrite, "
            "or choose another --output"
        )
    return f"{folder} already holds {files} files; choose another --output"


def clear(folder: Path) -> None:
    """Delete the run in a folder: all that it wrote, and nothing else."""
    if not (folder / RUN).is_file():
        return
    left = set(read(folder).get("files", ())) | set(RECORDS) | _RESULTS
    for each in list(folder.iterdir()):
        if each.name in left or each.name.startswith(_STEPS):
            if each.is_dir():
                shutil.rmtree(each)
            else:
                each.unlink()


def described(
    config: RunConfig, *, recipe: str, data: Mapping[str, Any], world: int
) -> dict[str, Any]:
    """Return what a run is told and made from.

    :param data: what is known of the data: its fingerprint, and how many samples there are.
    """
    return {
        "recipe": recipe,
        "config": asdict(config),
        "data": dict(data),
        "processes": world,
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "git": _git(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git() -> dict[str, Any] | None:
    """Return the state of the repository that the command runs in; None outside of one."""

    def said(*words: str) -> str:
        done = subprocess.run(
            ("git", *words), capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {"commit": said("rev-parse", "HEAD"), "changed": bool(said("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def write(folder: Path, run: Mapping[str, Any]) -> None:
    """Write ``run.json``, whole or not at all."""
    partial = folder / f".{RUN}.partial"
    partial.write_text(json.dumps(run, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(folder / RUN)


def read(folder: Path) -> dict[str, Any]:
    """Return what ``run.json`` says.

    :raises CheckpointError: if it is damaged.
    """
    file = folder / RUN
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is missing or damaged ({error})") from error
    return found


def refuse_other(
    before: Mapping[str, Any], now: Mapping[str, Any], *, free: Iterable[str] = ()
) -> None:
    """Refuse to resume what is another run.

    :param before: what ``run.json`` says.
    :param now: what :func:`described` says.
    :param free: the recipe's own settings that may differ.
    :raises UsageError: naming what differs.
    """
    differs = list(_differences(before, now, _FREE.union(free)))
    if differs:
        raise UsageError(
            f"this is another run than the one in the folder: {'; '.join(differs)}. Give the same "
            "settings to go on with it, or begin anew from its weights with --init-adapter and "
            "another --output"
        )


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Set[str]
) -> Iterator[str]:
    if before["recipe"] != now["recipe"]:
        yield f"the recipe was {before['recipe']}, now {now['recipe']}"
        return
    known = json.loads(json.dumps(now["config"]))  # tuples are lists in the file
    for name in known.keys() | before["config"].keys():
        old, new = before["config"].get(name), known.get(name)
        if name not in free and old != new:
            yield f"{name} was {old!r}, now {new!r}"
    if before["data"].get("fingerprint") != now["data"].get("fingerprint"):
        yield "the data was changed"
    rows = [_rows(each) for each in (before, now)]
    if rows[0] != rows[1]:
        yield f"a step had {rows[0]} samples of all passes and processes, now {rows[1]}"


def _rows(run: Mapping[str, Any]) -> int:
    config = run["config"]
    return int(config["batch_size"] * config["gradient_accumulation"] * run["processes"])


def cut_log(folder: Path, step: int) -> None:
    """Drop the lines of the log behind a step: the run does these steps again."""
    file = folder / LOG
    if not file.is_file():
        return
    kept = [each for each in file.read_text(encoding="utf-8").splitlines() if _before(each, step)]
    partial = folder / f".{LOG}.partial"
    partial.write_text("".join(f"{each}\n" for each in kept), encoding="utf-8")
    partial.replace(file)


def _before(line: str, step: int) -> bool:
    try:
        return int(json.loads(line)["step"]) <= step
    except (ValueError, KeyError, TypeError):
        return False  # the end of a line that a killed run was writing
