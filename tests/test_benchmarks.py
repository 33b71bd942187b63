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
    found = bench("sections").take_turns(ways, 3)
    assert order == list("abcbcacab")
    assert found == {name: [1.0] * 3 for name in "abc"}


def test_questions_are_there_without_any_data(bench, tmp_path):
    texts, where = bench("prompts").prompts(240, tmp_path)
    assert (len(set(texts)), where) == (240, "own")


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
