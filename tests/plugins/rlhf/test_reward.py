"""The recipe reward on every layout: pairs are told apart, what it leaves scores as it trained."""

import json
import shutil
from collections import deque
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from pair_rows import ROWS, write_pairs
from test_official import official

import glmkit_rlhf
from glmkit.cli import cli
from glmkit.dataset import open_data
from glmkit.errors import CheckpointError, DataError, UsageError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.loading import load_local
from glmkit.testing import make_app
from glmkit_rlhf.heads import ScalarHead, load_head
from glmkit_rlhf.pairs import Pair, PairBatch, Sides
from glmkit_rlhf.reward import RewardConfig, reward
from glmkit_rlhf.reward_task import RewardLearner, RewardTask
from glmkit_rlhf.scoring import RewardModel

pytestmark = pytest.mark.usefixtures("quick")
LAYOUTS = ("hub", "chatglm", "chatglm2", "chatglm3", "glm4-9b")
COMMON = {
    **{"report_to": (), "max_length": 64, "batch_size": 8, "warmup_ratio": 0.0, "save_steps": 4},
    **{"max_steps": 4, "val_size": 8.0, "rank": 4, "device": "cpu", "dtype": "float32"},
}


def settings(base, data, out, **more):
    rate = {"full": 1e-3, "head": 1e-2}.get(more.get("tuning", "lora"), 1e-2)
    given = {**COMMON, "learning_rate": rate, **more}
    cache = str(data.parent / "tokens")
    return RewardConfig(model=str(base), data=(str(data),), output=str(out), cache=cache, **given)


def trained(*given, **more):
    config = settings(*given, **more)
    lines = list(reward.run(config))
    return config, [each for each in lines if each.metrics]


def asked(rows=ROWS):
    question = [[{"role": "user", "content": each["prompt"]}] for each in rows]
    return [
        [*said, {"role": "assistant", "content": row[name]}]
        for said, row in zip(question, rows, strict=True)
        for name in ("chosen", "rejected")
    ]


@pytest.mark.parametrize(
    ("layout", "tuning"),
    [*((each, "lora") for each in LAYOUTS), ("chatglm", "full"), ("hub", "full"), ("hub", "head")],
)
def test_a_reward_model_tells_answers_apart_and_reloads(tmp_path, data, layout, tuning):
    base = tiny_checkpoint(tmp_path / "base", layout=layout)
    pooling = "mean" if tuning == "head" or layout == "chatglm" else "last"
    more = {"tuning": tuning, "pooling": pooling, "max_steps": 6}
    config, logs = trained(base, data, tmp_path / "run", **more)
    first, *_, last = [each for each in logs if each.loss is not None]
    assert first.loss == pytest.approx(0.693147, abs=1e-5)  # the head begins at 0
    assert last.loss < first.loss and last.metrics["accuracy"] == 1
    assert logs[-1].metrics["eval_accuracy"] == 1
    ready = RewardModel.load(config.output)
    scores = torch.tensor(ready.score(asked()))
    assert (scores[::2] > scores[1::2]).all()
    # What was held out while training is scored with the same numbers afterwards.
    _, held = open_data([str(data)], kind="preferences").split(8, seed=config.seed)
    again = torch.tensor(ready.score([c for p in held.preferences() for c in p.conversations]))
    margin = float((again[::2] - again[1::2]).mean())
    assert margin == pytest.approx(logs[-1].metrics["eval_margin"], abs=2e-3)
    alone = [ready.score([each])[0] for each in asked(ROWS[:2])]
    assert alone == pytest.approx(scores[:4].tolist(), abs=1e-4)


def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path, data):
    base = tiny_checkpoint(tmp_path / "base", layout="chatglm2")
    more = {"save_steps": 2, "centering": 0.1, "head_rate": 5e-3, "val_size": 0.0}
    whole, _ = trained(base, data, tmp_path / "whole", **more)
    running = reward.run(settings(base, data, tmp_path / "parted", **more))
    next(each for each in running if each.note == "saved checkpoint-2")
    running.close()
    parted, _ = trained(base, data, tmp_path / "parted", **more, resume=True)
    for name in ("adapter_model.safetensors", "reward_head.safetensors"):
        one, other = ((tmp_path / each / name).read_bytes() for each in ("whole", "parted"))
        assert one == other


