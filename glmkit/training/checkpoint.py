"""Checkpoints: folders that appear whole, hold all that a run needs to go on, and are limited.

``checkpoint-N`` holds what was trained as ``--adapter`` (or ``--model``) takes it, the state of the
optimizer, and ``trainer_state.json``. Random states need no file: every step seeds its own.
"""

from __future__ import annotations

import errno
import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, GlmkitError
from .state import FILE, TrainerState
from .tuning import Kept

OPTIMIZER = "optimizer.pt"
EXACT = "trained.safetensors"
"""What was trained, where the model beside it is rounded."""
_NAME = re.compile(r"checkpoint-([0-9]+)")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Checkpoints:
    """The checkpoints of a run folder.

    :param kept: writes and reads what was trained.
    :param limit: how many are kept beside the best; 0: all.
    """

    def __init__(self, folder: Path, kept: Kept, limit: int) -> None:
        self.folder, self.kept, self.limit = folder, kept, limit

    def save(
        self, state: TrainerState, trained: dict[str, Tensor], optimizer: dict[str, Any]
    ) -> Path:
        """Write a checkpoint, and delete those beyond the limit.

        :raises GlmkitError: if the disk is full; those before stay as they are.
        """
        out = self.folder / f"checkpoint-{state.global_step}"
        partial = self.folder / f".{out.name}.partial"
        with _writing(partial, out):
            self._write(inner(trained), partial)
            torch.save(optimizer, partial / OPTIMIZER)
            state.write(partial)
            _let_read(partial)
            if out.exists():
                shutil.rmtree(out)
            partial.replace(out)
        self._limit(spare={state.global_step, state.best_step})
        return out

    def publish(self, trained: dict[str, Tensor]) -> list[str]:
        """Write what was trained at the top of the run folder; return the names of the files.

        :raises GlmkitError: if the disk is full.
        """
        partial = self.folder / ".trained.partial"
        with _writing(partial, self.folder):
            self.kept.save(inner(trained), partial)
            _let_read(partial)
            files = sorted(partial.iterdir())
            for file in files:
                file.replace(self.folder / file.name)
        return [each.name for each in files]

    def last(self) -> Path | None:
        """Return the newest checkpoint, None where there is none."""
        found = sorted(self._all())
        return found[-1][1] if found else None

    def at(self, step: int) -> Path:
        """Return where the checkpoint of a step is."""
        return self.folder / f"checkpoint-{step}"

    def trained(self, checkpoint: Path) -> dict[str, Tensor]:
        """Return the trained parameters of a checkpoint, by their names in a learner."""
        if self.kept.lossless:
            return outer(self.kept.load(checkpoint))
        return outer(read_tensors(checkpoint / EXACT))

    def optimizer(self, checkpoint: Path) -> dict[str, Any]:
        """Return the state of the optimizer.

        :raises CheckpointError: if the file is missing or damaged.
        """
        file = checkpoint / OPTIMIZER
        try:
            state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{file} is missing or damaged ({error}); delete {checkpoint.name} to go on from "
                "the checkpoint before it"
            ) from error
        return state

    def _write(self, trained: dict[str, Tensor], folder: Path) -> None:
        """Write what was trained, and its exact values where that rounds them."""
        from safetensors.torch import save_file

        self.kept.save(trained, folder)
        if not self.kept.lossless:
            exact = {name: each.contiguous() for name, each in trained.items()}
            save_file(exact, folder / EXACT, metadata={"format": "pt"})

    def _all(self) -> Iterator[tuple[int, Path]]:
        for each in self.folder.iterdir():
            found = _NAME.fullmatch(each.name)
            if found and (each / FILE).is_file():
                yield int(found[1]), each

    def _limit(self, *, spare: set[int]) -> None:
        if not self.limit:
            return
        for step, each in sorted(self._all())[: -self.limit]:
            if step not in spare:
                shutil.rmtree(each, ignore_errors=True)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read tensors by name.

    :raises CheckpointError: if the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} is missing or damaged ({error}); delete {file.parent.name} to go on from the "
            "checkpoint before it"
        ) from error


def inner(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return parameters of a learner by their names in its model."""
    return {name.removeprefix(_MODEL): each for name, each in state.items()}


def outer(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return parameters of a model by their names in its learner."""
    return {f"{_MODEL}{name}": each for name, each in state.items()}


_MODEL = "model."
"""How a learner calls the model that it wraps."""


@contextmanager
def _writing(partial: Path, out: Path) -> Iterator[None]:
    """Make an empty folder to fill, which is gone afterwards; say clearly what goes wrong."""
    from safetensors import SafetensorError

    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # Asked while the partial files are there: the writers of torch and safetensors say only
        # that they could not write.
        full = _is_full(out.parent, error)
        raise GlmkitError(_unwritable(out, error, full=full)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _let_read(folder: Path) -> None:
    """Let others read files as they may enter their folder: safetensors keeps its to the owner."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(mode)


def _is_full(folder: Path, error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return "os error 28" in str(error) or shutil.disk_usage(folder).free < _LITTLE


_LITTLE = 1 << 20


def _unwritable(out: Path, error: Exception, *, full: bool) -> str:
    if full:
        return (
            f"the disk is full: {out} could not be written; free some space, then go on with "
            "--resume (earlier checkpoints are whole)"
        )
    return f"{out} could not be written ({getattr(error, 'strerror', None) or error})"
