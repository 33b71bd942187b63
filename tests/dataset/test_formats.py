"""Every format is known by its columns, and its rows mean what they say."""

import json

import pytest

from glmkit.dataset import ColumnNames, Tags, open_data
from glmkit.types import ToolCall

from .rows import ALPACA, MESSAGES, SHAREGPT, jsonl, said, table

HISTORY = [["q1", "a1"], ["q2", "a2"]]
BEFORE = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]


def only(path, **options):
    (sample,) = open_data([str(path)], **options).samples()
    return sample


@pytest.mark.parametrize(
    ("row", "name", "expected"),
    [
        (ALPACA, "alpaca", [("user", "Add\n1 2"), ("assistant", "3")]),
        (
            ALPACA | {"system": "s", "history": HISTORY},
            "alpaca",
            [("system", "s"), *BEFORE, ("user", "Add\n1 2"), ("assistant", "3")],
        ),
        (
            {"instruction": "b", "input": None, "output": 7},
            "alpaca",
            [("user", "b"), ("assistant", "7")],
        ),
        (
            {
                "instruction": "Human:你好\nAssistant:好\nHuman:再\n见\nAssistant:",
                "input": "",
                "output": "嗯",
            },
            "alpaca",
            [("user", "你好"), ("assistant", "好"), ("user", "再\n见"), ("assistant", "嗯")],
        ),
        (SHAREGPT, "sharegpt", [("user", "hi"), ("assistant", "ho")]),
        (
            SHAREGPT | {"system": "s"},
            "sharegpt",
            [("system", "s"), ("user", "hi"), ("assistant", "ho")],
        ),
        (
            {
                "id": "6",
                "conversations": [
                    {"from": "human", "value": "x"},
                    {"from": "assistant", "value": "y"},
                ],
            },
            "sharegpt",
            [("user", "x"), ("assistant", "y")],
        ),
        (MESSAGES, "messages", [("user", "hi"), ("assistant", "ho")]),
        (
            {"conversations": MESSAGES["messages"]},
            "chatglm3",
            [("user", "hi"), ("assistant", "ho")],
        ),
        (
            {"content": "类型#裤", "summary": "好裤子"},
            "adgen",
            [("user", "类型#裤"), ("assistant", "好裤子")],
        ),
        (
            {"prompt": "p", "response": "r", "history": HISTORY},
            "prompt/response",
            [*BEFORE, ("user", "p"), ("assistant", "r")],
        ),
        ({"query": "p", "response": "r"}, "query/response", [("user", "p"), ("assistant", "r")]),
        (
            {"prompt": MESSAGES["messages"][:1], "completion": MESSAGES["messages"][1:]},
            "prompt/completion",
            [("user", "hi"), ("assistant", "ho")],
        ),
        (
            {"question": "1+1?", "answer": "2"},
            "question/answer",
            [("user", "1+1?"), ("assistant", "2")],
        ),
        (
            {"input": "p", "target": "r", "kind": "x"},
            "input/target",
            [("user", "p"), ("assistant", "r")],
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".txt"])
def test_a_format_is_known_by_its_columns(tmp_path, row, name, expected, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps([row, row], ensure_ascii=False, indent=1), "utf-8-sig")
    else:
        jsonl(path, row, row)
    data = open_data([str(path)])
    samples = list(data.samples())
    assert data.described == f"a{suffix}: {name}, 2 rows"
    assert [said(each) for each in samples] == [expected, expected]
    answers = [role == "assistant" for role, _ in expected]
    assert samples[0].weights == tuple(map(float, answers))


CALL = ToolCall("add", {"a": 1})
TOOLS = [{"name": "add", "parameters": {}}]
CALLED = {"name": "add", "arguments": {"a": 1}}


@pytest.mark.parametrize(
    "row",
    [
        {
            "conversations": [
                {"from": "human", "value": "1?"},
                {"from": "function_call", "value": json.dumps(CALLED)},
                {"from": "observation", "value": "2"},
                {"from": "gpt", "value": "two"},
            ],
            "tools": json.dumps(TOOLS),
        },
        {
            "messages": [
                {"role": "user", "content": "1?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "1",
                            "type": "function",
                            "function": {"name": "add", "arguments": '{"a": 1}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": "2"},
                {"role": "assistant", "content": "two"},
            ],
            "tools": TOOLS,
        },
        {
            "messages": [  # as GLM-4's own examples have it
                {"role": "system", "content": "", "tools": TOOLS},
                {"role": "user", "content": "1?"},
                {"role": "assistant", "content": json.dumps(CALLED)},
                {"role": "observation", "content": "2"},
                {"role": "assistant", "content": "two"},
            ]
        },
        {
            "tools": TOOLS,
            "conversations": [  # as ChatGLM3's own examples have it
                {"role": "user", "content": "1?"},
                {"role": "tool", "name": "add", "parameters": {"a": 1}, "observation": "2"},
                {"role": "assistant", "content": "two"},
            ],
        },
    ],
    ids=["sharegpt", "openai", "glm4", "chatglm3"],
)
def test_calls_of_tools_mean_the_same_in_every_format(tmp_path, row):
    sample = only(jsonl(tmp_path / "a.jsonl", row))
    system, question, call, seen, answer = sample.messages
    assert system.role == "system" and list(system.tools) == TOOLS and not system.content
    assert call.tool_calls == (CALL,) and not call.content
    assert (seen.role, seen.content, answer.content) == ("observation", "2", "two")
    assert sample.weights == (0, 0, 1, 0, 1)


def test_a_call_belongs_to_the_answer_that_it_follows(tmp_path):
    call = json.dumps([CALLED, CALLED])
    turns = [("human", "1?"), ("gpt", "Let me see."), ("tool_call", call), ("tool_response", "2")]
    row = {
        "conversations": [{"from": who, "value": what} for who, what in [*turns, ("gpt", "two")]]
    }
    asked, seen = only(jsonl(tmp_path / "a.jsonl", row)).messages[1:3]
    assert (asked.content, asked.tool_calls) == ("Let me see.", (CALL, CALL))
    assert seen.role == "observation"


def test_pieces_of_content_are_joined_and_thoughts_are_marked(tmp_path):
    def pieces(**said):
        return [{"type": kind, "value": value} for kind, value in said.items()]

    row = {
        "messages": [
            {"role": "user", "content": pieces(text="hi")},
            {"role": "assistant", "content": pieces(reasoning="hm", text="ho")},
        ]
    }
    assert said(only(jsonl(tmp_path / "a.jsonl", row)))[1][1] == "<think>\nhm\n</think>\n\nho"


@pytest.mark.parametrize(
    ("key", "values", "weights"),
    [
        ("weight", [None, 0, None, 0.5], (0, 0, 0, 0.5)),
        ("loss", [False, True, None, False], (0, 1, 0, 0)),
        ("train", [None, None, False, None], (0, 1, 0, 1)),
    ],
)
def test_messages_bring_weights(tmp_path, key, values, weights):
    roles = ["user", "assistant"] * 2
    items = [
        {"role": role, "content": "x", key: value}
        for role, value in zip(roles, values, strict=True)
    ]
    path = jsonl(tmp_path / "a.jsonl", {"messages": items})
    assert only(path).weights == weights


def test_only_the_last_answer_is_learnt(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", ALPACA | {"history": HISTORY})
    assert only(path).weights == (0, 1, 0, 1, 0, 1)
    assert only(path, train_on="last").weights == (0, 0, 0, 0, 0, 1)


def test_csv_and_tsv(tmp_path):
    rows = [["p", "r", json.dumps(HISTORY)], ["p", "r", ""]]
    for suffix in (".csv", ".tsv"):
        path = table(tmp_path / f"a{suffix}", ["prompt", "response", "history"], *rows)
        first, second = open_data([str(path)]).samples()
        assert said(first) == [*BEFORE, ("user", "p"), ("assistant", "r")]
        assert len(second.messages) == 2 and second.place.line == 3


def test_parquet_in_any_file(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "part-0"
    parquet.write_table(pyarrow.Table.from_pylist([SHAREGPT, SHAREGPT]), path)
    samples = list(open_data([str(path)]).samples())
    assert said(samples[1]) == [("user", "hi"), ("assistant", "ho")]
    assert str(samples[1].place) == "row 2"


def test_columns_that_somebody_names(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"q": "1?", "a": "2", "more": "x", "old": HISTORY})
    names = ColumnNames(prompt="q", response="a", query="more", history="old")
    assert said(only(path, columns=names)) == [*BEFORE, ("user", "1?\nx"), ("assistant", "2")]
    alpaca = jsonl(tmp_path / "b.jsonl", ALPACA | {"short": "!"})
    assert said(only(alpaca, columns=ColumnNames(response="short")))[-1] == ("assistant", "!")
    assert said(only(alpaca, columns=ColumnNames(prompt="short")))[0] == ("user", "!")
    talk = jsonl(
        tmp_path / "c.jsonl", {"talk": [{"who": "me", "says": "a"}, {"who": "you", "says": "b"}]}
    )
    tags = Tags(role="who", content="says", user="me", assistant="you")
    found = only(talk, columns=ColumnNames(messages="talk", tags=tags))
    assert said(found) == [("user", "a"), ("assistant", "b")]
