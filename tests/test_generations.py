"""Every generation against itself: however its tokens are fed, it says the same."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from glmkit.errors import CheckpointError, UsageError
from glmkit.models.chatglm import ALPHA, ChatGlmConfig, frequencies, rotate, turns_of
from glmkit.models.tiny import IDS, ORIGINAL, TINY_FIRST, tiny_checkpoint
from glmkit.runtime.decode import Row, columns
from glmkit.runtime.loading import load_local

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = [(layout, prefix) for layout in ORIGINAL for prefix in (0, 5)] + [("hub", 0)]
TEXT = st.lists(st.integers(3, 258), min_size=1, max_size=20)


@pytest.fixture(scope="module", params=KINDS, ids=lambda each: f"{each[0]}-{each[1]}")
def model(request, tmp_path_factory):
    layout, prefix = request.param
    folder = tmp_path_factory.mktemp("tiny")
    return load_local(
        tiny_checkpoint(folder, layout=layout, prefix=prefix, projection=layout == "chatglm3"),
        dtype="float32",
    )


def prompt_of(model, text):
    """Return a prompt as the generation expects it."""
    first = isinstance(model.config, ChatGlmConfig)
    return [*text, IDS["[gMASK]"], IDS["<sop>"]] if first else list(text)


def test_cached_decoding_equals_recomputing(model):
    ids = prompt_of(model, [7, 30, 200, 11])
    said = model.generate_ids(ids, 8)
    assert len(set(said)) > 2
    for token in said:
        assert token == int(model.logits(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)


@settings(max_examples=5, deadline=None)
@given(texts=st.lists(TEXT, min_size=2, max_size=5), slots=st.integers(1, 4))
def test_a_row_is_the_same_alone_and_in_any_batch(model, texts, slots):
    prompts = [prompt_of(model, text) for text in texts]
    rows = [Row(prompt, 5) for prompt in prompts]
    for _ in columns(model.model, rows, slots=slots):
        pass
    assert [row.new for row in rows] == [model.generate_ids(prompt, 5) for prompt in prompts]


@settings(max_examples=5, deadline=None)
@given(texts=st.lists(TEXT, min_size=2, max_size=4))
def test_padding_on_the_left_changes_nothing(model, texts):
    prompts = [prompt_of(model, text) for text in texts]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(each)) + each for each in prompts])
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts])
    together = model.logits(ids, mask)
    for row, prompt in enumerate(prompts):
        alone = model.logits(torch.tensor([prompt]))[0]
        assert float((together[row, width - len(prompt) :] - alone).abs().max()) < 1e-3


def test_a_prefix_changes_what_is_said(tmp_path):
    for layout in ORIGINAL:
        ids = [9, 40, 77, IDS["[gMASK]"], IDS["<sop>"]]
        plain = load_local(tiny_checkpoint(tmp_path / layout, layout=layout))
        tuned = load_local(tiny_checkpoint(tmp_path / f"{layout}-p", layout=layout, prefix=4))
        assert plain.generate_ids(ids, 6) != tuned.generate_ids(ids, 6)


def test_both_kinds_of_files_hold_the_same_model(tmp_path):
    for layout in ORIGINAL:
        ids = torch.tensor([[9, 40, IDS["[gMASK]"], IDS["<sop>"]]])
        one = load_local(tiny_checkpoint(tmp_path / layout, layout=layout))
        other = load_local(tiny_checkpoint(tmp_path / f"{layout}-b", layout=layout, files="bin"))
        assert torch.equal(one.logits(ids), other.logits(ids))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return load_local(tiny_checkpoint(tmp_path_factory.mktemp("first"), layout="chatglm"))


def test_the_first_generation_sees_its_context_from_both_sides(first):
    sop = IDS["<sop>"]
    one = first.logits(torch.tensor([[5, 6, 7, IDS["[gMASK]"], sop, 8, 9]]))
    other = first.logits(torch.tensor([[5, 6, 7, IDS["[gMASK]"], sop, 8, 10]]))
    assert torch.equal(one[0, :6], other[0, :6])  # what follows <sop> is not seen before its time
    changed = first.logits(torch.tensor([[5, 6, 90, IDS["[gMASK]"], sop, 8, 9]]))
    assert not torch.allclose(one[0, 0], changed[0, 0])  # the first token sees the third


def test_the_first_generation_counts_along_two_axes(first):
    ids = torch.tensor([[5, 6, IDS["[gMASK]"], IDS["<sop>"], 8, 9]])
    positions = first.model.start(ids).positions
    assert positions.tolist() == [[[0, 1, 2, 2, 2, 2], [0, 0, 0, 1, 2, 3]]]
    place = first.model.placer(ids[0].tolist())
    assert [place(6), place(7)] == [(2, 4), (2, 5)]


@pytest.mark.parametrize("missing", ["<sop>", "[gMASK]"])
def test_a_context_without_its_end_is_refused(first, missing):
    ids = [5, 6, *(IDS[each] for each in ("[gMASK]", "<sop>") if each != missing)]
    with pytest.raises(UsageError, match=rf"no {missing.replace('[', chr(92) + '[')}"):
        first.generate_ids(ids, 3)


def test_frequencies_are_rounded_as_the_model_was_trained():
    exact = 10_000.0 ** (-torch.arange(0, 64, 2).float() / 64)
    rounded = frequencies(64)
    assert torch.equal(rounded, exact.half().float())
    assert float((rounded - exact).abs().max()) > 1e-5


def test_each_axis_turns_its_half_of_a_head():
    heads = torch.randn(1, 1, 4, 16, generator=torch.Generator().manual_seed(0))
    still = rotate(heads, turns_of(TINY_FIRST, torch.tensor([[[0], [0]]]), torch.float32))
    torch.testing.assert_close(still, heads)
    along = rotate(heads, turns_of(TINY_FIRST, torch.tensor([[[9], [0]]]), torch.float32))
    assert not torch.allclose(along[..., :8], heads[..., :8])
    torch.testing.assert_close(along[..., 8:], heads[..., 8:])


def test_the_residual_does_not_depend_on_the_number_of_layers():
    assert pytest.approx(7.4833, abs=1e-4) == ALPHA


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_size": 66},
        {"heads": 5},
        {"layers": 10**9},
        {"bos": 320},
        {"gmask": -1},
        {"mask": "x"},
        {"norm_eps": float("inf")},
    ],
)
def test_absurd_shapes_are_refused(wrong):
    fields = {name: getattr(TINY_FIRST, name) for name in TINY_FIRST.__dataclass_fields__}
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ChatGlmConfig(**{**fields, **wrong})
