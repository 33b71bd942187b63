"""The server under load: clients that come, go and leave, against the same batch offline.

    python benchmarks/serve.py                       # 32 clients for three minutes
    taskset -c 1 python benchmarks/serve.py          # all of it on one core
    python benchmarks/serve.py --seconds 30 --warm-up 10 --out /tmp/serve.json

In one run: answers of an offline batch, of the server, and of the offline batch again, with
prompts of the same kind and as many rows side by side. Every client asks one question after the
other and streams its answer; a share of the answers is left on the way, and what these had got is
not counted. Clients, server and batch share the machine; the clients' work counts against the
server. Tokens per second of processor time say the same where others use the machine, too.

A fresh server grows by what answered prompts leave behind, until that has filled its room: the same
load, ``--warm-up`` seconds of it, comes before what is measured. Memory is told for both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

from prompts import prompts
from record import ROOT, Record

import glmkit

QUESTIONS = 256
_USAGE = re.compile(rb'"completion_tokens":(\d+)')
_ENDED = re.compile(rb'^glmkit_answers_total\{.*reason="(\w+)"\} (\S+)', re.MULTILINE)
_MIB = 2**20
_LOOK_S = 2.0
_SPAN_S = 30.0
"""Memory is told as its least and its most in so many seconds."""


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    given = _parsed(arguments)
    record = Record(settings={key: str(value) for key, value in vars(given).items()})
    texts, record.settings["prompts from"] = prompts(QUESTIONS, ROOT)
    model = glmkit.load(given.model)
    # Each prompt begins with its own number, so that none is known already.
    questions = (f"{at}: {texts[at % len(texts)]}" for at in count())
    with _server(given) as (process, port):
        before = _offline(model, questions, given)
        load = _Load(process.pid, port, given)
        asyncio.run(load.run(questions))
        after = _offline(model, questions, given)
    for at, unit in enumerate(("tokens/s", "tokens/s of processor time")):
        rounds = {"glmkit serve": [load.speeds[at]] * 2, "offline batch": [before[at], after[at]]}
        record.add(f"answers in {unit}", rounds, unit, over="glmkit serve")
    record.notes += load.told()
    print("\n".join(load.told()))
    if given.out is not None:
        record.write(given.out)


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--seconds", type=float, default=180.0, help="of load on the server")
    parser.add_argument("--warm-up", type=float, default=90.0, help="seconds of load before it")
    parser.add_argument("--offline", type=int, default=256, help="questions of an offline batch")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--leaving", type=float, default=0.1, help="share of answers left early")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


Speeds = tuple[float, float]
"""Tokens per second, and per second of processor time."""


def _offline(
    model: Any,  # noqa: ANN401
    questions: Iterator[str],
    given: argparse.Namespace,
) -> Speeds:
    """Return how fast a batch is in this process, from its first row to its last."""
    options = glmkit.GenerationOptions(max_tokens=given.max_tokens, temperature=0)
    asked = [
        glmkit.Ask(at, [{"role": "user", "content": text}], options)
        for at, text in enumerate(islice(questions, given.offline))
    ]
    begun, worked = time.perf_counter(), _worked()
    replies = [reply for _, reply in model.answers(asked, concurrency=given.clients)]
    tokens = sum(each.usage.completion_tokens for each in replies)
    speeds = tokens / (time.perf_counter() - begun), tokens / (_worked() - worked)
    print(f"offline: {speeds[0]:.0f} tokens/s, {tokens / len(replies):.0f} an answer", flush=True)
    return speeds


def _worked(pid: int | None = None) -> float:
    """Return the seconds of processor time that this process has had, and another one."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    other = 0.0
    if pid is not None:
        said = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        other = (int(said[11]) + int(said[12])) / os.sysconf("SC_CLK_TCK")
    return own.ru_utime + own.ru_stime + other


@contextmanager
def _server(given: argparse.Namespace) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "glmkit", "serve", "--port", str(port), "--no-access-log"]
    command += ["--model", given.model, "--concurrency", str(given.clients)]
    process = subprocess.Popen(command)
    try:
        for _ in range(600):
            with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port))):
                break
            time.sleep(0.1)
        yield process, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@dataclass
class _Seen:
    """What the clients saw in a part of the time, by when their answers ended."""

    tokens: int = 0
    answered: int = 0
    left: int = 0
    statuses: Counter[str] = field(default_factory=Counter)


