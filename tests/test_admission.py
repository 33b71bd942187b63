"""Rows come in as far as memory and their neighbours allow; nobody can tell from the answers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from glmkit.errors import CheckpointError, GlmkitError, OutOfMemoryError, UsageError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime import waiting
from glmkit.runtime.cache import CacheFullError, KVCache
from glmkit.runtime.decode import columns
from glmkit.runtime.entrance import BESIDE, Plain
from glmkit.runtime.loading import load_local
from glmkit.runtime.memory import ran_out
from glmkit.runtime.reuse import Kept
from glmkit.runtime.rows import Row
from glmkit.types import Ask, GenerationOptions

PIECE = BESIDE["cpu"]


@pytest.fixture(autouse=True)
def _small_margin(monkeypatch):
    monkeypatch.setattr(waiting, "MARGIN", 8)


@pytest.fixture(scope="module", params=["hub", "chatglm3-prefix", "chatglm"])
def local(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    layout, _, prefix = request.param.partition("-")
    checkpoint = tiny_checkpoint(folder, layout=layout, prefix=3 if prefix else 0)
    return load_local(checkpoint, dtype="float32")


@pytest.fixture
def model(local):
    return local.model


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return load_local(tiny_checkpoint(tmp_path_factory.mktemp("hub")), dtype="float32")


def text(model, length, seed=0):
    ids = np.random.default_rng(seed).integers(3, 250, length).tolist()
    return ids if model.REUSABLE else [*ids, model.config.gmask, model.config.bos]


def ran(model, prompts, tokens=6, **how):
    rows = [Row(prompt, tokens) for prompt in prompts]
    widths = [len(column) for column in columns(model, rows, **how)]
    return rows, widths


def alone(model, prompts, tokens=6):
    return [ran(model, [prompt], tokens)[0][0].new for prompt in prompts]


def slot_of(model, tokens):
    ahead = model.prefix() if model.prefix is not None else None
    likes = [model.like] * model.config.layers
    return KVCache(model.config, 1, likes=likes, prefix=ahead).size_of(tokens)


def test_a_small_cache_runs_fewer_rows_at_a_time(model):
    prompts = [text(model, 5 + at, at) for at in range(6)]
    rows, widths = ran(model, prompts, slots=6, limit=2 * slot_of(model, len(prompts[-1]) + 6))
    assert max(widths) == 2
    assert [row.new for row in rows] == alone(model, prompts)


def test_rows_that_outgrow_the_cache_go_back_and_are_answered_all_the_same(model):
    """All come in with little, and each gets longer than what there is room for together."""
    prompts = [text(model, 4 + at, at) for at in range(4)]
    limit = 4 * slot_of(model, 18) + 64
    rows, widths = ran(model, prompts, 40, slots=4, limit=limit)
    assert max(widths) == 4
    assert min(widths[:-1]) < 4
    assert [len(row.new) for row in rows] == [40] * 4
    assert [row.new for row in rows] == alone(model, prompts, 40)


def test_a_row_alone_that_fills_the_cache_is_cut_off(causal, caplog):
    model = causal.model
    rows, _ = ran(model, [text(model, 10)], 300, limit=slot_of(model, 30) + 8)
    assert rows[0].finish == "length"
    assert len(rows[0].new) == 21
    assert rows[0].new == alone(model, [text(model, 10)], 21)[0]
    assert "cut off" in caplog.text


def test_a_prompt_that_never_fits_is_refused_with_the_numbers(model):
    prompts = [text(model, 5), text(model, 60), text(model, 7)]
    rows, _ = ran(model, prompts, slots=3, limit=slot_of(model, 40))
    assert isinstance(rows[1].error, OutOfMemoryError)
    assert f"{len(prompts[1])} tokens" in str(rows[1].error)
    assert [rows[0].new, rows[2].new] == alone(model, [prompts[0], prompts[2]])


class Short:
    """A model whose device has memory for so many tokens at a time."""

    def __init__(self, model, monkeypatch, tokens):
        self.shapes = []
        real = model.hidden

        def hidden(ids, *args, **kwargs):
            self.shapes.append(tuple(ids.shape))
            if ids.numel() > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return real(ids, *args, **kwargs)

        monkeypatch.setattr(model, "hidden", hidden)


@pytest.mark.parametrize("tokens", [3, 24])
def test_memory_that_runs_out_means_fewer_rows(causal, monkeypatch, tokens):
    model = causal.model
    prompts = [text(model, 6 + at % 2, at) for at in range(9)]
    expected = alone(model, prompts)
    short = Short(model, monkeypatch, tokens)
    rows, widths = ran(model, prompts, slots=9)
    assert [row.new for row in rows] == expected
    assert max(widths) <= tokens
    assert max(rows * columns for rows, columns in short.shapes) > tokens


def test_memory_that_runs_out_at_a_long_prompt_means_smaller_pieces(causal, monkeypatch):
    model = causal.model
    prompts = [text(model, 150, 1), text(model, 3, 2)]
    expected = alone(model, prompts)
    Short(model, monkeypatch, 64)
    rows, _ = ran(model, prompts, slots=2)
    assert [row.new for row in rows] == expected


def test_too_little_memory_for_anything_is_the_error_of_each_row(causal, monkeypatch):
    Short(causal.model, monkeypatch, 0)
    rows, _ = ran(causal.model, [text(causal.model, 40), text(causal.model, 3)], slots=2)
    assert all(isinstance(row.error, OutOfMemoryError) for row in rows)


def test_other_errors_are_not_taken_for_memory(causal, monkeypatch):
    def hidden(*args, **kwargs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(causal.model, "hidden", hidden)
    with pytest.raises(RuntimeError, match="shapes"):
        ran(causal.model, [[5, 6]])


def test_running_out_is_told_by_its_class_or_its_words():
    assert ran_out(torch.OutOfMemoryError())
    assert ran_out(CacheFullError("4 rows"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert ran_out(caught.value)
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_long_prompt_comes_in_in_pieces_while_others_run(local, monkeypatch):
    model = local.model
    prompts = [text(model, 5, 1), text(model, 2 * PIECE + 40, 2), text(model, 6, 3)]
    expected = alone(model, prompts, 12)
    rows = [Row(prompt, 12) for prompt in prompts]
    sizes = []
    real = model.hidden

    def hidden(ids, *args, **kwargs):
        sizes.append(ids.numel())
        return real(ids, *args, **kwargs)

    monkeypatch.setattr(model, "hidden", hidden)

    def one_by_one():
        yield rows[0]
        yield None
        yield from rows[1:]

    for _ in columns(model, one_by_one(), slots=3):
        pass
    assert [row.new for row in rows] == expected
    if model.REUSABLE:
        assert max(sizes) == PIECE
    else:  # its prompts are seen from both sides
        assert max(sizes) == len(prompts[1])


def test_a_row_is_cancelled_while_its_prompt_comes_in(causal):
    model = causal.model
    first, long, last = Row([5, 6, 7], 9), Row(text(model, 3 * PIECE), 9), Row([9, 8], 9)

    def rows():
        yield first
        yield None
        yield from (long, last)

    over = []
    for step, column in enumerate(columns(model, rows(), slots=3)):
        if step == 2:
            long.finish = "cancelled"
        over += [row for row in column if row.finish is not None]
    assert long.new == []
    assert {*over} == {first, long, last}
    assert [first.new, last.new] == alone(model, [[5, 6, 7], [9, 8]], 9)


def test_a_row_without_numbers_fails_alone(tmp_path):
    model = load_local(tiny_checkpoint(tmp_path), dtype="float32").model
    model.transformer.embedding.word_embeddings.weight.data[77] = float("nan")
    prompts = [[5, 6], [40, 77, 41], [7, 8, 9], [50, 51, 52]]
    kept = Kept(1 << 30)
    rows, _ = ran(model, prompts, 30, slots=2, kept=kept)
    sound = [rows[0], rows[2], rows[3]]
    assert isinstance(rows[1].error, CheckpointError)
    assert "not numbers" in str(rows[1].error)
    assert [row.new for row in sound] == alone(model, [prompts[0], *prompts[2:]], 30)
    # Its slot is used again, and what it left is not taken over.
    again, _ = ran(model, [[40, 77, 41], [40, 41]], slots=1, kept=kept)
    assert again[0].error is not None
    assert again[1].error is None


def test_none_means_that_there_is_no_row_for_now(model):
    rows = [Row(text(model, 4, at), 3) for at in range(3)]

    def seldom():
        for row in rows:
            yield None
            yield None
            yield row

    widths = [len(column) for column in columns(model, seldom(), slots=2)]
    assert widths[:2] == [0, 0]
    assert all(len(row.new) == 3 for row in rows)


def test_refused_rows_are_reported_as_they_come(causal):
    """However many they are: nothing is gathered until one is answered."""

    drawn = []

    def counted():
        for at in range(500):
            drawn.append(at)
            yield Ask(at, [], GenerationOptions(max_tokens=2))

    answers = causal.answers(counted())
    key, error = next(answers)
    assert key == 0
    assert isinstance(error, UsageError)
    assert len(drawn) <= 2
    assert len(list(answers)) == 499


def test_an_answer_that_fails_is_an_error_of_its_own(tmp_path):
    local = load_local(tiny_checkpoint(tmp_path), dtype="float32")
    bad = local.tokenizer.encode("q")[-1]
    local.model.transformer.embedding.word_embeddings.weight.data[bad] = float("nan")
    options = GenerationOptions(max_tokens=3, temperature=0)
    talks = [[{"role": "user", "content": each}] for each in ("hello", "a q", "x")]
    found = dict(local.answers(Ask(at, talk, options) for at, talk in enumerate(talks)))
    assert isinstance(found[1], CheckpointError)
    assert [found[0].text, found[2].text] == [local.reply(talks[at], options).text for at in (0, 2)]
    with pytest.raises(CheckpointError, match="not numbers"):
        local.reply(talks[1], options)
    with pytest.raises(GlmkitError, match="not numbers"):
        list(local.batch(talks, options))


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_rows_are_the_same_however_little_room_there_is(causal, data):
    model = causal.model
    prompts = data.draw(
        st.lists(st.lists(st.integers(3, 250), min_size=1, max_size=30), min_size=1, max_size=6)
    )
    tokens = data.draw(st.integers(1, 20))
    room = data.draw(st.integers(51, 150))
    slots = data.draw(st.integers(2, 6))
    rows, _ = ran(model, prompts, tokens, slots=slots, limit=slot_of(model, room))
    assert [row.new for row in rows] == alone(model, prompts, tokens)


def test_a_growth_that_fails_half_way_harms_no_row(tmp_path, monkeypatch):
    """Some layers of the cache are larger than the others then."""
    model = load_local(tiny_checkpoint(tmp_path), dtype="float32", quantize="int8").model
    first, second = Row(text(model, 100), 20), Row(text(model, 200, 1), 3)
    expected = alone(model, [first.prompt], 20)
    made = torch.Tensor.new_zeros
    failing = []

    def new_zeros(tensor, shape, *args, **kwargs):
        if failing and len(shape) == 4:
            failing.append(shape)
            if len(failing) == 3:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return made(tensor, shape, *args, **kwargs)

    def rows():
        yield first
        for _ in range(5):
            yield None
        failing.append(None)
        yield second

    monkeypatch.setattr(torch.Tensor, "new_zeros", new_zeros)
    for _ in columns(model, rows(), slots=2):
        pass
    assert len(failing) >= 3
    assert first.new == expected[0]
    assert second.error is None


@pytest.mark.parametrize("delay", [5, 20])
def test_the_cache_grows_while_a_prompt_comes_in(causal, monkeypatch, delay):
    """Its slot counts too."""
    model = causal.model
    monkeypatch.setitem(BESIDE, "cpu", 64)
    rows = [Row(text(model, 200), 100), Row(text(model, 200, 1), 10)]

    def drawn():
        yield rows[0]
        for _ in range(delay):
            yield None
        yield rows[1]

    for _ in columns(model, drawn(), slots=2, limit=slot_of(model, 600)):
        pass
    assert rows[0].new == alone(model, [rows[0].prompt], 100)[0]
    assert rows[1].new == alone(model, [rows[1].prompt], 10)[0]


def test_no_memory_for_another_slot_does_not_slow_prompts_down(causal, monkeypatch):
    model = causal.model
    prompts = [text(model, 60, at) for at in range(6)]
    expected = alone(model, prompts)
    real = KVCache.reserve

    def reserve(cache, rows, tokens):
        if rows > 2:
            raise torch.OutOfMemoryError
        real(cache, rows, tokens)

    monkeypatch.setattr(KVCache, "reserve", reserve)
    rows, widths = ran(model, prompts, slots=6)
    assert [row.new for row in rows] == expected
    assert max(widths) == 2
    assert len(widths) <= 3 * 6 + 5


def test_what_cannot_be_kept_for_lack_of_memory_is_not_kept(causal, monkeypatch):
    def copied(*args):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("glmkit.runtime.entrance.copied", copied)
    kept = Kept(1 << 30)
    rows, _ = ran(causal.model, [text(causal.model, 30, at) for at in range(3)], kept=kept)
    assert all(len(row.new) == 6 for row in rows)
    assert len(kept) == 0


def test_a_row_that_cannot_be_dressed_fails_alone(causal):
    class Picky(Plain):
        def begin(self, row):
            if row.adapter == "gone":
                raise UsageError("unknown adapter 'gone'")

    rows = [Row([5, 6], 3), Row([7, 8], 3, adapter="gone"), Row([9], 3)]
    over = [row for column in columns(causal.model, rows, slots=3, dress=Picky()) for row in column]
    assert isinstance(rows[1].error, UsageError)
    assert rows[1] in over
    assert [len(row.new) for row in rows] == [3, 0, 3]


def test_a_bound_holds_for_what_is_kept_too(tmp_path):
    local = load_local(tiny_checkpoint(tmp_path), dtype="float32")
    size = 16 * slot_of(local.model, 30)
    local.bound_cache(size)
    for at in range(12):
        local.generate_ids(text(local.model, 20, at), 3)
    assert 0 < local._kept.bytes <= size // 8


def test_a_job_is_closed_while_a_prompt_comes_in(causal):
    model = causal.model

    short, long = Row([5, 6, 7], 9), Row(text(model, 3 * PIECE), 9)
    steps = columns(model, iter([short, None, long]), slots=3)
    for _ in range(3):
        next(steps)
    steps.close()
    assert len(short.new) == 3
    assert long.new == []
