"""The question loop, on a real pseudo-terminal."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import sys, time, click
from pathlib import Path
from glmkit import GlmkitError, Repl

def answer(question):
    if question == "fail":
        raise GlmkitError("the server is busy")
    for word in (question + " ...").split():
        click.echo(word + " ", nl=False)
        time.sleep(60 if question == "slow" else 0)
    click.echo("end-of-answer")

Repl(answer, commands={"sources": ("show them", lambda: click.echo("none yet"))},
     history=Path(sys.argv[1])).run()
"""


class Terminal:
    """A program on a pseudo-terminal: type to it, wait for what it shows."""

    def __init__(self, *arguments):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=lambda: (os.setsid(), __import__("fcntl").ioctl(0, 0x540E, 0)),
        )
        os.close(slave)
        self.shown = ""

    def type(self, text):
        os.write(self.master, text.encode())

    def wait_for(self, text, timeout_s=20):
        os.set_blocking(self.master, False)
        end = time.monotonic() + timeout_s
        while text not in self.shown:
            assert time.monotonic() < end, f"never saw {text!r} in {self.shown!r}"
            try:
                self.shown += os.read(self.master, 4096).decode(errors="replace")
            except (BlockingIOError, OSError):
                time.sleep(0.02)
        seen, _, self.shown = self.shown.partition(text)
        return seen

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(tmp_path):
    terminal = Terminal(str(tmp_path / "history"))
    yield terminal
    terminal.close()


def test_ctrl_c_stops_an_answer_and_keeps_the_session(terminal, tmp_path):
    terminal.wait_for("> ")
    terminal.type("slow\n")
    terminal.wait_for("slow ")
    time.sleep(0.2)
    terminal.type("\x03")
    terminal.wait_for("(stopped)")
    terminal.wait_for("> ")
    terminal.type("/sources\n")
    terminal.wait_for("none yet")
    terminal.type("fail\n")
    terminal.wait_for("error: the server is busy")
    terminal.type("quick\n")
    terminal.wait_for("end-of-answer")
    terminal.type("/quit\n")
    assert terminal.process.wait(timeout=20) == 0
    assert "quick" in (tmp_path / "history").read_text()


def test_ctrl_d_leaves(terminal):
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.process.wait(timeout=20) == 0
