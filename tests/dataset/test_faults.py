"""What cannot be learnt is named: file, line, what was found and what would do."""

import json

import pytest

from glmkit.dataset import ColumnNames, open_data
from glmkit.errors import DataError, GlmkitError, UsageError

from .rows import ALPACA, MESSAGES, SHAREGPT, jsonl, table


def fault(*specs, **options):
    with pytest.raises(GlmkitError) as caught:
        open_data([str(each) for each in specs], **options)
    return str(caught.value)


def turns(*roles, content="x"):
    return {"messages": [{"role": each, "content": content} for each in roles]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"instruction": "x",', r"is no JSON: .* at character 2\d, near"),
        ("[1, 2]", "holds list, expected an object"),
        (SHAREGPT, "lacks 'instruction' and 'output', which alpaca needs; .*: that is sharegpt"),
        ({"instruction": "x", "output": ""}, "message 2: the answer is empty"),
        ({"instruction": " ", "input": "", "output": "x"}, "message 1: the question is empty"),
        ({"instruction": "x", "output": None}, "the answer is empty"),
        ({"instruction": "x", "output": {"a": 1}}, "column 'output' must be text, got {'a': 1}"),
        ({"instruction": "x", "output": True}, "must be text, got True"),
        (ALPACA | {"history": [["q"]]}, r"turn 1 of the history must be \[question, answer\]"),
        (ALPACA | {"history": "[["}, "the history must be JSON"),
        (ALPACA | {"tools": "nonsense"}, "tools must be JSON"),
        ({"instruction": "\ud83d", "output": "x"}, "no valid Unicode"),
    ],
)
def test_a_bad_row_stops_and_can_be_skipped(tmp_path, row, reason):
    row = row if isinstance(row, str) else json.dumps(row)
    path = jsonl(tmp_path / "a.jsonl", *[ALPACA] * 6, row, ALPACA)
    with pytest.raises(DataError, match=rf"1 of 8 rows .*\n  a.jsonl, line 7: .*{reason}"):
        open_data([str(path)])
    data = open_data([str(path)], skip_bad=True)
    assert len(data) == len(list(data.samples())) == 7
    assert data.described == "a.jsonl: alpaca, 7 rows, 1 bad row skipped"
    assert [each.place.line for each in data.bad] == [7] and data.skipped == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (turns("user", "user", "assistant"), "message 2 is a question, expected an answer"),
        (
            turns("assistant", "user"),
            "message 1 is an answer, expected the system .* or a question",
        ),
        (turns("user", "assistant", "assistant"), "message 3 is an answer, expected a question or"),
        (turns("user", "assistant", "system"), "message 3 is the system message"),
        (turns("user"), "must end with an answer, and ends with a question"),
        (turns("user", "assistant", content=["x"]), None),
        (turns("user", "wizard"), "message 2: unknown role 'wizard'; known: system, user"),
        (
            {"messages": [{"role": "user"}]},
            "message 1: nothing is said: it has no content or value",
        ),
        ({"messages": [{"content": "x"}]}, "message 1: nobody says it"),
        ({"messages": ["x"]}, "message 1 must be an object, got 'x'"),
        ({"messages": "x"}, "messages must be JSON"),
        ({"messages": []}, "must be a list of messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
            "a piece of type 'image', and only text",
        ),
        (
            {"messages": [MESSAGES["messages"][0] | {"weight": 1}, MESSAGES["messages"][1]]},
            "message 1 is a question with the weight 1; only answers",
        ),
        (
            {"messages": [MESSAGES["messages"][0], MESSAGES["messages"][1] | {"weight": -1}]},
            "weight must be true, false or a number from 0, got -1",
        ),
        (
            {"messages": [MESSAGES["messages"][0], MESSAGES["messages"][1] | {"loss": False}]},
            "none of its answers is learnt",
        ),
        (
            {
                "conversations": [
                    SHAREGPT["conversations"][0],
                    {"from": "function_call", "value": "no"},
                ]
            },
            "lacks 'messages'",
        ),
    ],
)
def test_a_bad_conversation_says_which_message(tmp_path, row, reason):
    path = jsonl(tmp_path / "a.jsonl", MESSAGES, row)
    if reason is None:
        assert len(open_data([str(path)])) == 2
    else:
        with pytest.raises(DataError, match=f"a.jsonl, line 2: .*{reason}"):
            open_data([str(path)])


