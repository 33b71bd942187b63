import os
import tracemalloc
from dataclasses import replace

import pytest
import tiny_adapters
from batch_parts import jsonl, ran, written

from glmkit.batch.job import Job, run_job
from glmkit.batch.journal import KEY
from glmkit.batch.rows import Reading
from glmkit.console import drain
from glmkit.errors import GlmkitError, UsageError
from glmkit.testing import EchoModel, tiny_glm
from glmkit.types import GenerationOptions, Message


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
