"""Rounds of answers: who answers what, what is written, and the loss of it on a real model."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from glmkit.errors import UsageError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.loading import load_local
from glmkit.training.written import Asked, prompts_of, seed_of, write_answers
from glmkit.types import Message
from glmkit_rlhf.experience import AnswerBatch, Experience
from glmkit_rlhf.grpo import GrpoConfig
from glmkit_rlhf.grpo_task import GrpoLearner
from glmkit_rlhf.rounds import RolloutFeed, Rounds


def rounds(**given):
    return Rounds(**{"prompts": 10, "generations": 2, "batch_size": 4, "accumulation": 1} | given)


@settings(deadline=None, max_examples=50)
@given(
    prompts=st.integers(1, 40),
    generations=st.integers(1, 4),
    groups=st.integers(1, 3),
    world=st.integers(1, 3),
    epoch=st.integers(0, 2),
)
def test_every_prompt_is_answered_in_every_epoch(prompts, generations, groups, world, epoch):
    shape = rounds(
        prompts=prompts, generations=generations, batch_size=generations * groups, world=world
    )
    seen = []
    for number in range(shape.per_epoch):
        shares = [shape.chosen(epoch, number, rank) for rank in range(world)]
        assert {len(each) for each in shares} == {groups}
        seen += [at for each in shares for at in each]
    assert set(seen) == set(range(prompts))
    assert len(seen) - prompts < shape.asked


def test_each_iteration_goes_over_all_answers_once():
    shape = rounds(minibatches=3, iterations=2)
    assert (shape.own, shape.steps) == (12, 6)
    for iteration in range(2):
        steps = range(3 * iteration, 3 * iteration + 3)
        taken = [at for step in steps for at in shape.parts(0, step, 0)]
        assert sorted(taken) == list(range(12))
    assert shape.parts(0, 0, 0) != shape.parts(0, 3, 0)
    with pytest.raises(UsageError, match=r"= 4 answers, which must be a multiple of generations 3"):
        rounds(generations=3)


def test_answers_are_written_once_for_all_steps_of_a_round():
    written = []

    def write(epoch, number, rank):
        written.append((epoch, number, rank))
        return [
            Experience(torch.arange(3 + at), 2, torch.ones(2), figures={"reward": float(at)})
            for at in range(8)
        ]

    feed = RolloutFeed(rounds(accumulation=1, minibatches=2), lambda sizes: torch.ones(sum(sizes)))
    feed.write = write
    assert feed.steps() == 6 and feed.weight(0, 0) == 4.0
    both = [feed.batches(0, step)[0] for step in (0, 1)]
    assert sum(each.figures["reward"] for each in both) == sum(range(8))
    assert feed.tokens(0, 1) == both[1].tokens
    feed.batches(0, 2)
    feed.batches(1, 0)
    assert written == [(0, 0, 0), (0, 1, 0), (1, 0, 0)]


@pytest.fixture(scope="module", params=["chatglm", "chatglm3"])
def local(request, tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("base") / request.param
    return load_local(tiny_checkpoint(folder, layout=request.param), dtype="float32")


def asked(local, count, *, seed=0):
    talks = [[Message("user", f"say {at}")] for at in range(count)]
    ids = list(prompts_of(local.renderer, talks, room=60))
    return [
        Asked(own, talk, seed_of(seed, at))
        for at, (own, talk) in enumerate(zip(ids, talks, strict=True))
    ]


def test_answers_depend_on_their_seeds_alone(local):
    questions = asked(local, 5)
    found = write_answers(local, questions, max_tokens=6)
    assert [each.ids for each in found] == [
        write_answers(local, [each], max_tokens=6)[0].ids for each in questions
    ]
    others = write_answers(local, asked(local, 5, seed=1), max_tokens=6)
    assert [each.ids for each in found] != [each.ids for each in others]
    for each in found:
        assert each.ended == (each.ids[-1] in local.settings.stop_ids)
        assert each.ended or len(each.ids) == 6


def test_an_answer_has_the_token_that_ends_it(local):
    questions = asked(local, 150)
    found = write_answers(local, questions, max_tokens=8, temperature=20.0)
    ended = [each for each in found if each.ended]
    assert ended and all(each.ids[-1] in local.settings.stop_ids for each in ended)
    stop = local.tokenizer.decode([ended[0].ids[-1]], skip_special=False)
    assert stop not in ended[0].text


def test_prompts_that_do_not_fit_are_told(local):
    (said,) = prompts_of(local.renderer, [[Message("user", "x" * 99)]], room=50)
    assert "the model has room for 50" in said


def test_the_loss_of_a_row_of_answers_is_that_of_each_alone(local):
    """The learner's one row without pads, against whole tables of scores, one answer at a time."""
    config = GrpoConfig(reward=("gsm8k",), beta=0.3, temperature=0.7, loss="grpo")
    questions = asked(local, 3)
    written = write_answers(local, questions, max_tokens=5)
    generator = torch.Generator().manual_seed(0)
    answers = []
    for question, each, advantage in zip(questions, written, (1.0, -0.5, 2.0), strict=True):
        size = len(each.ids)
        answers.append(
            Experience(
                torch.tensor([*question.ids, *each.ids]),
                size,
                torch.full((size,), advantage),
                -5 * torch.rand(size, generator=generator),
                -5 * torch.rand(size, generator=generator),
                figures={"reward": advantage},
            )
        )
    weights = [torch.full((each.size,), 1 / each.size) for each in answers]
    learner = GrpoLearner(local.model, config)
    found = learner(AnswerBatch.of(answers, weights))
    expected = 0.0
    for each in answers:
        with torch.no_grad():
            scores = local.model(each.ids[None])[0] / config.temperature
        logs = scores.log_softmax(-1)[:-1].gather(-1, each.ids[1:, None])[-each.size :, 0]
        ratio = (logs - each.old).exp()
        held = ratio.clamp(0.8, 1.2)
        reference = (each.reference - logs).exp() - (each.reference - logs) - 1
        lost = -torch.minimum(ratio * each.advantages, held * each.advantages) + 0.3 * reference
        expected += float(lost.mean())
    assert float(found.total) == pytest.approx(expected, rel=1e-4)
    assert float(found.weight) == 3 and float(found.figures["reward"]) == 2.5