def test_bad_rows_of_arrays_csv_and_many_of_them(tmp_path):
    array = tmp_path / "a.json"
    array.write_text(json.dumps([ALPACA, {"instruction": "x"}], indent=2))
    assert "a.json, element 2 (line 7): lacks 'output'" in fault(array)
    wide = table(tmp_path / "a.csv", ["prompt", "response"], ["a\nb", "c"], ["a", "b", "c"])
    assert "a.csv, line 4: has more cells than the header, which names 2" in fault(wide)
    many = jsonl(tmp_path / "b.jsonl", ALPACA, *[{"instruction": "x", "output": ""}] * 12)
    said = fault(many)
    assert said.startswith("12 of 13 rows cannot be learnt:\n  b.jsonl, line 2: ")
    assert "and 2 more" in said and "--skip-bad" in said and said.count("\n") == 12
    none = jsonl(tmp_path / "c.jsonl", {"instruction": "x", "output": ""})
    assert "no row of" in fault(none, skip_bad=True)


GBK = "".join(f'{{"prompt": "问题{n}", "response": "回答{n}"}}\n' for n in range(9)).encode("gbk")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b"", "is empty"),
        ("a.json", b" \n\n", "is empty"),
        ("a.json", b"[]", "holds no rows"),
        ("a.json", b'{\n "data": [{"a": 1}]\n}', "one JSON object with the keys 'data'"),
        ("a.json", b'[{"a": 1}', "never ends"),
        ("a.jsonl", b'{"a": \n{"b":\n', "no row of .* can be read: line 1 is no JSON"),
        ("a.jsonl", b"hello\n", "no file of rows: it begins with b'hello"),
        ("a.jsonl", b'{"a": 1, "b": 2}\n', "has the columns 'a', 'b'; known are instruction and"),
        (
            "a.csv",
            "你好,很好\n再见,嗯\n".encode(),
            "columns '你好', '很好'.*first line of a CSV file",
        ),
        ("a.csv", b"prompt,response\n", "holds no rows"),
        ("a.csv", b'prompt,response\n"a,b\nc,d\n', "a quote there may not be closed"),
        ("a.jsonl", GBK, "seems to be in GB18030; run: iconv -f GB18030 -t UTF-8 a.jsonl"),
        ("a.csv", GBK, "seems to be in GB18030"),
        ("a.jsonl", '{"prompt": "x", "response": "y"}'.encode("utf-16"), "seems to be in UTF-16"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.jsonl", b"\x1f\x8b\x08rest", "is compressed"),
        ("a.parquet", b"PAR1 and nothing more", "is no Parquet file"),
        ("a.jsonl", b'{"text": "so it goes"}', "plain text without questions and answers"),
        ("a.jsonl", b'{"prompt": "p", "chosen": "a", "rejected": "b"}', "preference data"),
        ("a.jsonl", b'{"instruction": "p", "output": ["a", "b"]}', r"preference data \(ranked"),
        (
            "a.jsonl",
            b'{"messages": [], "label": true}',
            r"holds answers with a verdict",
        ),
        ("a.jsonl", b'{"messages": [], "rejected_response": ""}', "preference data"),
    ],
)
def test_a_file_that_is_no_data_says_what_it_is(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        open_data([str(path)])


def test_a_mark_of_utf_8_is_no_fault_and_one_damaged_line_is_one_bad_row(tmp_path):
    lines = [json.dumps(ALPACA | {"output": "好"}, ensure_ascii=False).encode() for _ in range(3)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    assert len(open_data([str(path)])) == 3
    path.write_bytes(b"\n".join([*lines, b'{"instruction": "\xff", "output": "x"}']))
    assert "line 4: is no JSON: it is not in UTF-8 (byte 0xff at 18)" in fault(path)


def test_what_is_not_there_is_named_with_what_is_near(tmp_path):
    jsonl(tmp_path / "train.jsonl", ALPACA)
    assert "did you mean 'train.jsonl'?" in fault(tmp_path / "trian.jsonl")
    assert "there is no data" in fault(tmp_path / "nowhere" / "x.json")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no data; files end in .json" in fault(empty)
    with pytest.raises(UsageError, match="no data is named"):
        open_data([])


def test_columns_that_are_not_there(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"q": "1?", "a": "2"})
    said = fault(path, columns=ColumnNames(prompt="q", response="answer"))
    assert "has no column 'answer'; it has 'q', 'a'" in said
    assert "name the columns of questions and answers" in fault(
        path, columns=ColumnNames(prompt="q")
    )
    with pytest.raises(UsageError, match="train_on must be one of all, last, got 'some'"):
        open_data([str(path)], train_on="some")
