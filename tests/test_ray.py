"""The ray engine over a real local cluster, as a user runs it; with make test-ray."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

import glmkit
from glmkit.batch.job import Job, run_job
from glmkit.batch.journal import KEY
from glmkit.console import drain
from glmkit.models.tiny import tiny_checkpoint
from glmkit.types import GenerationOptions

pytestmark = pytest.mark.timeout(300)
pytest.importorskip("ray", reason="ray is not installed (pip install 'glmkit[ray]')")
if not Path("/proc/self/stat").exists():
    pytest.skip("finds processes by /proc", allow_module_level=True)

GLMKIT = [sys.executable, "-c", "import sys; from glmkit.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def source(tmp_path):
    rows = [{"id": f"r{at}", "prompt": f"row {at}" * (1 + at % 7)} for at in range(60)]
    rows[7] = {"id": "r7", "messages": []}
    rows[9] = {"id": "r9", "prompt": "too long " * 200}
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), "utf-8")
    return path


def command(source, output, model, *more):
    options = ["--temperature", "0", "--max-tokens", "60", "--model", str(model)]
    return [*GLMKIT, "batch", str(source), "-o", str(output), *options, *more]


def ran(*args):
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=110)


def rows_of(path):
    return sorted(map(json.loads, path.read_text("utf-8").splitlines()), key=_index)


def _index(row):
    return row[KEY]["index"]


def lines_of(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def answered_here(source, output, model, *, max_tokens=60):
    """Return the rows as this process answers them."""
    options = GenerationOptions(max_tokens=max_tokens, temperature=0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # which is all that so small a model can use
    drain(run_job(glmkit.load(model), Job(source, output, str(model), options=options)))
    torch.set_num_threads(threads)
    return rows_of(output)


def processes():
    """Return what runs: pid -> (pid of the parent, name)."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            name = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # it has ended
        if fields[0] != "Z":
            found[int(folder.name)] = int(fields[1]), name
    return found


def below(pid):
    """Return the processes that a process started, and those started: pid -> name."""
    running = processes()
    family = {pid}
    while more := {each for each, (parent, _) in running.items() if parent in family} - family:
        family |= more
    return {each: running[each][1] for each in family - {pid}}


def workers_of(pid):
    return [each for each, name in below(pid).items() if name.startswith("ray::Worker")]


def wait_for_the_end_of(family):
    """Wait until what works is gone; Ray's agents notice that only after a minute."""
    work = ("ray::Worker", "raylet/raylet", "gcs/gcs_server")
    working = {pid for pid, name in family.items() if any(each in name for each in work)}
    assert len(working) >= 3
    over = time.monotonic() + 60
    while working & set(processes()) and time.monotonic() < over:
        time.sleep(0.2)
    assert not working & set(processes())


