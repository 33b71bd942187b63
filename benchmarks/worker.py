"""Contenders as processes: one program each, which loads a model and then waits to be asked.

A contender's program gives :func:`serve` a class. Its constructor loads; its methods are what the
driver may ask, with JSON in and out. Waiting contenders use no processor time, so that the driver
can let one after the other run on the whole machine, round after round.

This file imports the standard library only: contenders may live in environments of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class AbsentError(Exception):
    """A contender that cannot run here: why, in a few words."""


def serve(make: Callable[..., object]) -> None:
    """Load a contender and answer the driver until it closes the pipe."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print is no answer

    def answer(value: object) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        contender = make(**json.loads(sys.argv[1]))
    except ImportError as error:
        answer({"absent": f"{error.name} is not installed"})
        return
    answer({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "memory":
            answer({"resident": resident("VmRSS"), "peak": resident("VmHWM")})
        else:
            answer(getattr(contender, asked.pop("do"))(**asked))


def resident(field: str) -> int | None:
    """Return a field of this process' status in bytes; None where the system has none."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


class Worker:
    """A contender's process, seen from the driver.

    :param program: file beside this one.
    :param python: the interpreter that has what it needs.
    :param variables: of its environment, beside ours.
    :raises AbsentError: if it cannot run here.
    """

    def __init__(
        self,
        program: str,
        *,
        python: str = sys.executable,
        variables: dict[str, str] | None = None,
        **given: object,
    ) -> None:
        self.ended: str | None = None
        """What it said last, if it ended by itself."""
        self._errors = tempfile.TemporaryFile()
        command = [python, str(HERE / program), json.dumps(given, default=str)]
        started = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=os.environ | (variables or {}),
            )
        except OSError as error:
            self._errors.close()
            raise AbsentError(f"{python}: {error.strerror}") from error
        first = self._answer()
        self.ready_s = time.perf_counter() - started
        """From starting the process until its model is loaded."""
        if "absent" in first:
            self.close()
            raise AbsentError(first["absent"])

    def ask(self, what: str, **given: object) -> Any:  # noqa: ANN401
        """Return the answer of one method.

        :raises AbsentError: if the process ended, now or before.
        """
        if self.ended is not None:
            raise AbsentError(self.ended)
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps({"do": what, **given}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it was ended while it waited; what it said is read below
            pass
        return self._answer()

    def _answer(self) -> Any:  # noqa: ANN401
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise AbsentError(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        self.ended = said[-1] if said else f"its process ended with {code}"
        self.close()
        return self.ended

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()
        self._errors.close()
