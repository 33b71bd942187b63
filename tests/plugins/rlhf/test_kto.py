"""The recipe kto: its loss by hand, what it learns, and what the divergence is measured on."""

import json
import math
import re
from collections import deque

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from pair_rows import write_pairs

from glmkit.errors import DataError, UsageError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.loading import load_local
from glmkit.training.examples import Example
from glmkit.training.tokens import Tokens
from glmkit_rlhf.kto import KINDS, KtoConfig, kto
from glmkit_rlhf.losses import kto_losses
from glmkit_rlhf.rows import answer_log_probs, joined
from glmkit_rlhf.verdicts import Alone, Judged, Verdicts, apart, hint, swapped

pytestmark = pytest.mark.usefixtures("quick")
LAYOUTS = ("hub", "chatglm")
"""Positions along one axis, and along two; published layouts are elsewhere."""
COMMON = {
    **{"report_to": (), "max_length": 64, "batch_size": 8, "warmup_ratio": 0.0, "save_steps": 4},
    **{"max_steps": 4, "val_size": 8.0, "rank": 4, "device": "cpu", "dtype": "float32"},
    "eval_steps": 2,
}

ONE = {"val_size": 0.0, "eval_steps": 0, "max_steps": 1}


def settings(base, data, out, **more):
    rate = 3e-3 if more.get("tuning") == "full" else 1e-2
    given = {**COMMON, "learning_rate": rate, "cache": str(data.parent / "tokens"), **more}
    return KtoConfig(model=str(base), data=(str(data),), output=str(out), **given)


def trained(*given, **more):
    return [each for each in kto.run(settings(*given, **more)) if each.metrics]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_the_loss_is_that_of_the_paper():
    policy, reference = [-3.0, -7.5, -2.0, -9.0], [-4.0, -7.0, -2.5, -6.0]
    good = [True, True, False, False]
    given = [torch.tensor(each, dtype=torch.float64) for each in (policy, reference)]
    found = kto_losses(
        *given, torch.tensor(good), 0.3, beta=0.5, desirable=1.5, undesirable=0.75
    ).tolist()
    expected = [
        1.5 * (1 - sigmoid(0.5 * (1.0 - 0.3))),
        1.5 * (1 - sigmoid(0.5 * (-0.5 - 0.3))),
        0.75 * (1 - sigmoid(0.5 * (0.3 - 0.5))),
        0.75 * (1 - sigmoid(0.5 * (0.3 + 3.0))),
    ]
    assert found == pytest.approx(expected, abs=1e-15)
    plain = kto_losses(*given, torch.tensor(good), 0.0, beta=0.5).tolist()
    assert plain[1] == pytest.approx(1 - sigmoid(-0.25), abs=1e-15)
    assert plain[3] == pytest.approx(sigmoid(-1.5), abs=1e-15)  # apo_zero_unpaired, as published


@pytest.mark.parametrize(
    ("layout", "tuning"), [*((each, "lora") for each in LAYOUTS), ("chatglm", "full")]
)
def test_good_answers_gain_on_others_that_were_held_out(tmp_path, data, layout, tuning):
    base = tiny_checkpoint(tmp_path / "base", layout=layout)
    logs = trained(base, data, tmp_path / "run", tuning=tuning)
    # At first the model is its own reference.
    assert logs[0].loss == pytest.approx(0.5, abs=1e-5)
    assert logs[0].metrics["kl"] == pytest.approx(0, abs=1e-4)
    held = [each.metrics for each in logs if "eval_loss" in each.metrics]
    rewards = [each["eval_desirable_reward"] - each["eval_undesirable_reward"] for each in held]
    assert 0 < rewards[0] < rewards[-1] and held[-1]["eval_loss"] < held[0]["eval_loss"] < 0.5
    assert held[-1]["eval_kl"] >= 0 and held[-1]["eval_accuracy"] > 0.5


def test_verdicts_and_the_pairs_that_they_are_of_teach_the_same(tmp_path, data):
    base = tiny_checkpoint(tmp_path / "base")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    single = tmp_path / "single.jsonl"
    single.write_text(
        "\n".join(
            json.dumps({"prompt": row["prompt"], "completion": row[name], "label": good})
            for row in rows
            for name, good in (("chosen", True), ("rejected", False))
        )
    )
    more = {"val_size": 0.0, "eval_steps": 0, "max_steps": 2}
    one = trained(base, data, tmp_path / "one", **more)
    two = trained(base, single, tmp_path / "two", **more)
    assert [each.loss for each in one] == [each.loss for each in two]
    assert one[-1].metrics["kl"] > 0


