"""Half precision where weights themselves learn: products are rounded, what learns is not."""

import json
from pathlib import Path

import pytest
import torch

from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.demand import Job, _full
from glmkit.runtime.loading import load_local
from glmkit.training.config import TrainConfig
from glmkit.training.precision import Precision
from glmkit.training.run import train
from glmkit.training.tunings.whole import Part, WholeTuning

pytestmark = pytest.mark.usefixtures("one_thread")
RATE = 1e-5


@pytest.fixture(scope="module", params=["chatglm3", "chatglm"])
def base(request, tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("base"), layout=request.param)


@pytest.fixture
def run(base, tmp_path):
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"say {each}", "response": str(each) * 3} for each in range(8)]
    data.write_text("".join(json.dumps(each) + "\n" for each in rows))

    def done(name: str, chosen=None, **given) -> list[float]:
        plain = {"model": str(base), "data": (str(data),), "output": str(tmp_path / name)}
        plain |= {"max_steps": 20, "learning_rate": RATE, "report_to": ("none",), "batch_size": 8}
        config = TrainConfig(**{**plain, "scheduler": "constant", **given})
        tuning = WholeTuning(base, chosen) if chosen else WholeTuning(base)
        return [each.loss for each in train(config, tuning) if each.loss is not None]

    return done


@pytest.mark.parametrize(
    ("chosen", "rate"),
    [(None, 1e-5), (Part(1, extra=("embedding", "norm", "head")), 1e-4)],
)
def test_small_steps_are_not_lost(run, chosen, rate):
    exact = run("exact", chosen, dtype="float32", learning_rate=rate)
    half = run("half", chosen, dtype="bfloat16", learning_rate=rate)
    fallen = exact[0] - exact[-1]
    assert fallen > 0
    assert half[0] == pytest.approx(exact[0], rel=5e-3)
    assert half[0] - half[-1] == pytest.approx(fallen, rel=0.2)


def test_a_resumed_run_is_exact(run, tmp_path):
    whole = run("whole", Part(1), dtype="bfloat16", max_steps=6)
    run("parts", Part(1), dtype="bfloat16", max_steps=6, save_steps=3)
    (tmp_path / "parts/checkpoint-6").rename(tmp_path / "gone")
    assert run("parts", Part(1), dtype="bfloat16", max_steps=6, resume=True) == whole[3:]


def test_answers_are_asked_for_meanwhile(run):
    chosen = Part(1, extra=("norm",))
    told = {"val_size": 2, "eval_generate": 2, "eval_max_tokens": 3, "max_steps": 2}
    assert len(run("asked", chosen, dtype="bfloat16", **told)) == 2


def test_only_what_learns_is_kept_exactly(base):
    tuning = WholeTuning(base, Part(1))
    precision = Precision.of(torch.bfloat16, tuning)
    model = load_local(base, device="cpu", dtype="bfloat16").model
    tuning.dress(model)
    precision.keep(model)
    assert precision == Precision(torch.bfloat16, torch.bfloat16)
    dtypes = {each.requires_grad: each.dtype for each in model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert Precision.of(torch.bfloat16, WholeTuning(base)).weights == torch.float32
    assert Precision.of(torch.bfloat16, tuning, masters=True) == Precision(torch.bfloat16)
    assert Precision.of(torch.float32, tuning) == Precision(torch.float32)


def test_optimizers_without_states_are_foretold_as_such():
    taken = {
        each: _full(Job(train="full", dtype="float32", optimizer=each)).optimizer
        for each in ("adamw", "adamw_8bit", "adafactor", "sgd")
    }
    assert taken == {"adamw": 8, "adamw_8bit": 2, "adafactor": 0, "sgd": 0}
