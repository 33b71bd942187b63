import errno
import json
import os
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_adapters
from hypothesis import given, settings, strategies as st

from glmkit.batch.job import Job, run_job
from glmkit.batch.journal import KEY, Done, Journal
from glmkit.batch.rows import Reading, read_rows
from glmkit.console import drain
from glmkit.errors import DataError, GlmkitError, UsageError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.tables import arrays
from glmkit.tables.files import count_rows
from glmkit.testing import EchoModel, tiny_glm
from glmkit.types import GenerationOptions, Message


def jsonl(path, rows):
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows), "utf-8")
    return path


def written(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def asked(path, **reading):
    return [each.messages for each in read_rows(path, Reading(**reading))]


# reading


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


# the journal


@given(st.lists(st.integers(0, 5000)))
def test_done_is_a_set_of_indexes(indexes):
    done = Done()
    for each in indexes:
        done.add(each)
    assert done.count == len(set(indexes))
    assert all(each in done for each in indexes)
    assert not any(each in done for each in set(range(5010)) - set(indexes))


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 200), rows=st.integers(0, 4))
def test_a_torn_line_is_taken_back(tmp_path_factory, cut, rows):
    path = tmp_path_factory.mktemp("torn") / "out.jsonl"
    with Journal(path, {"model": "m"}) as journal:
        for index in range(rows):
            journal.write(index, {KEY: {"index": index}, "response": "你" * index})
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    kept = path.read_bytes().count(b"\n")
    with Journal(path, {"model": "m"}) as journal:
        assert journal.done.count == kept
        for index in range(kept, rows):
            journal.write(index, {KEY: {"index": index}, "response": "你" * index})
    assert path.read_bytes() == whole


def test_another_job_cannot_write_into_the_file(tmp_path):
    path = tmp_path / "out.jsonl"
    with Journal(path, {"model": "a", "system message": None}) as journal:
        journal.write(0, {KEY: {"index": 0}})
        with pytest.raises(UsageError, match="another job is writing"), Journal(path, {}):
            pass
    with pytest.raises(UsageError, match="another model"), Journal(path, {"model": "b"}):
        pass
    assert len(written(path)) == 1