@pytest.mark.parametrize("loss", KINDS)
def test_a_step_is_what_its_parts_come_to(tmp_path, data, loss):
    """The loss, the rewards and the divergence of a second step, from the adapter of the first."""
    base = tiny_checkpoint(tmp_path / "base", layout="chatglm3")
    more = {"val_size": 0.0, "eval_steps": 0, "loss": loss, "save_steps": 1, "max_steps": 2}
    more |= {"beta": 0.4, "desirable_weight": 2.0, "batch_size": 3, "gradient_accumulation": 2}
    config = settings(base, data, tmp_path / "run", **more)
    seen = []
    recorded = kto_losses

    def watched(policy, reference, good, baseline, **given):
        seen.append((good.tolist(), (policy - reference).tolist(), baseline))
        return recorded(policy, reference, good, baseline, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glmkit_rlhf.kto_task.kto_losses", watched)
        logs = [each for each in kto.run(config) if each.metrics]
    second = seen[2:]
    goods = [each for good, *_ in second for each in good]
    ratios = [each for _, some, _ in second for each in some]
    z = second[0][2]
    assert len(goods) == 6 and z == second[1][2]  # one divergence for the whole step
    weighed = [
        (2.0 if good else 1.0) * (1 - sigmoid(0.4 * (ratio - z) * (1 if good else -1)))
        for good, ratio in zip(goods, ratios, strict=True)
    ]
    assert logs[1].loss == pytest.approx(np.mean(weighed), rel=1e-5)
    told = logs[1].metrics
    for name, which in (("desirable", True), ("undesirable", False)):
        own = [0.4 * each for each, good in zip(ratios, goods, strict=True) if good is which]
        assert (f"{name}_reward" in told) is bool(own)
        assert not own or told[f"{name}_reward"] == pytest.approx(np.mean(own), rel=1e-4)
    assert ("kl" in told) is (loss == "kto")
    assert z == (told["kl"] if loss == "kto" else 0.0)


def verdicts(rows):
    """Return answers that need no files: (question, answer) as token ids."""
    made = [
        Judged(
            Example(np.array([*q, *a], np.int32), np.array([0.0] * len(q) + [1.0] * len(a))), True
        )
        for q, a in rows
    ]
    return made


def test_answers_are_put_behind_the_questions_of_others():
    one, other = (each.said for each in verdicts([((1, 2, 3), (7,)), ((4,), (8, 9, 9))]))
    assert swapped(one, other, 64).ids.tolist() == [1, 2, 3, 8, 9, 9]
    assert swapped(one, other, 5).weights.tolist() == [0, 0, 0, 1, 1]
    questions = [(1,), (1,), (2,), (2,), (3,), (3,)]
    rows = verdicts([(each, (9,)) for each in questions])
    found = apart(rows, [0, 1, 2, 3, 4, 5])
    assert all(questions[a] != questions[b] for a, b in found.items())
    assert sorted(found.values()) == [0, 1, 2, 3, 4, 5]  # the same answers, each once
    assert apart(rows, [2]) == {2: 4}
    alike = verdicts([((1,), (at,)) for at in range(3)])
    assert apart(alike, [0, 1, 2]) == {0: 1, 1: 2, 2: 0}


@torch.no_grad()
def test_the_divergence_is_that_of_the_saved_adapter_to_its_base(tmp_path, data):
    base = tiny_checkpoint(tmp_path / "base", layout="chatglm")
    more = {"max_steps": 2, "val_size": 6.0}
    with torch.enable_grad():
        logs = trained(base, data, tmp_path / "run", **more)
    config = settings(base, data, tmp_path / "run", **more)
    _, held = KtoData(config)
    partners = apart(held, list(range(len(held))))
    rows = [swapped(held[a].said, held[b].said, 64) for a, b in partners.items()]
    local = load_local(base)
    before = answer_log_probs(local.model, joined(rows))
    local.load_adapter(tmp_path / "run", "kto")
    after = answer_log_probs(local.model, joined(rows))
    told = logs[-1].metrics["eval_kl"]
    assert max(0.0, float((after - before).mean())) == pytest.approx(told, abs=1e-4)


def KtoData(config):  # noqa: N802
    """Return what a run learns from and is evaluated on."""
    from glmkit.console import drain
    from glmkit.dataset import open_data
    from glmkit.training.intake import tokens_of

    def read(data):
        tokens: Tokens = drain(tokens_of(Alone(data), config))
        return Verdicts(tokens, np.array([each.good for each in data.verdicts()], bool))

    parts = open_data(config.data, kind="verdicts").split(config.val_size, seed=config.seed)
    return tuple(map(read, parts))


def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path, data):
    base = tiny_checkpoint(tmp_path / "base", layout="chatglm")
    more = {"save_steps": 2, "max_steps": 4, "val_size": 0.0, "eval_steps": 0, "batch_size": 4}
    trained(base, data, tmp_path / "whole", **more)
    running = kto.run(settings(base, data, tmp_path / "parted", **more))
    next(each for each in running if each.note == "saved checkpoint-2")
    running.close()
    trained(base, data, tmp_path / "parted", **more, resume=True)
    one, other = (tmp_path / each / "adapter_model.safetensors" for each in ("whole", "parted"))
    assert one.read_bytes() == other.read_bytes()