def test_what_a_head_reads_is_kept_for_other_runs(tmp_path, data, monkeypatch):
    base = tiny_checkpoint(tmp_path / "base", layout="chatglm")
    asked_of = []
    pooled = RewardLearner._pooled

    def counted(self, batch):
        asked_of.append(len(batch.lengths) // 2)
        return pooled(self, batch)

    monkeypatch.setattr(RewardLearner, "_pooled", counted)

    def run(name, cache, **more):
        more = {"tuning": "head", "max_steps": 3, "val_size": 0.0, **more}
        config = replace(settings(base, data, tmp_path / name, **more), cache=cache)
        deque(reward.run(config), maxlen=0)
        return (tmp_path / name / "reward_head.safetensors").read_bytes()

    kept = str(tmp_path / "kept")
    first = run("first", kept)
    assert sum(asked_of) == len(ROWS)
    assert run("again", kept) == first
    assert run("slower", kept, learning_rate=1e-3) != first
    assert sum(asked_of) == len(ROWS)  # from disk, whatever the learning rate
    assert run("means", kept, pooling="mean") != first
    assert run("alone", None) == first
    assert sum(asked_of) == 3 * len(ROWS)
    (tmp_path / "kept" / "heads.db").write_bytes(b"no table" * 100)
    with pytest.raises(DataError, match=r"heads.db cannot be used .* delete it"):
        run("damaged", kept)


def test_what_is_kept_of_rounded_files_is_of_these_files(tmp_path, data):
    folder, _ = official(tmp_path, 8)
    local = load_local(tmp_path / "twin", device="cpu", dtype="float32")

    def kept(folder):
        config = replace(settings(folder, data, tmp_path / "run"), tuning="head")
        return RewardTask(config)._kept(local, None)._said_by

    first = kept(folder)
    renamed = shutil.copytree(folder, tmp_path / "copy")
    assert kept(renamed) == first
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    key = next(name for name, each in weights.items() if each.dtype == torch.int8)
    weights[key][-1] = weights[key][-1].flip(-1)
    torch.save(weights, folder / "pytorch_model.bin")
    assert kept(folder) != first  # as norms, scales and first rows are, yet another model
    plain = kept(tmp_path / "twin")
    assert kept(shutil.copytree(tmp_path / "twin", tmp_path / "plain")) == plain


def test_margins_and_centering_change_what_is_learnt(tmp_path, data):
    base = tiny_checkpoint(tmp_path / "base")
    wide = write_pairs(tmp_path, [row | {"margin": 4.0} for row in ROWS])
    _, plain = trained(base, data, tmp_path / "a", tuning="head", max_steps=8)
    _, margins = trained(base, wide, tmp_path / "b", tuning="head", max_steps=8)
    assert margins[-2].metrics["margin"] > plain[-2].metrics["margin"]
    _, centred = trained(base, data, tmp_path / "c", tuning="head", max_steps=8, centering=10.0)
    sums = [
        abs(each[-2].metrics["chosen_reward"] + each[-2].metrics["rejected_reward"])
        for each in (centred, plain)
    ]
    assert sums[0] < sums[1]


def test_pairs_of_a_batch_do_not_see_each_other(tmp_path, data):
    base = tiny_checkpoint(tmp_path / "base", layout="chatglm")
    config, _ = trained(base, data, tmp_path / "run", max_steps=2)
    ready = RewardModel.load(config.output)
    rows = [ready.encoder.encode([each])[0].rows[0] for each in _samples(data)]
    pairs = [Pair(a, b) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    learner = RewardLearner(ready.local.model)
    with torch.no_grad():
        together = learner.rewards(PairBatch.of(pairs[:3]))
        alone = torch.cat([learner.rewards(PairBatch.of([each])) for each in pairs[:3]])
        taken = learner.rewards(PairBatch.of(pairs[:3]).alone(1))
    assert together.abs().max() > 0.01 and together.std() > 1e-3  # all alike would prove nothing
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together[2:4], taken, atol=1e-5, rtol=1e-4)


def _samples(data):
    return list(Sides(open_data([str(data)], kind="preferences")).samples())


def test_heads_that_are_missing_damaged_or_of_another_model(tmp_path, data):
    base = tiny_checkpoint(tmp_path / "base")
    config, _ = trained(base, data, tmp_path / "run", max_steps=1, tuning="head")
    with pytest.raises(CheckpointError, match="holds no reward_head.safetensors: it is no run"):
        RewardModel.load(base)
    with pytest.raises(CheckpointError, match="for a model of hidden size 64, and this one has 32"):
        load_head(tmp_path / "run", 32)
    lost = shutil.copytree(config.output, tmp_path / "lost")
    (lost / "reward_head.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(CheckpointError, match="damaged or not whole"):
        RewardModel.load(lost)
    (lost / "reward_head.safetensors").unlink()
    with pytest.raises(CheckpointError, match="damaged or not whole"):
        RewardModel.load(lost)
    other = tiny_checkpoint(tmp_path / "other", layout="chatglm3", seed=3)
    lora, _ = trained(base, data, tmp_path / "lora", max_steps=1)
    with pytest.raises(CheckpointError):
        RewardModel.load(lora.output, base=str(other))


def test_a_head_is_exact_under_autocast():
    head = ScalarHead(8)
    torch.nn.init.normal_(head.weight)
    hidden = torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(hidden)
    torch.testing.assert_close(found, hidden @ head.weight)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("tuning", "some", "tuning must be one of lora, full, head"),
        ("pooling", "some", "pooling must be one of last, mean"),
        ("ranked", "some", "ranked must be one of all, best"),
        ("packing", True, "the answers of a pass are a row already"),
        ("parallel", "zero3", "each process then has the whole model"),
        ("centering", -1.0, "centering must be 0 or more"),
        ("head_rate", 0.0, "head_rate must be above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, data, name, value, reason):
    with pytest.raises(UsageError, match=reason):
        settings(tmp_path, data, tmp_path / "x", **{name: value})


def test_answers_without_others_to_compare_are_refused(tmp_path, data):
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"prompt": "a", "response": "b"}')
    config = settings(tiny_checkpoint(tmp_path / "base"), plain, tmp_path / "run")
    with pytest.raises(DataError, match="preferences are wanted here"):
        deque(reward.run(config), maxlen=0)


def run(app, *words):
    return CliRunner().invoke(cli, [str(each) for each in words], obj=app)


def test_the_command_scores_pairs_and_answers_and_goes_on(tmp_path, data):
    base = tiny_checkpoint(tmp_path / "base")
    config, _ = trained(base, data, tmp_path / "run", tuning="head")
    out = tmp_path / "out.jsonl"
    card = (tmp_path / "run" / "README.md").read_text()
    assert "glmkit reward score answers.jsonl --reward" in card and "run chat" not in card
    command = ["reward", "score", data, "--reward", config.output]
    app = make_app(tmp_path / "home", rlhf=glmkit_rlhf)
    done = run(app, *command, "-o", out, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["pairs"] == 20 and found["accuracy"]["value"] == 1
    assert found["accuracy"]["low"] == pytest.approx(0.839, abs=1e-3)
    assert found["longer_answer"]["value"] == 1
    lines = out.read_text().splitlines()
    assert [json.loads(each)["rejected_score"] for each in lines] != [0.0] * 20
    assert json.loads(lines[0])["prompt"][-1]["content"] == ROWS[0]["prompt"]
    # Half of it is lost, a line in the middle: only what is missing is scored again.
    out.write_text("\n".join([*lines[:10], lines[10][:20]]))
    again = run(app, *command, "-o", out)
    assert again.exit_code == 0 and "20 pairs: 100.0% (83.9% to 100.0%) told right" in again.output
    assert out.read_text().splitlines() == lines
    other = run(app, *command, "-o", out, "--ranked", "best", "--skip-bad")
    assert other.exit_code == 1 and "is not of a job with this data" in str(other.exception)
    said = tmp_path / "said.jsonl"
    said.write_text('{"prompt": "Is 2 even?", "response": "yes, 2 is"}')
    plain = run(app, "reward", "score", said, "--reward", config.output, "-m", base)
    assert plain.exit_code == 0 and "1 answers: mean score" in plain.output