def test_a_file_of_somebody_else_is_left_alone(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("mine\n")
    with pytest.raises(UsageError, match="no job of glmkit"), Journal(path, {}):
        pass
    assert path.read_text() == "mine\n"


@pytest.mark.parametrize("damaged", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_record_is_said(tmp_path, damaged):
    path = tmp_path / "out.jsonl"
    with Journal(path, {"model": "m"}) as journal:
        journal.write(0, {KEY: {"index": 0}})
    (tmp_path / ".out.jsonl.job.json").write_bytes(damaged)
    with pytest.raises(DataError, match="is damaged"), Journal(path, {"model": "m"}):
        pass
    assert len(written(path)) == 1


def test_the_record_is_written_once(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    with Journal(path, {"model": "a"}):
        pass
    with Journal(path, {"model": "b"}) as journal:  # nothing was written as another job
        journal.write(0, {KEY: {"index": 0}})
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("the record was written again"))
    with Journal(path, {"model": "b"}) as journal:
        assert journal.done.count == 1


def test_a_record_is_whole_or_as_before(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    with Journal(path, {"model": "a"}):
        pass

    def cut(handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", cut)
    with pytest.raises(DataError, match="Input/output"), Journal(path, {"model": "b"}):
        pass
    assert json.loads((tmp_path / ".out.jsonl.job.json").read_text()) == {"model": "a"}


def test_rows_reach_the_disk_now_and_then(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    with Journal(path, {}) as journal:
        synced, now = [], [time.monotonic()]
        monkeypatch.setattr(os, "fsync", lambda handle: synced.append(path.stat().st_size))
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        for index in range(12):
            journal.write(index, {KEY: {"index": index}})
            now[0] += 1.0
        assert len(synced) == 2
    assert synced[-1] == path.stat().st_size


def test_what_no_job_can_write_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no folder"), Journal(tmp_path / "no" / "out.jsonl", {}):
        pass

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DataError, match="cannot write"), Journal(tmp_path / "out.jsonl", {}):
        pass


@pytest.mark.parametrize("error", [PermissionError, IsADirectoryError])
def test_what_no_job_can_read_is_one_line(tmp_path, monkeypatch, error):
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}])

    def refused(*_, **__):
        raise error(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DataError, match="cannot read .*Permission denied"):
        ran(source, tmp_path / "out.jsonl")


def test_a_full_disk_leaves_whole_rows(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    with Journal(path, {}) as journal:
        journal.write(0, {KEY: {"index": 0}})
        real = journal._file

        class Full:
            tell, truncate, close, fileno = real.tell, real.truncate, real.close, real.fileno

            def write(self, data):
                if len(data) <= 5:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real.write(data[:5])

        monkeypatch.setattr(journal, "_file", Full())
        with pytest.raises(DataError, match="No space"):
            journal.write(1, {KEY: {"index": 1}, "response": "xxx"})
    assert [each[KEY]["index"] for each in written(path)] == [0]


# the job


class Fussy(EchoModel):
    """Fails on some prompts, as a model does that has no room for them."""

    def stream(self, messages, options=None):
        if Message.of(messages[-1]).content.startswith("bad"):
            raise UsageError("too long")
        return super().stream(messages, options)


def ran(source, output, model=None, **job):
    return drain(run_job(model or Fussy(), Job(source, output, "echo", **job)))


@pytest.mark.parametrize("order", ["finished", "input"])
def test_a_job_keeps_columns_and_errors(tmp_path, order):
    rows = [{"id": f"r{at}", "prompt": text} for at, text in enumerate(["a", "bad", "b"])]
    source = jsonl(tmp_path / "in.jsonl", [*rows, {"id": "r3"}])
    summary = ran(source, tmp_path / "out.jsonl", order=order)
    assert (summary.answered, summary.failed) == (2, 2)
    found = sorted(written(tmp_path / "out.jsonl"), key=lambda each: each[KEY]["index"])
    assert [each["id"] for each in found] == ["r0", "r1", "r2", "r3"]
    assert [each["response"] for each in found] == ["a", None, "b", None]
    assert found[1]["error"] == "too long"
    assert "--prompt-template" in found[3]["error"]
    if order == "input":
        assert found == written(tmp_path / "out.jsonl")


def test_a_finished_job_does_nothing_more(tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}, {"prompt": "bad"}])
    ran(source, tmp_path / "out.jsonl")
    again = ran(source, tmp_path / "out.jsonl")
    assert (again.answered, again.failed, again.before) == (0, 0, 2)
    retried = ran(source, tmp_path / "out.jsonl", retry_errors=True, model=EchoModel())
    assert (retried.answered, retried.before) == (1, 1)
    assert sorted(each[KEY]["index"] for each in written(tmp_path / "out.jsonl")) == [0, 1]


def test_openai_requests_get_openai_results(tmp_path):
    body = {"model": "any", "messages": [{"role": "user", "content": "hi"}]}
    source = jsonl(
        tmp_path / "in.jsonl",
        [{"custom_id": "a", "body": body}, {"custom_id": "b", "body": {"messages": 3}}],
    )
    ran(source, tmp_path / "out.jsonl")
    good, bad = sorted(written(tmp_path / "out.jsonl"), key=lambda each: each["custom_id"])
    assert good["response"]["body"]["choices"][0]["message"]["content"] == "hi"
    assert good["error"] is None
    assert bad["response"] is None
    assert "messages must be" in bad["error"]["message"]


def test_a_column_that_the_answer_would_overwrite_is_refused(tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "a", "response": "mine"}])
    with pytest.raises(UsageError, match="--response-column"):
        ran(source, tmp_path / "out.jsonl")
    ran(source, tmp_path / "other.jsonl", response_column="answer")
    assert written(tmp_path / "other.jsonl")[0]["response"] == "mine"


