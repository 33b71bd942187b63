"""`glmkit finetune --nproc 2`, as a user runs it."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from glmkit.models.tiny import tiny_checkpoint

pytestmark = [pytest.mark.parallel, pytest.mark.timeout(300)]
STEP = re.compile(r"step (\d)/4 +loss ([\d.]+)")


@pytest.fixture
def finetune(tmp_path, monkeypatch):
    """Run the command on a tiny model; nothing may come on the error channel."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    base = tiny_checkpoint(tmp_path / "base", layout="chatglm3")
    rows = [{"instruction": f"say {n}", "output": f"it is {n * n}"} for n in range(12)]
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows), encoding="utf-8")
    told = ["--model", base, "--data", data, "--max-steps", 4, "--save-steps", 2, "--rank", 2]
    told += ["--device", "cpu", "--workers", 1, "--cache", tmp_path / "cache", "--report-to none"]

    def run(*more: str) -> str:
        words = " ".join(map(str, [*told, "--output", tmp_path / "out", *more])).split()
        command = [sys.executable, "-m", "glmkit", "finetune", "lora", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    return run


def losses(said: str) -> dict[str, str]:
    steps = STEP.findall(said)
    assert [int(at) for at, _ in steps] == sorted({int(at) for at, _ in steps}), said
    return dict(steps)


@pytest.mark.parametrize(("one", "other"), [("ddp", "fsdp"), ("fsdp", "ddp")])
def test_a_run_of_two_processes_speaks_as_one_and_is_resumed(tmp_path, finetune, one, other):
    first = finetune("--nproc 2 --batch-size 1 --parallel", one)
    assert first.count("done: ") == 1
    out = tmp_path / "out"
    assert {"adapter_model.safetensors", "run.json", "accelerate.yaml"} <= {
        each.name for each in out.iterdir()
    }
    shutil.rmtree(out / "checkpoint-4")
    again = finetune("--nproc 2 --batch-size 1 --resume --parallel", other)
    assert losses(again) == {at: loss for at, loss in losses(first).items() if int(at) > 2}
    shutil.rmtree(out / "checkpoint-4")
    alone = finetune("--nproc 1 --batch-size 1 --gradient-accumulation 2 --resume --parallel ddp")
    assert losses(alone) == losses(again)
