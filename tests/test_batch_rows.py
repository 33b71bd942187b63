"""Rows of every shape and file as conversations."""

import json
from pathlib import Path

import pytest
from batch_parts import asked, jsonl, ran, written
from hypothesis import given, settings, strategies as st

from glmkit.batch.job import Job, run_job
from glmkit.batch.rows import Reading, read_rows
from glmkit.errors import DataError, UsageError
from glmkit.tables import arrays
from glmkit.tables.files import count_rows
from glmkit.testing import EchoModel


@pytest.mark.parametrize(
    ("row", "roles", "last"),
    [
        ({"prompt": "hi"}, "user", "hi"),
        ({"messages": [{"role": "user", "content": "你好"}]}, "user", "你好"),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, "user", "Add\n1 2"),
        ({"instruction": "Add", "input": ""}, "user", "Add"),
        (
            {"instruction": "b", "system": "s", "history": [["q", "a"]]},
            "system user assistant user",
            "b",
        ),
        (
            {"custom_id": "7", "body": {"messages": [{"role": "user", "content": "x"}]}},
            "user",
            "x",
        ),
        ({"prompt": [{"role": "user", "content": "trl"}]}, "user", "trl"),
    ],
)
def test_every_shape_becomes_a_conversation(tmp_path, row, roles, last):
    (messages,) = asked(jsonl(tmp_path / "in.jsonl", [row]))
    assert " ".join(each.role for each in messages) == roles
    assert messages[-1].content == last


def test_a_template_takes_any_columns(tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"text": "{x}", "to": None, "prompt": "not this"}])
    (messages,) = asked(source, template="To {to}: {text} {{ok}}", system="Be short.")
    assert [each.content for each in messages] == ["Be short.", "To : {x} {ok}"]


@pytest.mark.parametrize("template", ["no column", "{", "{a.b}", "{a[0]}", "{a!r}", "{}", "{a:>9}"])
def test_templates_reach_no_further_than_columns(template):
    with pytest.raises(UsageError, match="template"):
        Reading(template=template)


def test_openai_options_are_taken_over(tmp_path):
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "temperature": 0.5}
    (row,) = read_rows(jsonl(tmp_path / "in.jsonl", [{"custom_id": "a", "body": body}]), Reading())
    assert row.options == {"max_tokens": 3, "temperature": 0.5}


def test_csv_keeps_commas_and_line_breaks(tmp_path):
    source = tmp_path / "in.csv"
    source.write_text('\ufeffid,prompt\n1,"a, b\nc"\n2,你好\n', "utf-8")
    rows = list(read_rows(source, Reading()))
    assert [each.messages[0].content for each in rows] == ["a, b\nc", "你好"]
    assert rows[0].columns == {"id": "1", "prompt": "a, b\nc"}


def test_an_unnamed_csv_column_is_one(tmp_path):
    source = tmp_path / "in.csv"
    source.write_text(",prompt\n0,a\n1,b,c\n2\n", "utf-8")
    first, wide, short = read_rows(source, Reading())
    assert first.columns == {"": "0", "prompt": "a"}
    assert "more cells" in wide.error
    assert short.columns == {"": "2", "prompt": None}
    assert count_rows(source) == 3


@pytest.mark.parametrize("row", ['2,"b', '2,"b" c'])
def test_a_damaged_quote_is_noticed_before_any_answer(tmp_path, row):
    source = tmp_path / "in.csv"
    source.write_text(f'id,prompt\n1,"a\nb"\n{row}\n3,c\n4,d\n', "utf-8")
    with pytest.raises(DataError, match="from line 4 on"):
        ran(source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(("who", "adapter"), [("x", "x"), (7, "7"), ("", {}), (None, {})])
def test_a_column_names_the_adapter(tmp_path, who, adapter):
    rows = [{"prompt": "a", "who": who}, {"prompt": "a", "whom": who}]
    source = jsonl(tmp_path / "in.jsonl", rows)
    named, lacking = read_rows(source, Reading(adapter_column="who"))
    assert named.options == {"adapter": adapter}
    assert "lacks the column 'who'" in lacking.error


def test_parquet_rows(tmp_path):
    import pyarrow
    from pyarrow import parquet

    source = tmp_path / "in.parquet"
    messages = [[{"role": "user", "content": "嗨"}], [{"role": "user", "content": "b"}]]
    parquet.write_table(pyarrow.table({"id": [5, 6], "messages": messages}), source)
    assert count_rows(source) == 2
    assert [each[0].content for each in asked(source)] == ["嗨", "b"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"prompt": ', "line 2 is no JSON"),
        ("[1]", "line 2 holds list"),
        ('{"text": "x"}', "--prompt-template"),
        ('{"messages": []}', "at least"),
        ('{"messages": "x"}', "messages is the text 'x', which is no JSON list"),
        ('{"prompt": ""}', "the row's prompt is empty"),
        ('{"messages": [{"role": "king", "content": "x"}]}', "unknown role"),
        ('{"instruction": "x", "history": [["only"]]}', "not enough values"),
        ("\xff", "line 2 is no JSON"),
        ('{"prompt": ' + "[" * 300 + "]" * 300 + "}", "line 2 is no JSON: nested deeper than 200"),
        ('{"messages": "' + "[" * 100_000 + '"}', "nested deeper than 200"),
        ('{"messages": "' + "[" * 300 + "]" * 300 + '"}', "nested deeper than 200"),
        (
            '{"messages": [{"role": "user", "content": "x", "passages": ["a"]}]}',
            "no passages",
        ),
    ],
)
def test_a_bad_row_carries_its_error(tmp_path, line, why):
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"prompt": "a"}\n' + line.encode("latin-1") + b'\n{"prompt": "b"}\n')
    first, bad, last = read_rows(source, Reading())
    assert why in bad.error
    assert (first.error, last.error, last.index) == (None, None, 2)