def test_a_later_row_with_such_a_column_is_its_error(tmp_path):
    rows = [{"prompt": "a"}, {"prompt": "b", "error": "mine"}, {"prompt": "c", KEY: 1}]
    source = jsonl(tmp_path / "in.jsonl", [*rows, {"prompt": "d"}])
    summary = ran(source, tmp_path / "out.jsonl")
    assert (summary.answered, summary.failed) == (2, 2)
    found = sorted(written(tmp_path / "out.jsonl"), key=lambda each: each[KEY]["index"])
    assert [each["response"] for each in found] == ["a", None, None, "d"]
    assert "'error'" in found[1]["error"]
    assert ran(source, tmp_path / "out.jsonl").before == 4


@pytest.mark.parametrize("name", ["error", KEY])
def test_the_answer_has_a_column_of_its_own(tmp_path, name):
    with pytest.raises(UsageError, match=name):
        Job(tmp_path / "a", tmp_path / "b", "echo", response_column=name)


def test_half_a_surrogate_pair_is_kept(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"prompt": "a", "note": "x\\ud800y", "\\udfff": "\xe4\xbd\xa0"}\n')
    for order in ("finished", "input"):
        ran(source, tmp_path / f"{order}.jsonl", order=order)
        (row,) = written(tmp_path / f"{order}.jsonl")
        assert (row["note"], row["\udfff"], row["response"]) == ("x\ud800y", "你", "a")
        again = ran(source, tmp_path / f"{order}.jsonl", order=order, retry_errors=True)
        assert again.before == 1


def test_numbers_that_json_lacks_become_null(tmp_path):
    import pyarrow
    from pyarrow import parquet

    source = tmp_path / "in.parquet"
    table = {"prompt": ["a"], "x": [float("nan")], "y": [[1.5, float("inf")]]}
    parquet.write_table(pyarrow.table(table), source)
    ran(source, tmp_path / "out.jsonl")
    (row,) = written(tmp_path / "out.jsonl")
    assert (row["x"], row["y"], row["response"]) == (None, [1.5, None], "a")


def test_a_resumed_job_is_the_same_job(tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "abc"}, {"prompt": "d"}])
    stat = source.stat()
    ran(source, tmp_path / "out.jsonl", loading={"quantize": None})
    with pytest.raises(UsageError, match="another quantize"):
        ran(source, tmp_path / "out.jsonl", loading={"quantize": "int4"})
    jsonl(source, [{"prompt": "abX"}, {"prompt": "d"}])
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(UsageError, match="another input content"):
        ran(source, tmp_path / "out.jsonl", loading={"quantize": None})
    jsonl(source, [{"prompt": "abc"}, {"prompt": "d"}])
    assert ran(source, tmp_path / "out.jsonl", loading={"quantize": None}).before == 2


@pytest.mark.parametrize("row", [{"prompt": "a"}, {"nothing": "a"}])
def test_a_long_job_takes_no_more_memory_than_a_short_one(tmp_path, row):
    class Forgetful(EchoModel):
        def stream(self, messages, options=None):
            self.seen.clear()
            return super().stream(messages, options)

    note = {"note": "x" * 200}
    rows = [*[{"prompt": "b"} | note] * 2000, *[row | note] * 3000]
    source = jsonl(tmp_path / "in.jsonl", rows)
    events = run_job(Forgetful(), Job(source, tmp_path / "out.jsonl", "echo"))
    tracemalloc.start()
    try:
        for _ in range(2000):  # by then Python has what it keeps for itself
            next(events)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        drain(events)
        grown = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert len(written(tmp_path / "out.jsonl")) == 5000
    assert grown < 3000 * 8  # a list of the rows' numbers would take more


