"""Measuring a model in the middle of its training, without disturbing it."""

import numpy as np
import pytest
import torch

from glmkit.dataset import Sample
from glmkit.evaluation.comparing import perplexity
from glmkit.evaluation.scores import Scorer
from glmkit.models.tiny import IDS, tiny_checkpoint
from glmkit.runtime.loading import load_local
from glmkit.training.batches import Batch, Example, Feed, Listed
from glmkit.training.crew import Alone
from glmkit.training.evaluating import Evaluation, Generating, judged, losses
from glmkit.training.learner import Learner
from glmkit.training.plan import Shape
from glmkit.types import Message

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.fixture
def local(tmp_path):
    return load_local(tiny_checkpoint(tmp_path / "tiny", layout="chatglm3"))


def examples(count=7, seed=0):
    draws = np.random.default_rng(seed)
    found = []
    for length in draws.integers(6, 20, count):
        ids = draws.integers(3, 250, length).astype(np.int32)
        ids[:2] = IDS["[gMASK]"], IDS["sop"]
        weights = (np.arange(length) > 3) * draws.choice([0.5, 1.0], length)
        found.append(Example(ids, weights.astype(np.float32)))
    return Listed(found)


def feed(world=1, **shape):
    return Feed(examples(), Shape(batch_size=2, world=world, **shape), Batch.of)


def sample(question, answer):
    return Sample((Message("user", question), Message("assistant", answer)), (0.0, 1.0))


def test_the_loss_of_all_batches_is_the_weighed_mean(local):
    learner = Learner(local.model)
    found = Evaluation(learner, feed(), Alone(CPU))()
    total = weight = 0.0
    for each in examples():
        own = learner(Batch.of([each]))
        total, weight = total + float(own.total.detach()), weight + float(own.weight)
    assert found["eval_loss"] == pytest.approx(total / weight, rel=1e-5)
    assert found["eval_perplexity"] == pytest.approx(np.exp(total / weight), rel=1e-4)


class Two:
    """One of two processes, whose sums are added up by the test."""

    world, device = 2, CPU

    def __init__(self, rank):
        self.rank, self.own = rank, []

    def summed(self, *values):
        self.own.append(values)
        return list(values)


def test_two_processes_measure_what_one_does(local):
    learner = Learner(local.model)
    crews = Two(0), Two(1)
    for crew in crews:
        Evaluation(learner, feed(world=2), crew)()
    (one,), (two,) = (crew.own for crew in crews)
    alone = Evaluation(learner, feed(), Alone(CPU))()
    assert (one[0] + two[0]) / (one[1] + two[1]) == pytest.approx(alone["eval_loss"], rel=1e-5)
    shares = [len(feed(world=2).batches(0, 0, rank)) for rank in (0, 1)]
    assert shares[0] == shares[1]


def test_nobody_notices_an_evaluation(local):
    """Dropout, random numbers, gradients and the mode are as if nobody had asked."""
    learner = Learner(local.model)
    learner.add_module("noise", torch.nn.Dropout(0.5))
    learner.train()
    local.model.requires_grad_(True)
    more = Generating(local, [sample("hi", "there")], Scorer(["exact"]), max_new_tokens=3)
    before = torch.get_rng_state()
    found = Evaluation(learner, feed(), Alone(CPU), more=more)()
    assert set(found) == {"eval_loss", "eval_perplexity", "eval_exact"}
    assert torch.equal(torch.get_rng_state(), before)
    assert learner.training and learner.noise.training
    assert all(each.grad is None for each in learner.parameters())
    learner(Batch.of([examples()[0]])).total.backward()
    assert any(each.grad is not None for each in learner.parameters())


def test_the_mode_comes_back_after_an_error():
    learner = torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError), judged(learner):
        assert not learner.training and not torch.is_grad_enabled()
        raise RuntimeError("torn")
    assert learner.training and torch.is_grad_enabled()


def test_answers_are_those_of_the_weights_of_now(local):
    """What is remembered of prompts is of older weights, and must not be used."""
    samples = [sample("hello " * 9, "x"), sample("hello " * 9 + "you", "x")]
    said = []

    class Heard:
        scores = ("exact",)

        def score(self, predict, label):
            said.append(predict)
            return {"exact": 0.0}

    more = Generating(local, samples, Heard(), max_new_tokens=8)
    more(0, 1)
    with torch.no_grad():
        for each in local.model.parameters():
            each.add_(0.05 * torch.ones_like(each))
    more(0, 1)
    first, now = said[:2], said[2:]
    more(0, 1)
    assert said[4:] == now and now != first
    fresh = local.anew().reply(samples[0].messages[:-1], more._options).text
    assert fresh in now


def test_each_process_answers_its_share(local):
    samples = [sample(f"question {at}", "a") for at in range(5)]
    more = Generating(local, samples, Scorer(["exact"]), max_new_tokens=2)
    assert [more(rank, 2)["rows"] for rank in (0, 1)] == [3, 2]


def test_measures_come_batch_by_batch(local):
    work = losses(Learner(local.model), feed(), device=CPU)
    steps = [next(work) for _ in range(2)]
    assert [each.done for each in steps] == [0, 1] and steps[0].total == 4


def test_an_infinite_perplexity():
    assert perplexity(0.0) == 1.0 and perplexity(1e9) == float("inf")