def test_what_is_no_job_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a file"):
        list(read_rows(tmp_path / "absent.jsonl", Reading()))
    (tmp_path / "in.xlsx").write_text("x")
    with pytest.raises(UsageError, match="unknown ending"):
        list(read_rows(tmp_path / "in.xlsx", Reading()))
    (tmp_path / "in.csv").write_bytes("prompt\n你好\n".encode("gbk"))
    with pytest.raises(DataError, match="UTF-8"):
        list(read_rows(tmp_path / "in.csv", Reading()))


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 18])
def test_an_array_is_read_element_by_element(tmp_path, monkeypatch, block):
    monkeypatch.setattr(arrays, "_BLOCK", block)
    source = tmp_path / "in.json"
    text = r"""  [ {"prompt": "a, \"]} 你\\"} , {"prompt": }, 3, {"prompt": ["\\\"", {}, {"x": 1}]},
        {"prompt": "last"}, ]  """
    source.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert count_rows(source) == 6
    rows = list(read_rows(source, Reading()))
    assert rows[0].columns == {"prompt": 'a, "]} 你\\'}
    assert "element 2 (line 1) is no JSON" in rows[1].error
    assert "element 3 (line 1) holds int" in rows[2].error
    assert rows[3].columns == {"prompt": ['\\"', {}, {"x": 1}]}
    assert (rows[4].messages[0].content, rows[4].index) == ("last", 4)
    assert "element 6 (line 2) is no JSON" in rows[5].error
    source.write_text(" [ ] ")
    assert count_rows(source) == 0


_VALUES = st.text('a"\\\\[]{}, 你\n')


@settings(max_examples=40, deadline=None)
@given(st.lists(_VALUES | st.lists(_VALUES) | st.dictionaries(_VALUES, _VALUES)), st.integers(1, 9))
def test_any_array_is_read_as_json_does(values, block):
    text = json.dumps(values).encode()
    pieces = [text[at : at + block] for at in range(0, len(text), block)]
    array = arrays._Array(Path("in.json"))
    found = [each for piece in pieces for each in array.take(piece)]
    array.end()
    assert [json.loads(each) for each in found] == values


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[{"prompt": "a"}, {"prompt": "b}]', "element 2 of the JSON array never ends"),
        ('[{"prompt": "a"}', "element 1 of the JSON array never ends"),
        ('[{"prompt": "a"}]\n[{"prompt": "b"}]', "after its element 1"),
    ],
)
def test_a_damaged_array_is_noticed_before_any_answer(tmp_path, text, why):
    source = tmp_path / "in.json"
    source.write_text(text)
    with pytest.raises(DataError, match=why):
        ran(source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_an_element_that_never_ends_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_LONGEST", 1000)
    monkeypatch.setattr(arrays, "_BLOCK", 100)
    source = tmp_path / "in.json"
    source.write_text('[{"prompt": "' + "x" * 5000 + '"}]')
    with pytest.raises(DataError, match="element 1 of the JSON array is longer"):
        count_rows(source)


def test_an_array_is_resumed_like_any_file(tmp_path):
    source = tmp_path / "in.json"
    source.write_text(json.dumps([{"instruction": str(at), "output": "x"} for at in range(9)]))
    events = run_job(EchoModel(), Job(source, tmp_path / "out.jsonl", "echo"))
    for _ in range(4):
        next(events)
    events.close()
    again = ran(source, tmp_path / "out.jsonl")
    assert (again.before, again.answered) == (4, 5)
    assert [each["response"] for each in written(tmp_path / "out.jsonl")] == list("012345678")
