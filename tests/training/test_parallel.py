"""Two processes together learn what one does, and each takes the other's checkpoints."""

import json
import socket
import time
from pathlib import Path

import pytest
import torch

from .together import model_in, train

pytestmark = pytest.mark.usefixtures("one_thread")

HERE = Path(__file__).parent
_PROGRAM = f"""
import faulthandler, runpy, sys
faulthandler.dump_traceback_later(100, exit=True)
sys.path.insert(0, {str(HERE)!r})
runpy.run_path({str(HERE / "together.py")!r}, run_name="__main__")
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def two(forks, enabled_sockets):
    """Run the same in two processes that know of each other."""

    def start(*runs: dict):
        said = json.dumps(runs, default=str)
        port = free_port()
        return [forks.start(_PROGRAM, rank, 2, port, said) for rank in range(2)]

    return start


@pytest.fixture
def enabled_sockets(socket_enabled):
    """Look for a free port; nobody connects to anywhere."""


def ended(pair) -> None:
    assert [each.wait() for each in pair] == [0, 0], pair[0].said() + pair[1].said()


def result(folder: Path, name: str) -> dict:
    return torch.load(folder / f"{name}.pt", weights_only=True)


def same(one: dict, other: dict, steps: int = 7) -> None:
    assert len(other["losses"]) == steps
    assert other["losses"] == pytest.approx(one["losses"][-steps:], abs=1e-5)
    assert other["norms"] == pytest.approx(one["norms"][-steps:], rel=1e-4)
    assert other["weights"].keys() == one["weights"].keys()
    for name, value in one["weights"].items():
        if name.endswith("query_key_value.bias"):
            # A bias of keys changes nothing: its gradient is what rounding leaves, and Adam's
            # steps are as large for that as for any other.
            continue
        off = torch.linalg.vector_norm(other["weights"][name] - value)
        assert off <= 1e-4 * torch.linalg.vector_norm(value), name


def plan(folder: Path, name: str, kind: str, parallel: str, **more) -> dict:
    told = {"parallel": parallel, "save_steps": 3} | more.pop("told", {})
    return {"folder": str(folder), "name": name, "kind": kind, "told": told, **more}


def test_two_processes_learn_what_one_does_and_go_on_from_its_checkpoint(tmp_path, two):
    model_in(tmp_path)
    alone = train(plan(tmp_path, "one", "low", "ddp"))
    assert alone["losses"][-1] < alone["losses"][0]
    ended(
        two(
            plan(tmp_path, "ddp", "low", "ddp"),
            plan(tmp_path, "fsdp", "low", "fsdp"),
            plan(tmp_path, "ddp-more", "low", "ddp", resume="one/checkpoint-3"),
        )
    )
    same(alone, result(tmp_path, "ddp"))
    same(alone, result(tmp_path, "fsdp"))
    same(alone, result(tmp_path, "ddp-more"), steps=4)


@pytest.mark.parallel
def test_shards_of_all_weights_and_of_a_few_go_on_from_each_others_checkpoints(tmp_path, two):
    model_in(tmp_path)
    alone = {kind: train(plan(tmp_path, f"one-{kind}", kind, "ddp")) for kind in ("low", "full")}
    ended(
        two(
            plan(tmp_path, "fsdp-full", "full", "fsdp"),
            plan(tmp_path, "fsdp-low-more", "low", "fsdp", resume="one-low/checkpoint-3"),
            plan(tmp_path, "fsdp-full-more", "full", "fsdp", resume="fsdp-full/checkpoint-3"),
        )
    )
    same(alone["full"], result(tmp_path, "fsdp-full"))
    for kind in ("low", "full"):
        same(alone[kind], result(tmp_path, f"fsdp-{kind}-more"), steps=4)
    # What two processes kept, one takes.
    more = plan(tmp_path, "one-more", "full", "ddp", resume="fsdp-full/checkpoint-3")
    same(alone["full"], train(more), steps=4)


@pytest.mark.parallel
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_that_fails_ends_all_and_is_named(tmp_path, two, parallel):
    model_in(tmp_path)
    pair = two(plan(tmp_path, "failing", "low", parallel, fails=1))
    assert [each.wait() for each in pair] == [1, 1]
    assert "ZeroDivisionError: on purpose, in process 1" in pair[1].said()
    said = "WorkerLostError: process 1 ended (ZeroDivisionError): on purpose, in process 1"
    assert said in pair[0].said()


@pytest.mark.parallel
def test_one_that_is_killed_ends_all(tmp_path, two):
    model_in(tmp_path)
    pair = two(plan(tmp_path, "killed", "low", "ddp", told={"save_steps": 1}))
    until(pair[0], "at 2")
    pair[1].kill()
    assert pair[0].wait() == 1
    assert "WorkerLostError: another process of this run has ended" in pair[0].said()


def until(fork, text: str) -> None:
    for _ in range(600):
        if fork.out.exists() and text in fork.said():
            return
        time.sleep(0.05)
    raise AssertionError(fork.said())


@pytest.mark.parallel
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_processes_that_were_killed_go_on_as_if_nothing_had_been(tmp_path, two, parallel):
    model_in(tmp_path)
    told = {"save_steps": 1}
    pair = two(plan(tmp_path, "killed", "low", parallel, told=told))
    until(pair[0], "at 4")
    for each in pair:
        each.kill()
    saved = sorted((tmp_path / "killed").glob("checkpoint-*"))
    assert saved and "-7" not in saved[-1].name
    last = f"killed/{saved[-1].name}"
    done = int(saved[-1].name.partition("-")[2])
    ended(two(plan(tmp_path, "more", "low", parallel, resume=last)))
    same(train(plan(tmp_path, "one", "low", "ddp")), result(tmp_path, "more"), steps=7 - done)