def advised(good, bad, **weights):
    """Return what is said of so many good and other answers."""
    return hint(good, bad, KtoConfig(model="m", data=("d",), output="o", **weights))


COUNTS = st.integers(1, 10_000)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(COUNTS, COUNTS, st.sampled_from((0.001, 0.3, 1.0, 7.0)))
def test_advice_on_weights_is_good_enough_for_itself(good, bad, other):
    said = advised(good, bad, undesirable_weight=other)
    for weight in re.findall(r"--desirable-weight (\S+) to (\S+)", said)[:1]:
        for each in weight:
            assert not advised(good, bad, desirable_weight=float(each), undesirable_weight=other)


def test_advice_on_weights_is_told():
    assert "weigh 0.33 times" in advised(2, 6) and advised(2, 6).endswith("weight 3 to 4")
    assert advised(3, 4).endswith("weight 1.34 to 1.77")
    assert "all answers are desirable: what is learnt is only to write like them" in advised(3, 0)
    assert "all answers are undesirable" in advised(0, 3)
    assert not advised(4, 3) and not advised(2, 6, undesirable_weight=0.0)


def answers_of(folder, name, count):
    rows = [{"prompt": f"{at}?", "completion": "a", "label": at < 2} for at in range(count)]
    folder = folder / name
    folder.mkdir()
    return write_pairs(folder, rows)


def test_a_run_says_what_it_learns_from(tmp_path):
    base, data = tiny_checkpoint(tmp_path / "base"), answers_of(tmp_path, "data", 8)
    notes = [each.note for each in kto.run(settings(base, data, tmp_path / "run", **ONE))]
    said = next(each for each in notes if "desirable" in each)
    assert "2 desirable answers, 6 undesirable" in said and "--desirable-weight 3 to 4" in said


def test_one_answer_alone_has_no_other_question(tmp_path):
    base, alone = tiny_checkpoint(tmp_path / "base"), answers_of(tmp_path, "alone", 1)
    with pytest.raises(DataError, match="two answers or more are needed to learn from: 1 sample"):
        deque(kto.run(settings(base, alone, tmp_path / "run", **ONE)), maxlen=0)
    data = answers_of(tmp_path, "data", 8)
    held = {**ONE, "eval_steps": 1, "eval_data": (str(alone),)}
    with pytest.raises(DataError, match="two answers or more are needed to evaluate on"):
        deque(kto.run(settings(base, data, tmp_path / "run", **held)), maxlen=0)
    logs = trained(base, data, tmp_path / "run", **held, loss="apo_zero_unpaired")
    assert logs[-1].metrics["eval_loss"] > 0


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"loss": "dpo"}, "loss must be one of kto, apo_zero_unpaired"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"desirable_weight": -1.0}, "desirable_weight must be 0 or more"),
        ({"desirable_weight": 0.0, "undesirable_weight": 0.0}, "nothing is learnt"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, data, given, reason):
    with pytest.raises(UsageError, match=reason):
        settings(tmp_path, data, tmp_path / "x", **given)
