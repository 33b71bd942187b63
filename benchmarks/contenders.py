"""Who takes part, and how each is started; those that cannot run here are put down as absent."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from prepare import write_gguf, write_hub
from record import OURS, Record
from worker import AbsentError, Worker

OPENVINO = "openvino-genai"
DTYPES = ("float32", "bfloat16")
MOST_ROWS = 256


def peer(dtype: str) -> str:
    """Name transformers in a dtype."""
    return f"transformers {dtype}"


class Contenders:
    """The contenders' processes, each started when it is first needed; a context manager.

    :param model: the checkpoint that glmkit runs; the others get the same weights.
    :param folder: for what the others read.
    :param openvino: the interpreter that has openvino-genai.
    """

    def __init__(self, model: Path, folder: Path, record: Record, *, openvino: str) -> None:
        self.model, self.record = model, record
        self._folder, self._openvino = folder, openvino
        self._running: dict[str, Worker] = {}
        self._runs = itertools.count(100)

    def __enter__(self) -> Contenders:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._running.values():
            worker.close()

    def running(self, *names: str) -> dict[str, Worker]:
        """Return those of the named that can run here, and have not ended."""
        for name in names:
            if name in self._running and self._running[name].ended:
                self.record.absent[name] = self._running.pop(name).ended or ""
            if name not in self._running and name not in self.record.absent:
                try:
                    self._running[name] = self.start(name)
                except AbsentError as error:
                    self.record.absent[name] = str(error)
        return {name: self._running[name] for name in names if name in self._running}

    def start(self, name: str) -> Worker:
        """Start a fresh process of a contender.

        :raises AbsentError: if it cannot run here.
        """
        if name == OURS:
            return Worker("with_glmkit.py", folder=self.model)
        files = self.files(name)
        if name.startswith(OPENVINO):
            rows = MOST_ROWS if name == batched(OPENVINO) else None
            return Worker("with_openvino.py", python=self._openvino, gguf=files, rows=rows)
        return Worker("with_transformers.py", folder=files, dtype=name.split()[1])

    def files(self, name: str) -> Path:
        """Return the weights that a contender reads."""
        if name == OURS:
            return self.model
        if name.startswith(OPENVINO):
            gguf = self._folder / "model.gguf"
            return gguf if gguf.exists() else write_gguf(self._folder)
        hub = self._folder / "hub"
        return hub if hub.exists() else write_hub(self.model, hub)

    def prompts(self, texts: list[str]) -> list[dict[str, Any]]:
        """Return the prompt of each question: ``ids`` and ``text``.

        Each begins with a number of its own, so that nobody has computed it before, nor begun it
        for another one.
        """
        run = next(self._runs)
        return [
            self.prompt([_numbered(run, at), {"role": "user", "content": text}])
            for at, text in enumerate(texts)
        ]

    def prompt(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """Return the prompt of a conversation: ``ids`` and ``text``."""
        found: dict[str, Any] = self.ours().ask("prompt", messages=messages)
        return found

    def ours(self) -> Worker:
        """Return glmkit's process.

        :raises AbsentError: if it ended.
        """
        running = self.running(OURS)
        if OURS not in running:
            raise AbsentError(self.record.absent[OURS])
        return running[OURS]

    def versions(self) -> dict[str, Any]:
        """Return what each contender says about itself."""
        return {name: each.ask("about") for name, each in self.running(*self._running).items()}


def _numbered(run: int, at: int) -> dict[str, str]:
    """Return a system message of a prompt's own."""
    return {"role": "system", "content": f"{run}.{at}: answer briefly."}


def batched(name: str) -> str:
    """Name a contender with its settings for many answers at once."""
    return f"{name} for batches"