class _Load:
    """Clients that ask a server one question after the other.

    :param pid: the server.
    :param port: where it listens, on this machine.
    """

    def __init__(self, pid: int, port: int, given: argparse.Namespace) -> None:
        self.pid, self.port, self.given = pid, port, given
        self.speeds: Speeds = (0.0, 0.0)
        self.faults: list[str] = []
        self.memory: list[tuple[float, int]] = []
        """Seconds since the load began, and MiB of the server."""
        self.ended: Counter[str] = Counter()
        """Answers by how they ended, as the server counts them, warming up included."""
        self._seen = _Seen()
        self._measured = _Seen()
        self._asked = self._leaving = 0
        self._over = False
        self._chance = random.Random(0)

    async def run(self, questions: Iterator[str]) -> None:
        """Load the server as long as is wanted, and look at its memory meanwhile."""
        begun = time.perf_counter()
        clients = [
            asyncio.ensure_future(self._client(questions)) for _ in range(self.given.clients)
        ]
        await self._watch(begun, self.given.warm_up)
        self._seen = self._measured  # what ends from now on counts
        since, worked = time.perf_counter(), _worked(self.pid)
        await self._watch(begun, self.given.warm_up + self.given.seconds)
        self._seen = _Seen()  # and no more
        spent = time.perf_counter() - since, _worked(self.pid) - worked
        self.speeds = self._measured.tokens / spent[0], self._measured.tokens / spent[1]
        self._over = True
        await asyncio.gather(*clients)
        reader, writer = await self._sent("GET /metrics", b"")
        for name, value in _ENDED.findall(await reader.read(-1)):
            self.ended[name.decode()] += round(float(value))
        writer.close()

    async def _watch(self, begun: float, until: float) -> None:
        while (now := time.perf_counter() - begun) < until:
            self.memory.append((now, _memory(self.pid)))
            await asyncio.sleep(min(_LOOK_S, until - now))

    async def _client(self, questions: Iterator[str]) -> None:
        while not self._over:
            self._asked += 1
            # An answer may end before it is left: others are left instead.
            leaves = self._leaving < self.given.leaving * self._asked
            self._leaving += leaves
            try:
                left = await self._ask(next(questions), leaves=leaves)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.faults.append(repr(error))
                left = False
            self._leaving -= leaves and not left

    async def _ask(self, text: str, *, leaves: bool) -> bool:
        """Ask one question over a connection of its own; return whether its answer was left."""
        most = self.given.max_tokens
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": most}
        body |= {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
        reader, writer = await self._sent("POST /v1/chat/completions", json.dumps(body).encode())
        try:
            status = (await reader.readline()).split()[1].decode()
            self._seen.statuses[status] += 1
            if leaves and status == "200" and await self._leaves(reader):
                self._seen.left += 1
                return True
            answer = await reader.read(-1)
        finally:
            writer.close()
        found = _USAGE.findall(answer)
        if status == "200" and found:
            self._seen.tokens += int(found[-1])
            self._seen.answered += 1
        elif status == "429":
            await asyncio.sleep(1)
        elif not leaves or status != "200":
            self.faults.append(f"{status}: {answer[-200:]!r}")
        return False

    async def _leaves(self, reader: asyncio.StreamReader) -> bool:
        """Read a few pieces; return whether there was more to come."""
        for _ in range(self._chance.randint(1, max(1, self.given.max_tokens // 4))):
            while line := await reader.readline():
                if line.startswith(b"data: "):
                    break
            if not line or b'"finish_reason":"' in line:
                return False
        return True

    async def _sent(
        self, what: str, body: bytes
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request with as little work as can be."""
        head = f"{what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(head.encode() + body)
        return reader, writer

    def told(self) -> list[str]:
        """Return what a person wants to know."""
        seen = self._measured
        share = 100 * seen.left / max(1, seen.left + seen.answered)
        spans: dict[int, list[int]] = {}
        for at, size in self.memory:
            spans.setdefault(int(at // _SPAN_S), []).append(size)
        memory = ", ".join(f"{min(each)} to {max(each)}" for each in spans.values())
        return [
            f"{seen.answered} answers, {seen.left} left early ({share:.1f} %), "
            f"statuses {dict(seen.statuses)}",
            f"faults: {self.faults[:5] or 'none'}",
            f"ended, by the server's own count, warming up included: {dict(self.ended)}",
            f"memory of the server in MiB, by {_SPAN_S:.0f} s from the beginning of the load, "
            f"{self.given.warm_up:.0f} s of it to warm up: {memory}",
        ]


def _memory(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        kibibytes = next(line.split()[1] for line in file if line.startswith("VmRSS"))
    return int(kibibytes) * 1024 // _MIB


if __name__ == "__main__":
    main()
