"""The recipe dpo on every layout: the margin rises on pairs that nobody learnt from."""

import pytest
import torch
from pair_rows import ROWS

from glmkit.dataset import Sample
from glmkit.errors import UsageError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.loading import load_local
from glmkit.training.encoding import SampleEncoder
from glmkit.types import Message
from glmkit_rlhf.dpo import FREE, KINDS, DpoConfig, dpo

pytestmark = pytest.mark.usefixtures("quick")
LAYOUTS = ("hub", "chatglm", "chatglm2", "chatglm3", "glm4-9b")
COMMON = {
    **{"report_to": (), "max_length": 64, "batch_size": 4, "warmup_ratio": 0.0, "save_steps": 4},
    **{"max_steps": 4, "val_size": 4.0, "rank": 4, "device": "cpu", "dtype": "float32"},
    "eval_steps": 2,
}
LEARNING = {"val_size": 0.0, "eval_steps": 0}
"""Without an evaluation."""


def settings(base, data, out, **more):
    rate = 1e-3 if more.get("tuning") == "full" else 1e-2
    given = {**COMMON, "learning_rate": rate, "cache": str(data.parent / "tokens"), **more}
    return DpoConfig(model=str(base), data=(str(data),), output=str(out), **given)


def trained(*given, **more):
    return [each for each in dpo.run(settings(*given, **more)) if each.metrics]


@pytest.mark.parametrize(
    ("layout", "tuning"), [*((each, "lora") for each in LAYOUTS), ("chatglm", "full")]
)
def test_the_margin_rises_on_pairs_that_were_held_out(tmp_path, data, layout, tuning):
    base = tiny_checkpoint(tmp_path / "base", layout=layout)
    logs = trained(base, data, tmp_path / "run", tuning=tuning)
    # At first the model is its own reference.
    assert logs[0].loss == pytest.approx(0.693147, abs=1e-4)
    assert logs[0].metrics["margin"] == pytest.approx(0, abs=1e-4)
    held = [each.metrics["eval_margin"] for each in logs if "eval_margin" in each.metrics]
    assert 0 < held[0] < held[-1]
    assert logs[-1].metrics["eval_accuracy"] == 1


def sums(local, folder):
    """Return the log-probabilities of both answers of each row, by scores of all tokens."""
    encoder = SampleEncoder.open(folder, max_length=64)
    found = []
    for row in ROWS:
        for name in ("chosen", "rejected"):
            messages = (Message("user", row["prompt"]), Message("assistant", row[name]))
            (example,) = encoder.encode([Sample(messages, (0, 1))])[0].rows
            ids = torch.from_numpy(example.ids).long()
            logs = local.model(ids[None])[0, :-1].log_softmax(-1)
            logs = logs.gather(-1, ids[1:, None])[:, 0]
            found.append(float(logs[torch.from_numpy(example.weights[1:]) > 0].sum()))
    return torch.tensor(found).view(-1, 2)


@pytest.mark.parametrize("layout", ["chatglm", "chatglm3"])
@torch.no_grad()
def test_the_margin_is_that_of_the_saved_adapter_to_its_base(tmp_path, data, layout):
    base = tiny_checkpoint(tmp_path / "base", layout=layout)
    with torch.enable_grad():
        logs = trained(base, data, tmp_path / "run", val_size=19.0, max_steps=4, eval_steps=4)
    local = load_local(base)
    before = sums(local, base)
    local.load_adapter(tmp_path / "run", "dpo")
    rewards = 0.1 * (sums(local, base) - before)
    margins = rewards[:, 0] - rewards[:, 1]
    held = logs[-1].metrics["eval_margin"] * 19
    # All but the one pair that it learnt from were held out.
    assert min(abs(margins.sum() - each - held) for each in margins) < 1e-2


@pytest.mark.parametrize("kind", [*KINDS, *FREE])
def test_every_loss_falls(tmp_path, data, kind):
    base = tiny_checkpoint(tmp_path / "base")
    more = {"smoothing": 0.1} if kind in ("sigmoid", "robust") else {}
    more["learning_rate"] = 1e-3
    logs = trained(base, data, tmp_path / "run", loss=kind, max_steps=2, **LEARNING, **more)
    assert logs[-1].loss < logs[0].loss


def test_without_a_first_model_nothing_is_asked_of_it(tmp_path, data, monkeypatch):
    monkeypatch.setattr("glmkit_rlhf.dpo_task.Initial.of", None)  # which would copy all weights
    base = tiny_checkpoint(tmp_path / "base")
    logs = trained(base, data, tmp_path / "run", loss="simpo", beta=2.0, tuning="full")
    assert logs[-1].metrics["eval_accuracy"] == 1
    assert 0 < logs[1].metrics["margin"] < logs[-1].metrics["eval_margin"]


def test_the_sft_term_keeps_better_answers_likely(tmp_path, data):
    base = tiny_checkpoint(tmp_path / "base")
    last = [
        trained(base, data, tmp_path / str(sft), sft=sft)[-1].metrics["eval_chosen_log_prob"]
        for sft in (0.0, 5.0)
    ]
    assert last[1] > last[0]


def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path, data):
    base = tiny_checkpoint(tmp_path / "base", layout="chatglm")
    more = {"save_steps": 2, "max_steps": 5, **LEARNING}
    trained(base, data, tmp_path / "whole", **more)
    running = dpo.run(settings(base, data, tmp_path / "parted", **more))
    next(each for each in running if each.note == "saved checkpoint-2")
    running.close()
    trained(base, data, tmp_path / "parted", **more, resume=True)
    one, other = (tmp_path / each / "adapter_model.safetensors" for each in ("whole", "parted"))
    assert one.read_bytes() == other.read_bytes()


def test_an_adapter_that_is_gone_on_with_is_the_reference(tmp_path, data):
    base = tiny_checkpoint(tmp_path / "base")
    trained(base, data, tmp_path / "first", max_steps=2, **LEARNING)
    first = str(tmp_path / "first")
    again = trained(base, data, tmp_path / "second", init_adapter=first, max_steps=1, **LEARNING)
    assert again[0].loss == pytest.approx(0.693147, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("loss", "kto", "loss must be one of sigmoid"),
        ("gamma", -1.0, "gamma must be 0 or more"),
        ("beta", 0.0, "beta must be above 0"),
        ("smoothing", 0.5, "smoothing must be from 0 to below 0.5"),
        ("sft", -1.0, "sft must be 0 or more"),
        ("tuning", "head", "tuning must be one of lora, full"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, data, name, value, reason):
    with pytest.raises(UsageError, match=reason):
        settings(tmp_path, data, tmp_path / "x", **{name: value})
    if name == "smoothing":
        with pytest.raises(UsageError, match="the loss 'ipo' knows no smoothing"):
            settings(tmp_path, data, tmp_path / "x", loss="ipo", smoothing=0.1)
