"""Both answers of a pair behind one prompt, rows that are kept aside, and empty answers."""

import json
import math

import pytest
import torch
from click.testing import CliRunner
from pair_rows import write_pairs

import glmkit_rlhf
from glmkit.cli import cli
from glmkit.dataset import Sample, open_data
from glmkit.errors import DataError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.loading import load_local
from glmkit.testing import make_app
from glmkit.training.encoding import SampleEncoder
from glmkit.types import Message
from glmkit_rlhf.heads import put_head, save_head
from glmkit_rlhf.pairs import Sides
from glmkit_rlhf.scored import score_rows
from glmkit_rlhf.scoring import RewardModel

TALK = [
    {"role": "user", "content": "first " * 3},
    {"role": "assistant", "content": "well " * 3},
    {"role": "user", "content": "then?"},
]
LAYOUTS = ("hub", "chatglm", "chatglm3")


@pytest.fixture(scope="module", params=LAYOUTS)
def base(request, tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("base") / request.param, layout=request.param)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("base") / "hub")


def prompts(encoder, rows):
    found = encoder.encode(rows)
    return [each.rows[0].ids[: int((each.rows[0].weights > 0).argmax())].tolist() for each in found]


def test_both_answers_of_a_pair_follow_one_prompt(base, tmp_path):
    whole, plain = SampleEncoder.open(base), Message("assistant", "a")
    (most,) = prompts(whole, [Sample((*map(Message.of, TALK), plain), (0, 0, 0, 1))])
    rows = [
        {"prompt": TALK, "chosen": chosen, "rejected": rejected}
        for chosen, rejected in (("a", "b" * 40), ("b" * 40, "a"), ("a", "b" * 200), ("a", "b"))
    ]
    sides = Sides(open_data([str(write_pairs(tmp_path, rows))], kind="preferences"))
    encoder = SampleEncoder.open(base, max_length=len(most) + 14)
    found = prompts(encoder, list(sides.samples()))
    assert found[::2] == found[1::2]
    assert found[6] == most and all(len(each) < len(most) for each in found[:6])
    skipping = SampleEncoder.open(base, max_length=len(most) + 14, overlong="skip")
    left = [bool(each.rows) for each in skipping.encode(list(sides.samples()))]
    assert left == [False] * 6 + [True] * 2


def test_the_end_of_an_empty_answer_counts(base):
    said = (Message("user", "hello"), Message("assistant", ""))
    (found,) = SampleEncoder.open(base).encode([Sample(said, (0.0, 0.5))])
    weights = found.rows[0].weights
    assert weights[-1] == 0.5 and not weights[:-2].any()  # ChatGLM3 begins each answer with a space


def ranked(tmp_path, rows=10):
    told = ({"instruction": f"say {at}", "output": ["a", "b", "c"]} for at in range(rows))
    return write_pairs(tmp_path, list(told))


@pytest.mark.parametrize("spec", ["{}", "{}#15"])
def test_all_pairs_of_a_ranked_row_are_kept_aside_or_none(tmp_path, spec):
    data = open_data([spec.format(ranked(tmp_path))], kind="preferences")
    learnt, held = data.split(0.2)
    rows = [{each.place.line for each in some.preferences()} for some in (learnt, held)]
    assert not rows[0] & rows[1]
    assert len(learnt) + len(held) == len(data) and 0 < len(held) <= 0.4 * len(data)


def reward_run(base, folder, *, max_length=64, pooling="mean"):
    """Write the result of a run without running it: a head of any weights, on an unchanged base."""
    folder.mkdir()
    local = load_local(base, dtype="float32")
    head = put_head(local.model)
    torch.nn.init.normal_(head.weight)
    save_head(head.state_dict(), folder, pooling=pooling)
    told = {"model": str(base), "max_length": max_length, "tuning": "head"}
    (folder / "run.json").write_text(json.dumps({"config": told}))
    return folder


def test_a_mean_over_an_empty_answer_is_a_number(hub, tmp_path):
    ready = RewardModel.load(reward_run(hub, tmp_path / "run"))
    said = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": ""}]]
    assert all(map(math.isfinite, ready.score(said)))


LONG = {"prompt": "why " * 40, "chosen": "a", "rejected": "b"}
SHORT = {"prompt": "why", "chosen": "a", "rejected": "b"}


def test_rows_that_cannot_be_scored_are_named_or_skipped(hub, tmp_path):
    run = reward_run(hub, tmp_path / "run", max_length=40)
    data = write_pairs(tmp_path, [SHORT, LONG, SHORT, LONG, SHORT])
    out = tmp_path / "out.jsonl"
    command = ["reward", "score", str(data), "--reward", str(run), "-o", str(out)]
    app = make_app(tmp_path / "home", rlhf=glmkit_rlhf)

    def done(*more):
        return CliRunner().invoke(cli, [*command, *more], obj=app)

    failed = done()
    assert isinstance(failed.exception, DataError) or failed.exit_code == 1
    said = str(failed.exception)
    assert "pairs.jsonl, line 2: " in said and "--skip-bad" in said
    passed = done("--skip-bad")
    assert passed.exit_code == 0, passed.output
    assert "2 rows were skipped" in passed.output
    lines = out.read_text().splitlines()
    assert len(lines) == 3
    # A job that goes on knows which rows its file lacks.
    out.write_text("\n".join([*lines[:2], lines[2][:10]]))
    again = done("--skip-bad")
    assert again.exit_code == 0 and out.read_text().splitlines() == lines


def test_the_pairs_of_a_job_are_scored_as_they_were_learnt(hub, tmp_path):
    rows = [{"prompt": TALK, "chosen": "a", "rejected": "b" * 30}]
    data = open_data([str(write_pairs(tmp_path, rows))], kind="preferences")
    run = reward_run(hub, tmp_path / "run", max_length=80, pooling="last")
    ready = RewardModel.load(run)
    out = tmp_path / "out.jsonl"
    list(score_rows(ready, data, out, run=run))
    found = json.loads(out.read_text())
    short = [*TALK[2:], {"role": "assistant", "content": "a"}]
    assert found["chosen_score"] == pytest.approx(ready.score([short])[0], abs=1e-5)