def test_a_job_without_any_answer_is_told_from_others(tmp_path):
    def summary(*prompts, **job):
        source = jsonl(tmp_path / "in.jsonl", [{"prompt": each} for each in prompts])
        return ran(source, tmp_path / f"{len(prompts)}{''.join(prompts)[:4]}.jsonl", **job)

    assert summary("bad", "bad").all_failed
    assert summary("bad", "bad").all_failed  # nothing left to ask, and still no answer
    assert not summary("bad", "a").all_failed
    assert not summary("bad", "a", retry_errors=True).all_failed
    assert not summary().all_failed


def test_rows_that_are_all_refused_alike_end_the_job(tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"text": "a"}] * 300)
    with pytest.raises(GlmkitError, match="first 20 rows were all refused: .*--retry-errors"):
        ran(source, tmp_path / "out.jsonl")
    assert len(written(tmp_path / "out.jsonl")) == 20
    # No answer would be lost: other options begin anew.
    summary = ran(source, tmp_path / "out.jsonl", reading=Reading(template="{text}"))
    assert (summary.before, summary.answered) == (0, 300)
    with pytest.raises(UsageError, match=r"prompt template \({text}, now none\)"):
        ran(source, tmp_path / "out.jsonl")


def test_a_model_that_refuses_all_alike_ends_the_job(tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}] * 300)
    with pytest.raises(GlmkitError, match="first 20 rows were all refused: no vocabulary"):
        ran(source, tmp_path / "out.jsonl", model=Broken(GlmkitError("no vocabulary")))
    summary = ran(source, tmp_path / "out.jsonl", retry_errors=True)
    assert (summary.before, summary.answered) == (0, 300)


@pytest.mark.parametrize("order", ["finished", "input"])
def test_bad_rows_beside_good_ones_end_nothing(tmp_path, order):
    """The good row is still being answered while the bad ones are drawn."""
    rows = [{"prompt": "abc"}, *[{"text": "a"}] * 25, {"prompt": "abc"}]
    source = jsonl(tmp_path / "in.jsonl", rows)
    options = GenerationOptions(max_tokens=3, temperature=0)
    model = tiny_glm(tmp_path / "tiny")
    summary = ran(source, tmp_path / "out.jsonl", model, options=options, order=order)
    assert (summary.answered, summary.failed) == (2, 25)
    jsonl(source, rows[1:])
    with pytest.raises(GlmkitError, match="first 20 rows"):
        ran(source, tmp_path / "other.jsonl", model, options=options, order=order)
    again = ran(source, tmp_path / "other.jsonl", model, options=options, order=order)
    assert (again.failed_before, again.failed, again.answered) == (20, 5, 1)


def test_kinds_of_errors_are_counted_to_the_end(tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "bad"}, *[{str(at): 1} for at in range(9)]])
    summary = ran(source, tmp_path / "out.jsonl")
    assert (len(summary.errors), summary.more_kinds) == (5, 5)
    assert "_others" not in summary.as_dict()


def test_input_and_output_must_differ(tmp_path):
    with pytest.raises(UsageError, match="is the input"):
        Job(tmp_path / "a.jsonl", tmp_path / "." / "a.jsonl", "echo")


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ({"temperature": "hot"}, "temperature must be 0 (greedy) or a number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"seed": 2**70}, "seed must be a whole number from -2**63"),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number"),
        ({"stop": 5}, "stop must be non-empty texts"),
    ],
)
def test_wrong_options_of_a_row_are_its_error(tmp_path, option, why):
    body = {"messages": [{"role": "user", "content": "x"}], **option}
    source = jsonl(tmp_path / "in.jsonl", [{"custom_id": "a", "body": body}, {"prompt": "fine"}])
    summary = ran(source, tmp_path / "out.jsonl", options=GenerationOptions(max_tokens=3))
    assert (summary.answered, summary.failed) == (1, 1)
    (error,) = summary.errors
    assert why in error


