"""The loop: what a step is, going on from a checkpoint, evaluations in between, nonsense."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from glmkit.errors import BadStepError, CheckpointError, GlmkitError
from glmkit.training.loop import learn, restore, save

from .toy import Bigram, Plain, examples, losses, work

pytestmark = pytest.mark.usefixtures("one_thread")


def test_loss_falls_and_lines_count(tmp_path):
    lines = list(learn(work(tmp_path, epochs=30.0, save_total_limit=1)))
    found = losses(lines)
    assert np.mean(found[-5:]) < 0.7 * np.mean(found[:5])
    steps = [each for each in lines if each.loss is not None]
    assert [each.step for each in steps] == list(range(1, steps[-1].total + 1))
    assert steps[-1].epoch == pytest.approx(30)
    assert steps[-1].seconds_left == 0
    assert steps[-1].tokens == 30 * sum(map(len, examples()))


@settings(max_examples=15, deadline=None)
@given(stop=st.integers(1, 13), accumulation=st.sampled_from((1, 3)))
def test_going_on_repeats_an_uninterrupted_run(tmp_path_factory, stop, accumulation):
    given = {"save_steps": 1, "save_total_limit": 0, "gradient_accumulation": accumulation}
    whole = work(tmp_path_factory.mktemp("whole"), **given)
    expected = losses(learn(whole))
    stop = min(stop, len(expected) - 1)
    folder = tmp_path_factory.mktemp("cut")
    cut = work(folder, **given)
    lines = learn(cut)
    first = losses(itertools.takewhile(lambda each: each.note != f"saved checkpoint-{stop}", lines))
    lines.close()
    second = work(folder, **given)
    restore(second, second.checkpoints.at(stop))
    assert first + losses(learn(second)) == expected
    assert torch.equal(second.learner.model.table, whole.learner.model.table)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from glmkit.training.loop import learn
from toy import work

for line in learn(work(Path(sys.argv[2]), save_steps=2)):
    if line.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_in_the_middle_goes_on(tmp_path, forks):
    expected = losses(learn(work(tmp_path / "whole")))
    (tmp_path / "cut").mkdir()
    forks.start(KILLED, str(Path(__file__).parent), str(tmp_path / "cut")).wait()
    second = work(tmp_path / "cut", save_steps=2)
    last = second.checkpoints.last()
    assert last is not None and last.name == "checkpoint-4"
    restore(second, last)
    assert losses(learn(second)) == expected[4:]


def test_evaluation_between_steps_changes_nothing(tmp_path):
    def evaluate():
        torch.rand(7)
        return {"eval_loss": 1.0}

    without = losses(learn(work(tmp_path)))
    lines = list(learn(work(tmp_path, evaluate=evaluate, eval_steps=3, val_size=2)))
    assert losses(lines) == without
    assert [each.step for each in lines if each.metrics] == [3, 6, 9, 12, 14]


def test_accumulated_passes_are_one_step(tmp_path):
    whole = work(tmp_path, batch_size=6, max_grad_norm=0.0)
    parts = work(tmp_path, batch_size=2, gradient_accumulation=3, max_grad_norm=0.0)
    for each in (whole, parts):
        each.learner.eval()
        each.learner.train = lambda mode=True: None  # without dropout, whose draws would differ
    assert losses(learn(parts)) == pytest.approx(losses(learn(whole)), rel=1e-5)


def test_stops_early_and_keeps_the_best(tmp_path):
    found = iter([3.0, 2.0, 2.5, 2.6, 2.7, 2.8])
    given = {
        "eval_steps": 1,
        "val_size": 2,
        "early_stopping": 2,
        "save_steps": 100,
        "save_total_limit": 1,
    }
    run = work(tmp_path, evaluate=lambda: {"eval_loss": next(found)}, **given)
    lines = list(learn(run))
    assert lines[-1].note.startswith("stopped early") and lines[-1].step == 4
    assert run.state.best_step == 2
    assert run.checkpoints.at(2).is_dir()
    assert [each.note for each in learn(run)] == [lines[-1].note]  # gone on with, it has enough


def test_old_checkpoints_go(tmp_path):
    list(learn(work(tmp_path, save_steps=2, save_total_limit=2)))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["checkpoint-12", "checkpoint-14"]


def test_full_disk_keeps_what_was_saved(tmp_path):
    tuning = Plain()
    run = work(tmp_path, tuning)
    lines = learn(run)
    next(lines)
    save(run)
    tuning.full = True
    with pytest.raises(GlmkitError, match="the disk is full"):
        save(run)
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint-1"]
    assert run.checkpoints.trained(run.checkpoints.at(1))


def test_lines_of_several_steps_go_on_too(tmp_path):
    given = {"logging_steps": 4, "save_steps": 2, "save_total_limit": 0}
    expected = losses(learn(work(tmp_path / "whole", **given)))
    cut = work(tmp_path / "cut", **given)
    for line in learn(cut):
        if line.note == "saved checkpoint-6":
            break
    second = work(tmp_path / "cut", **given)
    restore(second, second.checkpoints.at(6))
    assert losses(learn(second)) == expected[1:]


@pytest.mark.parametrize("name", ["optimizer.pt", "trainer_state.json"])
def test_damaged_checkpoint_is_named(tmp_path, name):
    run = work(tmp_path, max_steps=1)
    list(learn(run))
    file = run.checkpoints.at(1) / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=name):
        restore(run, run.checkpoints.at(1))


def test_another_training_is_refused(tmp_path):
    run = work(tmp_path, max_steps=1)
    list(learn(run))
    run.learner.model.more = nn.Parameter(torch.ones(2))
    with pytest.raises(CheckpointError, match="another training"):
        restore(run, run.checkpoints.at(1))


def test_nonsense_stops_the_run(tmp_path):
    run = work(tmp_path, save_steps=1)
    lines = learn(run)
    next(lines), next(lines)
    with torch.no_grad():
        run.learner.model.table[0, 0] = float("nan")
    with pytest.raises(GlmkitError, match="step 2.*--learning-rate"):
        list(lines)
    assert run.checkpoints.at(1).is_dir()


class Counting(Bigram):
    """Tells how many tokens a batch has for each unit of weight, and refuses one step."""

    refused: int | None = None

    def forward(self, batch):
        found = super().forward(batch)
        if self.refused == 0:
            raise BadStepError("the reward of row 3 is nan")
        self.refused = None if self.refused is None else self.refused - 1
        return found._replace(figures={"tokens": torch.tensor(float(len(batch.ids)))})


def test_figures_are_means_over_the_steps_of_a_line(tmp_path):
    run = work(tmp_path, logging_steps=3, gradient_accumulation=2)
    run.learner.__class__ = Counting
    lines = [each for each in learn(run) if each.loss is not None]
    assert len(lines) > 1
    weights = [run.feed.weight(*divmod(step, run.feed.steps())) for step in range(run.total)]
    tokens = [run.feed.tokens(*divmod(step, run.feed.steps())) for step in range(run.total)]
    expected = [
        sum(tokens[each.step - 3 : each.step]) / sum(weights[each.step - 3 : each.step])
        for each in lines[:-1]
    ]
    assert [each.metrics["tokens"] for each in lines[:-1]] == pytest.approx(expected)


class Parting(Bigram):
    """Tells a figure of the batches with an even number of tokens only."""

    def forward(self, batch):
        weight = torch.tensor(float(len(batch.ids) % 2 == 0))
        return (
            super()
            .forward(batch)
            ._replace(figures={"even": weight * len(batch.ids)}, parts={"even": weight})
        )


def test_a_figure_may_be_of_a_part_and_is_left_out_where_that_is_nothing(tmp_path):
    run = work(tmp_path, logging_steps=1, batch_size=1, gradient_accumulation=1, save_steps=2)
    run.learner.__class__ = Parting
    for line in learn(run):
        if line.loss is not None:
            tokens = run.feed.tokens(*divmod(line.step - 1, run.feed.steps()))
            assert line.metrics == ({} if tokens % 2 else {"even": tokens})
    whole = work(
        tmp_path / "whole", logging_steps=4, batch_size=1, save_steps=2, save_total_limit=0
    )
    whole.learner.__class__ = Parting
    expected = [each.metrics for each in learn(whole) if each.loss is not None]
    again = work(
        tmp_path / "whole", logging_steps=4, batch_size=1, save_steps=2, save_total_limit=0
    )
    again.learner.__class__ = Parting
    restore(again, again.checkpoints.at(6))  # in the middle of a line
    assert [each.metrics for each in learn(again) if each.loss is not None] == expected[1:]


def test_a_refused_step_leaves_a_checkpoint_to_go_on_from(tmp_path):
    expected = losses(learn(work(tmp_path / "whole")))
    (tmp_path / "run").mkdir()
    run = work(tmp_path / "run")
    run.learner.__class__ = Counting
    run.learner.refused = 3
    before = []
    with pytest.raises(BadStepError, match="row 3 is nan; checkpoint-3 holds"):
        before += learn(run)
    again = work(tmp_path / "run")
    restore(again, tmp_path / "run" / "checkpoint-3")
    assert losses(learn(again)) == expected[3:]
