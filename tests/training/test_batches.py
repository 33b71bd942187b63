from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from glmkit.errors import UsageError
from glmkit.training.batches import Batch, Example, Feed, Listed
from glmkit.training.plan import Plan, Shape, balanced, packed

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=200).map(np.array)
SHAPES = st.builds(
    Shape,
    batch_size=st.integers(1, 5),
    accumulation=st.integers(1, 4),
    world=st.integers(1, 4),
    seed=st.integers(0, 9),
    group_by_length=st.booleans(),
    pack_to=st.sampled_from([0, 0, 60, 100]),
)


@given(LENGTHS, SHAPES, st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_epoch_takes_every_example_once(lengths, shape, epoch):
    plan = Plan(lengths, shape)
    steps = [plan.passes(epoch, step) for step in range(plan.steps_per_epoch)]
    taken = np.concatenate([each for passes in steps for each in passes])
    assert sorted(taken) == list(range(len(lengths)))
    ranks = [plan.passes(epoch, 0)[rank :: shape.world] for rank in range(shape.world)]
    assert sum(map(len, ranks)) == len(steps[0])
    for passes in steps:
        assert len(passes) <= shape.passes
        if not shape.pack_to:
            assert max(map(len, passes)) <= shape.batch_size
    assert all(len(passes) == shape.passes for passes in steps[:-1])


@given(LENGTHS, SHAPES)
@settings(max_examples=40, deadline=None)
def test_processes_share_what_one_does(lengths, shape):
    alone = Shape(
        batch_size=shape.batch_size,
        accumulation=shape.passes,
        seed=shape.seed,
        group_by_length=shape.group_by_length,
        pack_to=shape.pack_to,
    )
    ours, theirs = Plan(lengths, shape), Plan(lengths, alone)
    assert ours.steps_per_epoch == theirs.steps_per_epoch
    for step in range(ours.steps_per_epoch):
        together = np.sort(np.concatenate(ours.passes(1, step)))
        assert np.array_equal(together, np.sort(np.concatenate(theirs.passes(1, step))))


@given(LENGTHS, st.integers(60, 120))
@settings(max_examples=60, deadline=None)
def test_packed_rows_hold_whole_examples_and_little_air(lengths, room):
    rows = packed(lengths, room)
    assert sorted(np.concatenate(rows)) == list(range(len(lengths)))
    sums = [int(lengths[each].sum()) for each in rows]
    assert max(sums) <= room
    # No two rows could have been one.
    assert len(sums) < 2 or sum(sorted(sums)[:2]) > room


def test_what_is_longer_than_a_row_has_one_of_its_own():
    rows = packed(np.array([5, 130, 7, 100]), 100)
    assert [1] in [each.tolist() for each in rows]
    assert [3] in [each.tolist() for each in rows]


@given(LENGTHS, st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_parts_are_of_like_length(lengths, parts):
    parts = min(parts, len(lengths))
    found = balanced(lengths, parts)
    assert sorted(np.concatenate(found)) == list(range(len(lengths)))
    assert {len(each) for each in found} <= {len(lengths) // parts, -(-len(lengths) // parts)}
    sums = [lengths[each].sum() for each in found]
    # A part with one row more may be as much heavier; else they differ by less than two rows.
    assert max(sums) - min(sums) <= 2 * lengths.max()


def test_epochs_and_seeds_differ_and_repeat():
    lengths = np.arange(1, 101)
    orders = {
        (seed, epoch): np.concatenate(
            [
                np.concatenate(Plan(lengths, Shape(seed=seed)).passes(epoch, step))
                for step in range(25)
            ]
        ).tobytes()
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4
    again = Plan(lengths, Shape(seed=1))
    again.passes(0, 3)
    assert (
        b"".join(np.concatenate(again.passes(1, step)).tobytes() for step in range(25))
        == orders[1, 1]
    )


def test_the_order_is_the_same_for_ever():
    plan = Plan(np.arange(1, 13), Shape(batch_size=3, accumulation=2, seed=42))
    assert [each.tolist() for each in plan.passes(0, 0)] == [[2, 11, 5], [10, 1, 8]]


def test_like_lengths_stand_together_when_asked():
    lengths = np.random.default_rng(0).integers(1, 500, 400)

    def spread(group: bool) -> float:
        plan = Plan(lengths, Shape(batch_size=8, group_by_length=group))
        return float(np.mean([np.ptp(lengths[plan.passes(0, at)[0]]) for at in range(40)]))

    assert spread(True) < 30 < 300 < spread(False)


def test_full_rows_are_said_to_be_full():
    lengths = np.random.default_rng(0).integers(20, 300, 2000)
    assert 0.98 < Plan(lengths, Shape(pack_to=1024)).fill <= 1
    assert Plan(lengths, Shape()).fill == 1


def _example(size: int, start: int = 0) -> Example:
    ids = np.arange(start, start + size, dtype=np.int32)
    return Example(ids, (np.arange(size) >= size // 2).astype(np.float32))


def test_every_process_has_as_many_passes():
    examples = Listed([_example(each, 100 * each) for each in (3, 5, 8)])
    feed = Feed(examples, Shape(batch_size=1, accumulation=2, world=2), Batch.of)
    assert feed.steps() == 1
    one, other = feed.batches(0, 0, 0), feed.batches(0, 0, 1)
    assert len(one) == len(other) == 2
    assert Counter(each.weight > 0 for each in one + other) == {True: 3, False: 1}
    assert feed.weight(0, 0) == sum(each.weight for each in one + other)
    assert feed.tokens(0, 0) == 16


def test_a_batch_is_its_examples_behind_one_another():
    batch = Batch.of([_example(3), Example(np.array([7], np.int32), np.array([1.0], np.float32))])
    assert batch.ids.tolist() == [0, 1, 2, 7]
    assert batch.weights.tolist() == [0, 1, 1, 0]  # nothing foretells the first
    assert batch.lengths == (3, 1)
    assert batch.weights.dtype == torch.float32


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(UsageError, match="no samples"):
        Plan(np.array([], dtype=np.int64), Shape())
    with pytest.raises(UsageError, match="world must be 1 or more, got 0"):
        Shape(world=0)
