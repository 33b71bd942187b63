import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from glmkit.errors import CheckpointError, UsageError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.decode import Row, columns
from glmkit.runtime.loading import load_local
from glmkit.types import GenerationOptions, InspectableModel, Message

GREEDY = GenerationOptions(max_tokens=12, temperature=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_local(tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


def ask(text):
    return [{"role": "user", "content": text}]


def decoded(model, prompts, *, slots):
    rows = [Row(prompt, 4 + sum(prompt) % 9) for prompt in prompts]
    for _ in columns(model.model, rows, slots=slots):
        pass
    return [row.new for row in rows]


def recomputed(model, prompt, tokens):
    """Greedy decoding the slow way: the whole row again for every token."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(model.logits(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_local_model_meets_the_protocol(model):
    assert isinstance(model, InspectableModel)


def test_cached_decoding_equals_recomputing(model):
    prompt = [5, 80, 200, 33, 7]
    assert decoded(model, [prompt], slots=1) == [recomputed(model, prompt, 4 + 325 % 9)]


prompts = st.lists(st.lists(st.integers(3, 319), min_size=1, max_size=40), min_size=1, max_size=7)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(prompts=prompts, slots=st.integers(2, 5))
def test_a_row_is_the_same_alone_and_in_any_batch(model, prompts, slots):
    alone = [decoded(model, [each], slots=1)[0] for each in prompts]
    assert decoded(model, prompts, slots=slots) == alone


def test_rows_of_different_lengths_leave_and_join(model):
    rows = [Row([9 + at] * (3 + 5 * at), 2 + 3 * (at % 3)) for at in range(7)]
    widths = [len(column) for column in columns(model.model, iter(rows), slots=3)]
    assert [len(row.new) for row in rows] == [2, 5, 8, 2, 5, 8, 2]
    assert max(widths) == 3
    for row in rows:
        assert row.finish == "length"
        assert row.new == recomputed(model, row.prompt, len(row.new))


def test_rows_are_drawn_only_when_a_slot_is_free(model):
    drawn = []

    def rows():
        for at in range(100):
            drawn.append(at)
            yield Row([at + 3], 4)

    steps = columns(model.model, rows(), slots=2)
    next(steps)
    assert drawn == [0, 1]
    steps.close()
    assert drawn == [0, 1]


def test_cancelling_one_row_leaves_its_neighbours_alone(model):
    rows = [Row([40, 41, 42], 8), Row([50, 51], 8), Row([60], 8)]
    for step, _ in enumerate(columns(model.model, rows, slots=3)):
        if step == 2:
            rows[0].finish = "cancelled"
    assert len(rows[0].new) == 3
    for row in rows[1:]:
        assert row.new == recomputed(model, row.prompt, 8)


def test_a_stop_token_ends_a_row_and_is_not_part_of_it(model):
    free = recomputed(model, [11, 12, 13], 10)
    row = Row([11, 12, 13], 10, stop_ids=frozenset({free[4]}))
    for _ in columns(model.model, [row]):
        pass
    assert row.finish == "stop"
    assert row.new == free[: free.index(free[4])]


def test_scores_that_are_not_numbers_are_an_error(tmp_path):
    broken = load_local(tiny_checkpoint(tmp_path))
    broken.model.transformer.encoder.layers[1].mlp.dense_4h_to_h.weight[3, 5] = float("nan")
    with pytest.raises(CheckpointError, match="not numbers"):
        broken.reply(ask("hello"), GREEDY)
    with pytest.raises(CheckpointError, match="not numbers"):
        list(broken.batch([ask("a"), ask("b")], GREEDY))


def test_stream_reply_and_batch_agree(model):
    questions = [ask(each) for each in ("hello", "a much longer question, this one", "x", "你好")]
    replies = [model.reply(each, GREEDY) for each in questions]
    assert list(model.batch(iter(questions), GREEDY)) == replies
    for question, reply in zip(questions, replies, strict=True):
        assert "".join(chunk.text for chunk in model.stream(question, GREEDY)) == reply.text


def test_the_last_chunk_carries_the_counts(model):
    *chunks, last = model.stream(ask("hello"), GREEDY)
    assert all(chunk.finish_reason is None for chunk in chunks)
    assert last.finish_reason == "length"
    assert last.usage.completion_tokens == 12
    assert last.usage.prompt_tokens > len("hello")


def test_batch_is_lazy_and_in_order(model):
    drawn = []

    def conversations():
        for at in range(200):
            drawn.append(at)
            yield ask(f"number {at}")

    replies = model.batch(conversations(), GenerationOptions(max_tokens=3, temperature=0))
    first = next(replies)
    assert len(drawn) < 200
    assert first == model.reply(ask("number 0"), GenerationOptions(max_tokens=3, temperature=0))
    replies.close()


def test_closing_a_stream_ends_it(model):
    chunks = model.stream(ask("hello"), GenerationOptions(max_tokens=400, temperature=0))
    next(chunks)
    chunks.close()
    assert list(chunks) == []


def test_a_stop_string_cuts_the_answer(model):
    whole = model.reply(ask("hi there"), GenerationOptions(max_tokens=40, temperature=0)).text
    stop = whole[5:8]
    cut = model.reply(
        ask("hi there"), GenerationOptions(max_tokens=40, temperature=0, stop=(stop,))
    )
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.usage.completion_tokens < 40


def test_seeds_repeat_and_differ(model):
    def drawn(seed):
        return model.reply(ask("go"), GenerationOptions(max_tokens=20, temperature=1, seed=seed))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    options = GenerationOptions(max_tokens=20, temperature=1, seed=1)
    assert list(model.batch([ask("other"), ask("go")], options))[1] == drawn(1)


def test_generate_ids_gives_new_tokens_only(model):
    assert model.generate_ids([5, 6, 7], 6) == recomputed(model, [5, 6, 7], 6)
    drawn = model.generate_ids([5, 6, 7], 6, temperature=1.0)
    assert len(drawn) <= 6 and all(0 <= each < 320 for each in drawn)


def test_bad_ids_are_refused(model):
    with pytest.raises(UsageError, match="0 to 319"):
        model.generate_ids([5, 4000], 3)
    with pytest.raises(UsageError, match="rows, tokens"):
        model.generate_ids([], 3)
    with pytest.raises(UsageError, match="context of 512"):
        model.generate_ids([5] * 512, 3)
    with pytest.raises(UsageError, match="attention_mask"):
        model.logits(torch.tensor([[5, 6]]), torch.tensor([[1]]))


def test_padding_changes_nothing_on_real_tokens(model):
    row = torch.tensor([[30, 40, 50]])
    padded = torch.tensor([[0, 0, 30, 40, 50], [9, 8, 7, 6, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    scores = model.logits(padded, mask)
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(scores[:1, 2:], model.logits(row), atol=2e-5, rtol=0)
    right = model.logits(torch.tensor([[30, 40, 50, 0]]), torch.tensor([[1, 1, 1, 0]]))
    torch.testing.assert_close(right[:, :3], model.logits(row), atol=2e-5, rtol=0)


def test_an_answer_ends_where_the_context_does(model):
    answer = model.generate_ids([5] * 506, 100)
    assert len(answer) == 6


def test_a_long_history_is_shortened(model):
    history = [
        Message(role, f"turn {at} " + "x" * 60)
        for at in range(10)
        for role in ("user", "assistant")
    ]
    reply = model.reply([*history, Message("user", "and now?")], GREEDY)
    assert reply.usage.prompt_tokens <= 512 - 12