def test_rows_are_drawn_as_they_are_answered(tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": str(at)} for at in range(50)])
    events = run_job(EchoModel(), Job(source, tmp_path / "out.jsonl", "echo"))
    for _ in range(3):
        next(events)
    events.close()
    assert len(written(tmp_path / "out.jsonl")) == 3


class Broken(EchoModel):
    """Raises what it was told to."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def stream(self, messages, options=None):
        raise self.error


def test_errors_of_rows_are_counted_by_kind(tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}] * 3)
    summary = ran(source, tmp_path / "out.jsonl", model=Broken(GlmkitError("this row fails")))
    assert summary.errors == {"this row fails": 3}


def test_faults_of_the_program_are_raised(tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}] * 3)
    with pytest.raises(ZeroDivisionError):
        ran(source, tmp_path / "out.jsonl", model=Broken(ZeroDivisionError()))
    assert ran(source, tmp_path / "out.jsonl").answered == 3  # and the job can go on


def test_a_local_model_answers_side_by_side(tmp_path):
    model = tiny_glm(tmp_path / "tiny")
    rows = [{"prompt": "x" * size} for size in (3, 9, 5)] + [{"prompt": "y" * 600}]
    source = jsonl(tmp_path / "in.jsonl", rows)
    options = GenerationOptions(max_tokens=6, temperature=0)
    summary = ran(source, tmp_path / "out.jsonl", model, options=options, concurrency=2)
    assert (summary.answered, summary.failed) == (3, 1)
    found = sorted(written(tmp_path / "out.jsonl"), key=lambda each: each[KEY]["index"])
    alone = [
        model.reply([{"role": "user", "content": each["prompt"]}], options).text
        for each in rows[:3]
    ]
    assert [each["response"] for each in found[:3]] == alone
    assert "room for" in found[3]["error"]


def test_rows_get_the_adapters_that_they_name(tmp_path):
    model = tiny_glm(tmp_path / "tiny")
    for seed, name in enumerate(["one", "two"]):
        adapter = tiny_adapters.lora(model, seed=seed, scale=8.0)
        model.load_adapter(tiny_adapters.written(tmp_path / name, adapter))
    options = GenerationOptions(max_tokens=8, temperature=0)
    rows = [{"prompt": "abc", "who": who} for who in ("one", "", "two", "absent", "one")]
    source = jsonl(tmp_path / "in.jsonl", rows)
    reading = Reading(adapter_column="who")
    summary = ran(source, tmp_path / "out.jsonl", model, reading=reading, options=options)
    assert (summary.answered, summary.failed) == (4, 1)
    found = sorted(written(tmp_path / "out.jsonl"), key=lambda each: each[KEY]["index"])
    assert "unknown adapter 'absent'" in found[3]["error"]
    asked = [Message("user", "abc")]
    one, base, two = (
        model.reply(asked, replace(options, adapter=each)).text for each in ("one", {}, "two")
    )
    assert len({one, base, two}) == 3
    assert [each["response"] for each in found] == [one, base, two, None, one]


def test_the_command_answers_and_resumes(tmp_path, capsys):
    from glmkit.cli import main

    folder = tiny_checkpoint(tmp_path / "tiny", layout="chatglm3")
    source = jsonl(tmp_path / "in.jsonl", [{"q": "a"}, {"q": "bc"}, {"other": 1}])
    command = ["--home", str(tmp_path), "--no-plugins", "batch", str(source)]
    command += ["-o", str(tmp_path / "out.jsonl"), "--model", str(folder), "--max-tokens", "3"]
    command += ["--prompt-template", "Say {q}", "--temperature", "0", "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["answered"], first["failed"], first["completion_tokens"]) == (2, 1, 6)
    assert main([*command, "--retry-errors"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["answered"], again["failed"], again["before"]) == (0, 1, 2)
    assert main([*command[:-1], "--max-tokens", "4"]) == 2
    assert "another max_tokens (3, now 4)" in capsys.readouterr().err
    assert main([*command[:-1], "--dtype", "bfloat16"]) == 2
    assert "another dtype" in capsys.readouterr().err
    assert main([*command, "--limit", "1", "--adapter", "a", "--adapter", "b"]) == 2
    assert "--adapter-column" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "options", "code", "why"),
    [
        ("text\na\n", (), 2, "has none of the columns messages, body, instruction, prompt"),
        ("text\na\n", ("--prompt-template", "{txt}"), 2, "no row has the column 'txt'"),
        ("prompt\na\n", ("--adapter", "a=x", "--adapter-column", "w"), 2, "no row has the col"),
        ("prompt\na\n", ("--adapter-column", "prompt"), 2, "none is given; add --adapter"),
        (
            "prompt\na\n",
            ("--adapter", "a=x", "--adapter", "a=y", "--adapter-column", "prompt"),
            2,
            "--adapter names 'a' twice",
        ),
        ("prompt,response\na,b\n", (), 2, "--response-column"),
        ('prompt\n"a\n', (), 1, "a quote there may not be closed"),
        ("prompt\na\n", ("-o", "out.csv"), 2, "written as JSONL; name it out.jsonl"),
    ],
)
def test_the_command_looks_before_it_loads(tmp_path, capsys, content, options, code, why):
    from glmkit.cli import main

    source = tmp_path / "in.csv"
    source.write_text(content)
    command = ["--home", str(tmp_path), "--no-plugins", "batch", str(source), "--model", "absent"]
    assert main([*command, "-o", str(tmp_path / "out.jsonl"), *options]) == code
    assert why in capsys.readouterr().err


def test_an_interrupted_command_says_how_far_it_is(tmp_path, capsys, monkeypatch):
    from glmkit.cli import main

    folder = tiny_checkpoint(tmp_path / "tiny", layout="chatglm3")
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "abc"}] * 9)
    command = ["--home", str(tmp_path), "--no-plugins", "batch", str(source), "--max-tokens", "2"]
    command += ["-o", str(tmp_path / "out.jsonl"), "--model", str(folder), "--concurrency", "1"]
    real = Journal.write

    def write(journal, index, row):
        if index == 5:
            raise KeyboardInterrupt
        real(journal, index, row)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "write", write)
        assert main(command) == 130
    assert "interrupted: 5 of 9 rows are done; the same command goes" in capsys.readouterr().err
    assert len(written(tmp_path / "out.jsonl")) == 5


def test_the_command_fails_when_every_row_did(tmp_path, capsys):
    from glmkit.cli import main

    folder = tiny_checkpoint(tmp_path / "tiny", layout="chatglm3")
    source = jsonl(tmp_path / "in.jsonl", [{"other": 1}, {"other": 2}])
    command = ["--home", str(tmp_path), "--no-plugins", "batch", str(source)]
    command += ["-o", str(tmp_path / "out.jsonl"), "--model", str(folder)]
    assert main(command) == 1
    assert "0 answered, 2 failed" in capsys.readouterr().out


def test_the_command_puts_on_any_adapter(tmp_path, capsys):
    """A path may hold a ``=``; alpha is for those that record none."""
    from glmkit.cli import main
    from glmkit.runtime.loading import load_local

    folder = tiny_checkpoint(tmp_path / "tiny", layout="chatglm3")
    adapter = tiny_adapters.lora(load_local(folder), scale=8.0)
    recorded = tiny_adapters.written(tmp_path / "lr=1e-4", adapter)
    raw = tiny_adapters.write(tmp_path / "raw", tiny_adapters.tensors_of(adapter), file="raw.pt")
    rows = [{"prompt": "abc", "who": who} for who in ("lr=1e-4", "raw", "")]
    source = jsonl(tmp_path / "in.jsonl", rows)
    command = ["--home", str(tmp_path), "--no-plugins", "batch", str(source)]
    command += ["-o", str(tmp_path / "out.jsonl"), "--model", str(folder), "--max-tokens", "8"]
    command += ["--adapter-column", "who", "--temperature", "0", "--adapter-alpha", "32"]
    assert main([*command, "--adapter", str(recorded), "--adapter", f"raw={raw / 'raw.pt'}"]) == 0
    capsys.readouterr()
    found = sorted(written(tmp_path / "out.jsonl"), key=lambda each: each[KEY]["index"])
    first, second, base = (each["response"] for each in found)
    assert first == second != base
