import collections
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from glmkit.runtime.sampling import StopText, best, greedy, make_sampler

SCORES = torch.tensor([0.0, 3.0, 1.0, 2.0, -1.0])


def share(sampler, draws=2000):
    counts = collections.Counter(sampler(SCORES) for _ in range(draws))
    return {token: count / draws for token, count in counts.items()}


def test_temperature_zero_is_greedy():
    assert make_sampler(temperature=0) is greedy
    assert greedy(SCORES) == 1


def test_the_coldest_temperatures_are_greedy_too():
    large = SCORES * 1e4
    for temperature in (1e-2, 1e-4, 1e-6, 1e-300):
        assert make_sampler(temperature=temperature, seed=1)(large) == 1


def test_draws_follow_the_softmax():
    expected = SCORES.softmax(-1)
    got = share(make_sampler(temperature=1, seed=3))
    for token, chance in enumerate(expected.tolist()):
        assert abs(got.get(token, 0) - chance) < 0.04


def test_high_temperature_flattens():
    got = share(make_sampler(temperature=100, seed=3))
    assert all(abs(got[token] - 0.2) < 0.04 for token in range(5))


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [({"top_k": 2}, {1, 3}), ({"top_p": 0.5}, {1}), ({"top_p": 0.8}, {1, 3}), ({"top_k": 1}, {1})],
)
def test_top_k_and_top_p_keep_the_best(settings, allowed):
    assert set(share(make_sampler(temperature=1, seed=0, **settings), 300)) == allowed


def test_top_p_looks_beyond_its_shortlist():
    """Where no token has a chance worth noting, all of them count."""
    flat = torch.zeros(20_000)
    sampler = make_sampler(temperature=1, top_p=0.9, seed=0)
    drawn = {sampler(flat) for _ in range(200)}
    assert len(drawn) > 180


def test_the_penalty_moves_away_from_what_is_present():
    sampler = make_sampler(repetition_penalty=2.0, prompt=[1])
    assert sampler(SCORES) == 3  # 3.0 / 2 < 2.0
    assert sampler(SCORES) == 1  # now 3 is present too: 1.5 against 1.0
    below_zero = torch.tensor([-1.0, -1.5])
    assert make_sampler(repetition_penalty=2.0, prompt=[0])(below_zero) == 1


def test_the_penalty_leaves_the_scores_alone():
    before = SCORES.clone()
    make_sampler(repetition_penalty=2.0, prompt=[1])(SCORES)
    assert torch.equal(before, SCORES)


def test_equal_seeds_draw_equally():
    first, second = (make_sampler(temperature=1, seed=7) for _ in range(2))
    assert [first(SCORES) for _ in range(30)] == [second(SCORES) for _ in range(30)]
    other = make_sampler(temperature=1, seed=8)
    again = make_sampler(temperature=1, seed=7)
    assert [other(SCORES) for _ in range(30)] != [again(SCORES) for _ in range(30)]


def cut(pieces, stops):
    scanner, shown = StopText(stops), []
    for piece in pieces:
        shown.append(scanner.push(piece))
        if scanner.stopped:
            return shown, True
    return [*shown, scanner.finish()], False


def test_a_stop_string_is_found_across_pieces():
    shown, stopped = cut(["Hello E", "N", "D more"], ["END"])
    assert "".join(shown) == "Hello " and stopped


def test_what_may_begin_a_stop_string_is_held_back_and_released():
    shown, stopped = cut(["a<", "b<|", "x"], ["<|end|>"])
    assert shown == ["a", "<b", "<|x", ""] and not stopped


def test_the_first_of_several_stops_wins():
    shown, stopped = cut(["one two three"], ["three", "two"])
    assert "".join(shown) == "one " and stopped


pieces = st.lists(st.text(alphabet="ab", max_size=4), max_size=12)
stops = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3)


@given(pieces=pieces, stops=stops)
def test_pieces_never_change_what_is_shown(pieces, stops):
    text = "".join(pieces)
    ends = [at for at in (text.find(each) for each in stops) if at >= 0]
    shown, stopped = cut(pieces, stops)
    said = "".join(shown)
    assert stopped == bool(ends)
    assert not any(each in said for each in stops)
    assert text.startswith(said)
    if not ends:
        assert said == text


rows_of_scores = st.lists(
    st.lists(
        st.one_of(st.floats(-9, 9, width=32), st.sampled_from([-math.inf, math.inf, math.nan])),
        min_size=37,
        max_size=37,
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=25, deadline=None)
@given(rows=rows_of_scores)
def test_best_finds_the_greatest_score_and_rows_without(rows):
    scores = torch.tensor(rows)
    for row, token, half in zip(scores, best(scores), best(scores.double()), strict=True):
        most = row.max()
        if bool(most.isfinite()):
            assert row[token] == row[half] == most
        else:
            assert token == half == -1