def started(*args):
    """Start a job and wait until it has written some rows."""
    job = subprocess.Popen(
        command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    output, before = args[1], lines_of(args[1])
    over = time.monotonic() + 60
    while lines_of(output) < before + 5 and job.poll() is None and time.monotonic() < over:
        time.sleep(0.01)
    return job


@pytest.mark.ray
def test_a_cluster_answers_as_this_machine_does(tmp_path, model, source):
    output = tmp_path / "ray.jsonl"
    cluster = ("--engine", "ray", "--cpus-per-worker", "1", "--workers", "1")
    done = ran(source, output, model, *cluster, "--max-tokens", "12")
    assert done.returncode == 0, done.stderr
    found = rows_of(output)
    assert lines_of(output) == len({*map(_index, found)}) == 60
    assert found == answered_here(source, tmp_path / "local.jsonl", model, max_tokens=12)
    assert [each["id"] for each in found if each["error"]] == ["r7", "r9"]
    assert done.stdout.startswith(f"{output}: 58 answered, 2 failed\n")
    assert done.stderr.splitlines()[0] == "answering in.jsonl (60)"
    assert all(line.startswith("  1 x ") for line in done.stderr.splitlines()[1:])


@pytest.mark.ray
def test_rows_of_a_killed_worker_are_asked_again(tmp_path, model, source):
    output = tmp_path / "ray.jsonl"
    job = started(source, output, model, "--engine", "ray", "--workers", "2", "--concurrency", "1")
    os.kill(workers_of(job.pid)[0], signal.SIGKILL)
    said, complained = job.communicate(timeout=200)
    assert job.returncode == 0, complained
    assert lines_of(output) == 60
    assert rows_of(output) == answered_here(source, tmp_path / "local.jsonl", model)
    lost = [line for line in complained.splitlines() if "a worker was lost" in line]
    assert len(lost) == 1
    assert "raylet" not in said + complained


@pytest.mark.ray
def test_a_job_goes_on_after_kill_9_and_leaves_nothing_behind(tmp_path, model, source):
    output = tmp_path / "out.jsonl"
    cluster = ("--engine", "ray", "--workers", "2", "--concurrency", "1")
    job = started(source, output, model, *cluster)
    family = below(job.pid)
    job.kill()
    job.communicate()
    assert 5 <= lines_of(output) < 60
    wait_for_the_end_of(family)

    assert ran(source, output, model, *cluster, "--limit", "40").returncode == 0
    assert 40 <= lines_of(output) <= 60
    assert ran(source, output, model).returncode == 0  # and it goes on without the cluster
    assert rows_of(output) == answered_here(source, tmp_path / "local.jsonl", model)


@pytest.mark.ray
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15)])
def test_an_interruption_ends_all_of_it(tmp_path, model, source, number, code):
    job = started(source, tmp_path / "out.jsonl", model, "--engine", "ray", "--concurrency", "1")
    family = below(job.pid)
    job.send_signal(number)
    _, complained = job.communicate(timeout=60)
    assert job.returncode == code
    last = r"interrupted: \d+ of 60 rows are done; .*" if code > 0 else r"answering in.jsonl \(60\)"
    assert re.fullmatch(last, [line for line in complained.splitlines() if line][-1])
    wait_for_the_end_of(family)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("options", "code", "why"),
    [
        (["--model", "nowhere/to-be-found"], 1, "'nowhere/to-be-found'"),
        (["--model", "/no/such/folder"], 1, "no folder '/no/such/folder' here"),
        (["--dtype", "float99"], 2, "dtype must be one of"),
        (["--adapter", "/no/such/adapter"], 1, "/no/such/adapter"),
        (["--gpus-per-worker", "64"], 2, "GPU 64 fits on no machine"),
        (["--ray-address", "127.0.0.1:9"], 2, "no Ray cluster answers at 127.0.0.1:9"),
    ],
)
def test_what_cannot_work_is_said_once(tmp_path, model, source, options, code, why):
    done = ran(source, tmp_path / "out.jsonl", model, "--engine", "ray", *options)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == code, done.stderr
    assert len(errors) == 1
    assert why in errors[0]
    assert "Traceback" not in done.stderr
    assert lines_of(tmp_path / "out.jsonl") == 0


FRAGILE = """
    import os, sys
    from pathlib import Path
    from glmkit.batch.job import Job, run_job
    from glmkit.console import drain
    from glmkit.runtime.engines.ray.cluster import Cluster
    from glmkit.runtime.engines.ray.model import RayModel
    from glmkit.testing import EchoModel

    class Fragile(EchoModel):
        def answers(self, asked, *, concurrency=None):
            for ask in asked:
                if ask.messages[-1].content.startswith("poison"):
                    os.abort()
                yield ask.key, self.reply(ask.messages, ask.options)

    def load(device):
        assert device == "cpu"
        return Fragile()

    model = RayModel(load, name="fragile", cluster=Cluster(workers=2))
    job = Job(Path(sys.argv[1]), Path(sys.argv[2]), "fragile")
    print(vars(drain(run_job(model, job))))
"""


@pytest.mark.ray
def test_only_a_row_that_kills_its_workers_is_an_error(tmp_path):
    rows = [{"prompt": f"row {at}"} for at in range(300)]
    rows[100] = rows[290] = {"prompt": "poison"}
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(each) + "\n" for each in rows), "utf-8")
    script = tmp_path / "fragile.py"
    script.write_text(textwrap.dedent(FRAGILE), "utf-8")
    done = subprocess.run(
        [sys.executable, script, source, output], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    found = rows_of(output)
    assert [_index(each) for each in found] == list(range(300))
    failed = [each for each in found if each["error"] is not None]
    assert [_index(each) for each in failed] == [100, 290]
    assert all(each["error"].startswith("three workers ended at this row") for each in failed)
    assert all(each["response"] == each["prompt"] for each in found if not each["error"])
    assert "Traceback" not in done.stderr
