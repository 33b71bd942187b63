"""What is written in another format is read as the same."""

import json

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from glmkit.dataset import Sample, open_data
from glmkit.dataset.converting import FORMATS, write_rows
from glmkit.errors import DataError, UsageError
from glmkit.types import Message, ToolCall

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda s: s.strip())
TOOL = {"name": "add", "parameters": {"type": "object"}}
CALLS = st.lists(
    st.builds(ToolCall, TEXT, st.dictionaries(TEXT, st.integers() | TEXT, max_size=2)),
    min_size=1,
    max_size=2,
)
WEIGHTS = st.sampled_from([1.0, 1.0, 0.0, 0.5])


@st.composite
def samples(draw, *, plain: bool = False) -> Sample:
    messages, weights = [], []
    if draw(st.booleans()):
        tools = () if plain else draw(st.sampled_from([(), (TOOL,)]))
        messages.append(Message("system", draw(TEXT), tools=tools))
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(TEXT)))
        if not plain and draw(st.booleans()):
            said = draw(st.just("") | TEXT)
            messages.append(Message("assistant", said, tool_calls=tuple(draw(CALLS))))
            messages.append(Message("observation", draw(TEXT)))
        messages.append(Message("assistant", draw(TEXT)))
    for message in messages:
        assistant = message.role == "assistant"
        weights.append(0.0 if not assistant else 1.0 if plain else draw(WEIGHTS))
    weights[-1] = 1.0
    return Sample(tuple(messages), tuple(weights))


def again(folder, rows):
    path = folder / "a.jsonl"
    write_rows(rows, path, overwrite=True)
    return list(open_data([str(path)]).samples())


ONCE = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("name", ["messages", "sharegpt"])
@ONCE
@given(several=st.lists(samples(), min_size=1, max_size=4))
def test_nothing_is_lost(tmp_path, name, several):
    found = again(tmp_path, map(FORMATS[name], several))
    assert [each.messages for each in found] == [each.messages for each in several]
    assert [each.weights for each in found] == [each.weights for each in several]


@ONCE
@given(several=st.lists(samples(plain=True), min_size=1, max_size=4))
def test_alpaca_holds_what_has_no_tools(tmp_path, several):
    found = again(tmp_path, map(FORMATS["alpaca"], several))
    assert [each.messages for each in found] == [each.messages for each in several]


def test_alpaca_refuses_what_it_cannot_hold():
    question, answer = Message("user", "x"), Message("assistant", "y")
    told = Message("system", "", tools=(TOOL,))
    with pytest.raises(DataError, match="has tools, which alpaca has no place for"):
        FORMATS["alpaca"](Sample((told, question, answer), (0, 0, 1), "a.json"))
    with pytest.raises(DataError, match="has weights of messages"):
        FORMATS["alpaca"](Sample((question, answer, question, answer), (0, 0, 0, 1)))


def test_files_appear_whole_and_are_not_overwritten_unasked(tmp_path):
    path = tmp_path / "new" / "a.json"
    assert write_rows(iter([{"a": "好"}, {"a": 2}]), path) == 2
    assert json.loads(path.read_text("utf-8")) == [{"a": "好"}, {"a": 2}]
    with pytest.raises(UsageError, match="exists; give another name, or --overwrite"):
        write_rows([], path)
    with pytest.raises(UsageError, match=r"to .jsonl or .json"):
        write_rows([], tmp_path / "a.csv")

    def failing():
        yield {"a": 1}
        raise DataError("no more")

    with pytest.raises(DataError):
        write_rows(failing(), path, overwrite=True)
    assert len(json.loads(path.read_text("utf-8"))) == 2
    assert [each.name for each in path.parent.iterdir()] == ["a.json"]
    write_rows([], path, overwrite=True)
    assert json.loads(path.read_text()) == []


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        write_rows([{}], tmp_path / "file" / "a.json")
