"""What is known already is taken over, and nobody can tell from the answers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from glmkit.models.tiny import IDS, tiny_checkpoint
from glmkit.runtime.decode import columns
from glmkit.runtime.entrance import PER_STEP, Plain
from glmkit.runtime.loading import load_local
from glmkit.runtime.reuse import LEAST, Kept, shared
from glmkit.runtime.rows import Row

PLENTY = 1 << 30


@pytest.fixture(scope="module", params=["hub", "chatglm3-prefix"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    if request.param == "hub":
        return load_local(tiny_checkpoint(folder), dtype="float32").model
    return load_local(tiny_checkpoint(folder, layout="chatglm3", prefix=3), dtype="float32").model


@pytest.fixture
def fed(model, monkeypatch):
    """Return the shapes (rows, tokens) that the model is run with."""
    shapes = []
    real = model.hidden

    def hidden(ids, *args, **kwargs):
        shapes.append(tuple(ids.shape))
        return real(ids, *args, **kwargs)

    monkeypatch.setattr(model, "hidden", hidden)
    return shapes


def text(length, seed=0):
    return np.random.default_rng(seed).integers(3, 258, length).tolist()


def said(model, prompts, tokens=4, **how):
    rows = [Row(prompt, tokens) for prompt in prompts]
    for _ in columns(model, rows, **how):
        pass
    return [row.new for row in rows]


def test_the_next_turn_feeds_only_what_is_new(model, fed):
    kept = Kept(PLENTY)
    prompt = text(100)
    answer = said(model, [prompt], 20, kept=kept)[0]
    turn = [*prompt, *answer, *text(10, 1)]
    fed.clear()
    with_kept = said(model, [turn], kept=kept)
    assert fed[0] == (1, 130 - (100 + 19) // LEAST * LEAST)
    assert with_kept == said(model, [turn])


def test_a_question_asked_again_is_hardly_computed(model, fed):
    kept = Kept(PLENTY)
    prompt = text(65)
    first = said(model, [prompt], kept=kept)
    fed.clear()
    assert said(model, [prompt], kept=kept) == first
    assert fed[0] == (1, 1)


def test_rows_of_a_job_share_their_instructions(model, fed):
    template = text(96)
    prompts = [template + text(17 + at % 3, at) for at in range(12)]
    together = said(model, prompts, slots=12)
    first, others = fed[0], fed[1]
    assert first[0] == 1
    assert others == (11, 19)
    assert together == [said(model, [each])[0] for each in prompts]


def test_prompts_of_like_length_run_together(model, fed):
    prompts = [text(length, length) for length in (11, 200, 12, 190, 12)]
    together = said(model, prompts, slots=5)
    assert sorted(fed[:2]) == [(2, 200), (3, 12)]
    assert together == [said(model, [each])[0] for each in prompts]


def test_running_rows_wait_for_a_bounded_prefill(model, fed):
    prompts = [text(400, at) for at in range(12)]
    said(model, prompts, tokens=3, slots=12)
    assert all(rows * tokens <= PER_STEP for rows, tokens in fed)


def test_what_others_wear_is_not_taken_over(model, fed):
    class Own(Plain):
        def begin(self, row):
            return row.adapter

    template = text(64)
    rows = [Row([*template, at], 2, adapter=str(at)) for at in (5, 6)]
    for _ in columns(model, rows, slots=2, dress=Own()):
        pass
    assert fed[0] == (2, 65)


def test_a_cancelled_answer_leaves_what_it_had(model, fed):
    kept = Kept(PLENTY)
    steps = columns(model, [Row(text(40), 50)], kept=kept)
    for _ in range(5):
        next(steps)
    steps.close()
    assert len(kept) == 1
    fed.clear()
    said(model, [text(40)], kept=kept)
    assert fed[0] == (1, 8)


def test_a_context_seen_from_both_sides_is_not_taken_over(tmp_path):
    model = load_local(tiny_checkpoint(tmp_path, layout="chatglm"), dtype="float32").model
    kept = Kept(PLENTY)
    ends = [IDS["[gMASK]"], IDS["<sop>"]]
    prompts = [[*text(64), at, *ends] for at in (5, 6, 7)]
    alone = [said(model, [each], kept=kept)[0] for each in prompts]
    assert len(kept) == 0
    assert said(model, prompts, slots=3) == alone


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(0, 40), st.integers(0, 3)),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 4),
)
def test_answers_do_not_depend_on_what_was_kept(model, asks, slots):
    prompts = [
        (text(60, seed)[:common] + text(own, 100 + tail) or [9]) for seed, common, own, tail in asks
    ]
    kept = Kept(PLENTY)
    for _ in range(2):
        assert said(model, prompts, slots=slots, kept=kept) == [
            said(model, [each])[0] for each in prompts
        ]


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_shared_is_the_common_beginning(one, other):
    length = shared(np.array(one, dtype=np.int64), np.array(other, dtype=np.int64))
    assert one[:length] == other[:length]
    assert length in (len(one), len(other)) or one[length] != other[length]


def entry(tokens):
    return [torch.zeros(2, tokens, 4)]


def test_what_is_kept_stays_within_its_limit():
    kept = Kept(limit=100 * 2 * 4 * 4)
    for seed in range(5):
        kept.add(text(40, seed), None, entry(40))
    assert len(kept) == 2
    assert kept.find(np.array(text(40, 0)), None)[0] < LEAST
    assert kept.find(np.array(text(40, 4)), None)[0] == 40
    kept.add(text(300), None, entry(300))
    assert len(kept) == 2  # too large to keep at all


def test_a_longer_chat_replaces_its_beginning():
    kept = Kept(PLENTY)
    kept.add(text(80)[:40], None, entry(40))
    kept.add(text(80), None, entry(80))
    kept.add(text(80)[:40], "other adapter", entry(40))
    assert len(kept) == 2
