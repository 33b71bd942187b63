"""The benchmarks' own parts: what they record, and that the one for cards runs at all."""

import importlib
import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("one_thread")
FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """Import a file of the benchmarks, as its siblings do."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_ratios_are_taken_within_rounds_and_above_one_is_better(bench, tmp_path, capsys):
    record = bench("record").Record(settings={})
    record.add("speed", {"glmkit": [10.0, 30.0, 40.0], "other": [5.0, 10.0, 40.0]}, "tokens/s")
    record.add("delay", {"glmkit": [1.0, 2.0], "other": [3.0, 4.0]}, "s to the first token")
    assert record.ratios["speed"]["other"] == {"median": 2.0, "least": 1.0, "most": 3.0}
    assert record.ratios["delay"]["other"] == {"median": 2.5, "least": 2.0, "most": 3.0}
    assert "glmkit 2.00x (1.00 to 3.00)" in capsys.readouterr().out
    told = json.loads(record.write(tmp_path / "out" / "a.json").read_text("utf-8"))
    assert told["results"]["speed"]["other"] == [5.0, 10.0, 40.0]
    assert str(Path.home()) not in json.dumps(told) and str(FOLDER) not in json.dumps(told)


def test_everyone_takes_a_turn_in_each_round(bench):
    order = []
    ways = {name: lambda name=name: order.append(name) or 1.0 for name in "abc"}
    found = bench("sections").take_turns(ways, 3, {})
    assert order == list("abcbcacab")
    assert found == {name: [1.0] * 3 for name in "abc"}


def test_who_ends_on_the_way_is_absent_and_the_others_go_on(bench, tmp_path):
    program = tmp_path / "ends.py"
    program.write_text(
        "import sys\nprint('{}', flush=True)\ninput()\nprint('1.5', flush=True)\ninput()\n"
        "sys.exit('the memory ran out')"
    )
    worker, absent = bench("worker").Worker(str(program)), {}
    ways = {"ends": lambda: worker.ask("it"), "stays": lambda: 1.0, "never": None}
    absent["never"] = "not here"
    found = bench("sections").take_turns(ways, 3, absent)
    assert found == {"ends": [1.5], "stays": [1.0] * 3}
    assert absent == {"never": "not here", "ends": "the memory ran out"}
    contenders = bench("contenders")
    record = bench("record").Record(settings={})
    with contenders.Contenders(tmp_path, tmp_path, record, openvino="none") as running:
        running._running["glmkit"] = worker
        assert running.running("glmkit") == {}
        with pytest.raises(bench("worker").AbsentError, match="the memory ran out"):
            running.ours()


def test_no_prompt_begins_as_another_does(bench, tmp_path, monkeypatch):
    contenders = bench("contenders")
    running = contenders.Contenders(tmp_path, tmp_path, None, openvino="none")
    monkeypatch.setattr(running, "prompt", lambda messages: messages[0]["content"])
    made = running.prompts(["a"] * 256) + running.prompts(["a"] * 3)
    assert len({each.partition(":")[0] for each in made}) == 259


def test_figures_of_other_prompts_are_refused(bench):
    check = bench("sections")._check_length
    check(46, [20, 26])
    check(48, [20, 26])
    for seen in (45, 49):
        with pytest.raises(ValueError, match="46 tokens"):
            check(seen, [20, 26])


def test_questions_are_there_without_any_data(bench, tmp_path):
    texts, where = bench("prompts").prompts(256, tmp_path)
    assert (len(set(texts)), where) == (256, "own")


def test_a_contender_that_is_not_installed_is_absent(bench, monkeypatch):
    worker = bench("worker")
    with pytest.raises(worker.AbsentError, match="No such file"):
        worker.Worker("with_openvino.py", python="/nowhere/python")
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(worker.AbsentError):
        worker.Worker("with_openvino.py", gguf="absent.gguf")


def test_the_benchmark_of_cards_refuses_without_one_and_runs_small(bench, tmp_path, capsys):
    import torch

    gpu = bench("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="no CUDA device"):
            gpu.main([])
    out = tmp_path / "out.json"
    given = ["--device", "cpu", "--shape", "tiny", "--dtype", "float32", "--no-peer"]
    gpu.main([*given, "--folder", str(tmp_path), "--out", str(out)])
    results = json.loads(out.read_text("utf-8"))["results"]
    for name in ("1 rows", "3 rows", "3 rows, int4", "a prompt of 32"):
        assert len(results[name]["glmkit"]) == 3 and min(results[name]["glmkit"]) > 0
    # What a step reads, in integers: a quarter of the bytes, or 5 bits of 32.
    floors = [results[f"one row, {each}"]["floor"][0] for each in ("float32", "int8", "int4")]
    assert floors[0] / floors[1] == pytest.approx(4, rel=1e-3)
    assert floors[0] / floors[2] == pytest.approx(6.4, rel=1e-3)
    assert list(tmp_path.iterdir()) == [out]  # the weights are gone
