"""The server under load: clients that come, go and leave, against the same batch offline.

    python benchmarks/serve.py                       # 32 clients for three minutes
    python benchmarks/serve.py --seconds 30 --out /tmp/serve.json

In one run: answers of an offline batch, of the server, and of the offline batch again, with the
same prompts and as many rows side by side. Every client asks one question after the other and
streams its answer; a share of them leaves in the middle. What those that left had got is not
counted. Clients, server and batch share the machine; the clients' work counts against the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
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
_MIB = 2**20


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    given = _parsed(arguments)
    record = Record(settings={key: str(value) for key, value in vars(given).items()})
    texts, record.settings["prompts from"] = prompts(QUESTIONS, ROOT)
    model = glmkit.load(given.model)
    numbers = count()  # each prompt begins with its own, so that none is known already
    questions = (f"{at}: {texts[at % len(texts)]}" for at in numbers)
    with _server(given) as (process, port):
        before = _offline(model, questions, given)
        load = asyncio.run(_load(process.pid, port, questions, given))
        after = _offline(model, questions, given)
    speeds = [load.tokens / load.seconds] * 2
    rounds = {"glmkit serve": speeds, "offline batch": [before, after]}
    record.add("answers", rounds, "tokens/s", over="glmkit serve")
    record.notes += load.told()
    print("\n".join(load.told()))
    if given.out is not None:
        record.write(given.out)


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--seconds", type=float, default=180.0, help="of load on the server")
    parser.add_argument("--offline", type=int, default=512, help="questions of an offline batch")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--leaving", type=float, default=0.1, help="share of answers left early")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def _offline(
    model: Any,  # noqa: ANN401
    questions: Iterator[str],
    given: argparse.Namespace,
) -> float:
    """Return the tokens/s of a batch in this process, from its first row to its last."""
    options = glmkit.GenerationOptions(max_tokens=given.max_tokens, temperature=0)
    asked = [
        glmkit.Ask(at, [{"role": "user", "content": text}], options)
        for at, text in enumerate(islice(questions, given.offline))
    ]
    begun = time.perf_counter()
    replies = [reply for _, reply in model.answers(asked, concurrency=given.clients)]
    speed = sum(each.usage.completion_tokens for each in replies) / (time.perf_counter() - begun)
    print(f"offline: {speed:.0f} tokens/s", flush=True)
    return speed


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
class _Load:
    """What the clients saw."""

    seconds: float = 0.0
    tokens: int = 0
    answered: int = 0
    left: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    """Of the server, in MiB, at even pauses."""

    def told(self) -> list[str]:
        """Return what a person wants to know."""
        return [
            f"{self.answered} answers, {self.left} left early, statuses {dict(self.statuses)}",
            f"faults: {self.faults[:5] or 'none'}",
            f"memory of the server in MiB, every tenth of the time: {self.memory}",
        ]


async def _load(pid: int, port: int, questions: Iterator[str], given: argparse.Namespace) -> _Load:
    load, chance, begun = _Load(), random.Random(0), time.perf_counter()
    until = begun + given.seconds

    async def client() -> None:
        while time.perf_counter() < until:
            text = next(questions)
            leaves = chance.random() < given.leaving
            try:
                await _ask(port, text, given.max_tokens, load, leaves=leaves)
            except (OSError, asyncio.IncompleteReadError) as error:
                load.faults.append(repr(error))

    async def watch() -> None:
        while time.perf_counter() < until:
            load.memory.append(_memory(pid))
            await asyncio.sleep(given.seconds / 10)

    await asyncio.gather(watch(), *(client() for _ in range(given.clients)))
    load.seconds = time.perf_counter() - begun
    load.memory.append(_memory(pid))
    return load


async def _ask(port: int, text: str, most: int, load: _Load, *, leaves: bool) -> None:
    """Ask one question over a connection of its own, with as little work as can be."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": most, "temperature": 0}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    sent = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + sent)
        status = (await reader.readline()).split()[1].decode()
        load.statuses[status] += 1
        if leaves:
            await reader.read(2000)
            load.left += 1
            return
        answer = await reader.read(-1)
    finally:
        writer.close()
    found = _USAGE.findall(answer)
    if status == "200" and found:
        load.tokens += int(found[-1])
        load.answered += 1
    elif status != "429":
        load.faults.append(f"{status}: {answer[-200:]!r}")
    else:
        await asyncio.sleep(1)


def _memory(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        kibibytes = next(line.split()[1] for line in file if line.startswith("VmRSS"))
    return int(kibibytes) * 1024 // _MIB


if __name__ == "__main__":
    main()
