"""Server-sent events: one stream of bytes means the same events, however it is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from glmkit.errors import ServerError
from glmkit.remote import sse
from glmkit.remote.sse import Event, events

ENDS = (b"\n", b"\r\n", b"\r")


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["data: one", "", "data:two", ""], [Event("", "one"), Event("", "two")]),
        (["data:  kept", ""], [Event("", " kept")]),
        (["data: a", "data: b", ""], [Event("", "a\nb")]),
        ([": comment", "", ":", "data: x", ": more", ""], [Event("", "x")]),
        (["event: error", "data: no", "", "data: x", ""], [Event("error", "no"), Event("", "x")]),
        (["id: 7", "retry: 10", "data: x", "nonsense", ""], [Event("", "x")]),
        (["data", ""], [Event("", "")]),
        (["event: lonely", "", ""], []),
        (["data: 汉字 🌍", ""], [Event("", "汉字 🌍")]),
        (["data: cut off"], [Event("", "cut off")]),
        (['error: {"code": 500}', ""], [Event("error", '{"code": 500}')]),
        (["\ufeffdata: x", ""], [Event("", "x")]),
        ([], []),
    ],
)
def test_events_are_read_as_servers_write_them(lines, expected, end):
    stream = end.join(each.encode() for each in lines) + (end if lines and not lines[-1] else b"")
    assert list(events([stream])) == expected


LINE = st.one_of(
    st.text(alphabet="ab: 汉🌍é", max_size=12).map(lambda text: f"data: {text}"),
    st.sampled_from(["", "", ":ping", "data:", "data", "event: error", "id: 3", "x: y"]),
)


@settings(deadline=None)
@given(st.lists(st.tuples(LINE, st.sampled_from(ENDS)), max_size=20), st.data())
def test_any_cutting_gives_the_same_events(lines, data):
    stream = b"".join(line.encode() + end for line, end in lines)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert list(events(parts)) == list(events([stream]))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_events_or_nothing(stream):
    whole = list(events([stream]))
    assert list(events(stream[at : at + 1] for at in range(len(stream)))) == whole


@pytest.mark.parametrize("stream", [b"x" * 10, b"data: 1234567\ndata: 1234567\n"])
def test_what_never_ends_is_refused(stream, monkeypatch):
    monkeypatch.setattr(sse, "LONGEST", 100)
    with pytest.raises(ServerError, match="no answer"):
        list(events([stream] * 11))
