"""Processes that have imported what they need already: forks of one that paid for that once.

What a test measures or kills runs in a process of its own. Importing torch costs such a process
two seconds, forking one that has it some milliseconds. The forks start alike, with no thread, no
matrix multiplied and nothing of the tests in memory.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

_SERVER = """
import json, os, sys, traceback

exec(sys.argv[1])

def act(asked):
    out = os.open(asked["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = ["-c", *asked["arguments"]]
    code = 0
    try:
        exec(compile(asked["code"], "<fork>", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)

for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        print(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child == 0:
        act(asked)
    print(child, flush=True)
"""

RUNTIME = """
import torch, glmkit.batch.job, glmkit.testing, glmkit.runtime.convert, glmkit.runtime.describe
import glmkit.runtime.engines.local, glmkit.runtime.loading
torch.set_num_threads(1)
"""


@dataclass
class Fork:
    """A running fork."""

    server: Forks
    pid: int
    out: Path

    def kill(self) -> int:
        """Kill it, whatever it does, and return its exit code: -9, unless it had ended before."""
        os.kill(self.pid, signal.SIGKILL)  # until it is waited for, the number is its own
        return self.wait()

    def wait(self) -> int:
        """Wait for its end and return its exit code, negative for a signal."""
        return self.server.ask({"wait": self.pid})

    def said(self) -> str:
        """Return what it has printed until now."""
        return self.out.read_text("utf-8")


class Forks:
    """The process that forks.

    :param folder: where what the forks print is kept.
    :param imports: what all of them have done before they begin.
    """

    def __init__(self, folder: Path, imports: str = RUNTIME) -> None:
        self._folder, self._count = folder, 0
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, imports], stdin=pipe, stdout=pipe, text=True
        )

    def ask(self, asked: dict[str, object]) -> int:
        """Send the server a line, and return its answer."""
        assert self._server.stdin and self._server.stdout
        print(json.dumps(asked), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def start(self, code: str, *arguments: object) -> Fork:
        """Run code in a fork, with ``sys.argv[1:]`` of these arguments."""
        self._count += 1
        out = self._folder / f"{self._count}.txt"
        given = {"code": textwrap.dedent(code), "arguments": [*map(str, arguments)]}
        return Fork(self, self.ask(given | {"out": str(out)}), out)

    def run(self, code: str, *arguments: object) -> str:
        """Run code in a fork to its end, and return what it printed."""
        fork = self.start(code, *arguments)
        assert fork.wait() == 0, fork.said()
        return fork.said()

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin and self._server.stdout
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()
