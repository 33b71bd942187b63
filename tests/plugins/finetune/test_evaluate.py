"""``glmkit evaluate`` with tiny models, with an adapter and without."""

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny_adapters
from chat_server import Act, whole
from click.testing import CliRunner

import glmkit_finetune
from glmkit.errors import GlmkitError
from glmkit.evaluation import contents
from glmkit.models.tiny import tiny_checkpoint
from glmkit.testing import make_app
from glmkit.training import measuring
from glmkit.types import GenerationOptions, Message
from glmkit_finetune.evaluate import evaluate

QUICK = ("--max-new-tokens", "6", "--metrics", "loss,exact")


@pytest.fixture
def app(tmp_path):
    return make_app(tmp_path / "home", finetune=glmkit_finetune)


@pytest.fixture(scope="module")
def model(tmp_path_factory, one_thread) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", layout="chatglm3", seed=5)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, model) -> Path:
    from glmkit.runtime.loading import load_local

    made = tiny_adapters.lora(load_local(model), scale=3.0, seed=1)
    return tiny_adapters.written(tmp_path_factory.mktemp("adapters") / "lora", made)


@pytest.fixture
def data(tmp_path) -> Path:
    rows = [
        {"instruction": f"Say {word}", "input": "", "output": word}
        for word in ("one", "two", "three", "four", "five")
    ]
    rows[2]["history"] = [["Hello", "Hi"]]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture
def run(app, tmp_path):
    """Return a function that runs the command; what it raises is raised."""

    def run(*args, out="out"):
        folder = tmp_path / out
        every = [*map(str, args), "-o", str(folder)]
        done = CliRunner().invoke(evaluate, every, obj=app, catch_exceptions=False)
        return done, folder

    return run


def rows_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_model_alone(run, model, data, app):
    done, folder = run("--model", model, "--data", data, "--max-new-tokens", "6")
    assert done.exit_code == 0
    rows = rows_of(folder / "generated_predictions.jsonl")
    assert [each["label"] for each in rows] == ["one", "two", "three", "four", "five"]
    assert rows[0]["prompt"] == "Say one" and "history" not in rows[0]
    assert [each["content"] for each in rows[2]["history"]] == ["Hello", "Hi"]
    greedy = GenerationOptions(max_tokens=6, temperature=0)
    said = app.load_model(str(model)).reply([Message("user", "Say one")], greedy)
    assert rows[0]["predict"] == said.text
    kept = json.loads((folder / "evaluation.json").read_text("utf-8"))
    assert kept["samples"] == 5 and set(kept["model"]) >= {"loss", "rouge-l", "bleu-4", "exact"}
    for name in ("loss", "perplexity", "bleu-4", "rouge-1", "exact"):
        assert f"\n{name}" in done.stdout


def test_the_loss_is_that_of_the_answers_alone(run, model, tmp_path):
    """One row, against cross-entropy by hand."""
    import torch

    from glmkit.models.formats import encode
    from glmkit.runtime.loading import load_local

    data = tmp_path / "one.jsonl"
    data.write_text(json.dumps({"prompt": "Say one", "response": "one"}), encoding="utf-8")
    done, _ = run("--model", model, "--data", data, "--metrics", "loss", "--json")
    local = load_local(model)
    before = local._renderer.pieces([Message("user", "Say one")])
    pieces = local._renderer.format.answer(Message("assistant", "one"))
    prompt, answer = (encode(each, local.tokenizer) for each in (before, pieces))
    answer.append(local.tokenizer.special("<|user|>"))
    scores = local.logits(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
    wanted = torch.nn.functional.cross_entropy(scores, torch.tensor(answer))
    assert json.loads(done.stdout)["model"]["loss"] == pytest.approx(float(wanted), abs=1e-4)


def test_with_an_adapter_both_are_measured(run, model, adapter, data):
    done, folder = run("--model", model, "--adapter", adapter, "--data", data, *QUICK, "--json")
    found = json.loads(done.stdout)
    assert found["base"]["loss"] != found["tuned"]["loss"]
    gap = found["difference"]["loss"]
    assert gap["value"] == pytest.approx(found["tuned"]["loss"] - found["base"]["loss"])
    assert gap["low"] <= gap["value"] <= gap["high"]
    base, tuned = (
        [each["predict"] for each in rows_of(folder / name)]
        for name in ("base_predictions.jsonl", "generated_predictions.jsonl")
    )
    assert base != tuned
    alone, _ = run("--model", model, "--data", data, *QUICK, "--json", out="alone")
    assert json.loads(alone.stdout)["model"]["loss"] == pytest.approx(found["base"]["loss"])


def test_the_adapter_alone(run, model, adapter, data):
    args = ("--model", model, "--adapter", adapter, "--data", data, *QUICK, "--json")
    both, alone = (
        json.loads(run(*args)[0].stdout),
        json.loads(run(*args, "--alone", out="b")[0].stdout),
    )
    assert alone["model"]["loss"] == pytest.approx(both["tuned"]["loss"])
    assert "difference" not in alone


def test_two_models_are_compared(run, model, data, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", layout="chatglm3", seed=6)
    done, _ = run("--model", other, "--base", model, "--data", data, *QUICK)
    head = done.stdout.splitlines()[0]
    assert "base" in head and "tuned" in head and "difference" in head
    assert "perplexity" in done.stdout and "(x" in done.stdout


def test_losses_of_other_vocabularies_are_not_compared(run, model, data, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", layout="chatglm", seed=6)
    done, _ = run("--model", other, "--base", model, "--data", data, *QUICK, "--json")
    assert set(json.loads(done.stdout)["difference"]) == {"exact"}


def test_an_interrupted_run_goes_on(run, model, data, app, monkeypatch):
    from glmkit.batch import journal

    write, done_before = journal.Journal.write, []

    def torn(self, index, row):
        if len(done_before) == 2:
            raise KeyboardInterrupt
        done_before.append(index)
        write(self, index, row)

    monkeypatch.setattr(journal.Journal, "write", torn)
    args = ("--model", model, "--data", data, "--metrics", "exact", "--max-new-tokens", "6")
    assert run(*args)[0].exit_code == 1
    monkeypatch.undo()
    asked = []
    monkeypatch.setattr(
        journal.Journal,
        "write",
        lambda self, index, row: (asked.append(index), write(self, index, row)),
    )
    _, folder = run(*args)
    assert asked == [2, 3, 4]
    rows = rows_of(folder / "generated_predictions.jsonl")
    monkeypatch.undo()
    _, fresh = run(*args, out="fresh")
    assert [each["predict"] for each in rows] == [
        each["predict"] for each in rows_of(fresh / "generated_predictions.jsonl")
    ]


def test_another_run_does_not_write_into_the_same_file(run, model, adapter, data):
    args = ("--model", model, "--data", data, "--metrics", "exact")
    run(*args, "--max-new-tokens", "4")
    with pytest.raises(GlmkitError, match="another max_tokens"):
        run(*args, "--max-new-tokens", "5")
    with pytest.raises(GlmkitError, match="another.*adapter"):
        run(*args, "--max-new-tokens", "4", "--adapter", adapter, "--alone")


def test_predictions_of_what_lay_there_before_are_not_taken(run, model, adapter, data, tmp_path):
    """The same paths, other weights: an adapter that was trained again, then another model."""
    base, worn = tmp_path / "base", tmp_path / "worn"
    shutil.copytree(model, base)
    shutil.copytree(adapter, worn)
    args = ("--model", base, "--adapter", worn, "--data", data, "--limit", "1", "--alone")
    args += ("--metrics", "exact", "--max-new-tokens", "2")
    run(*args)
    before = (tmp_path / "out" / "generated_predictions.jsonl").read_bytes()
    run(*args)
    from glmkit.runtime.loading import load_local

    tiny_adapters.written(worn, tiny_adapters.lora(load_local(model), scale=3.0, seed=2))
    with pytest.raises(GlmkitError, match="another state of the adapter"):
        run(*args)
    assert (tmp_path / "out" / "generated_predictions.jsonl").read_bytes() == before
    shutil.copytree(adapter, worn, dirs_exist_ok=True)
    for file in tiny_checkpoint(tmp_path / "new", layout="chatglm3", seed=6).iterdir():
        shutil.copy(file, base)
    with pytest.raises(GlmkitError, match="another state of the model"):
        run(*args)


def test_a_large_file_is_told_by_its_beginning_and_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "_WHOLE", 10)
    (tmp_path / "checkpoint-1").mkdir()
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(20))
    os.utime(file, ns=(1, 1))
    before = contents.state_of(tmp_path)
    (tmp_path / "trainer_log.jsonl").write_text("{}")
    assert contents.state_of(tmp_path) == before != ""
    os.utime(file, ns=(2, 2))
    assert contents.state_of(tmp_path) != before
    assert contents.state_of(tmp_path / "absent") == ""


def test_rows_without_an_answer_are_told(run, model, tmp_path):
    data = tmp_path / "long.jsonl"
    rows = [{"prompt": "hi", "response": "a"}, {"prompt": "x" * 3000, "response": "b"}]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    args = ("--model", model, "--data", data, "--metrics", "exact", "--max-new-tokens", "3")
    done, folder = run(*args)
    assert "1 samples have no answer" in done.stdout
    last = rows_of(folder / "generated_predictions.jsonl")[1]
    assert last["predict"] is None and "3" in last["error"]


def test_the_first_samples_only(run, model, data):
    """The names of flags may have underscores, as people know them."""
    args = ("--prompt_column", "instruction", "--response_column", "output", "--query_column")
    args += ("input", "--max_new_tokens", "6", "--metrics", "loss,exact")
    done, folder = run("--model", model, "--data", data, "--limit", "2", *args, "--json")
    assert json.loads(done.stdout)["samples"] == 2
    assert len(rows_of(folder / "generated_predictions.jsonl")) == 2


def test_a_system_message_reaches_loss_and_answers(run, model, data):
    args = ("--model", model, "--data", data, *QUICK, "--json")
    plain, _ = run(*args)
    told, folder = run(*args, "--system", "Shout!", out="told")
    assert json.loads(plain.stdout)["model"]["loss"] != json.loads(told.stdout)["model"]["loss"]
    assert rows_of(folder / "generated_predictions.jsonl")[0]["history"][0]["content"] == "Shout!"


def test_a_forgetting_report(run, model, adapter, monkeypatch):
    monkeypatch.setattr(measuring, "LONGEST_GENERAL", 8)
    done, folder = run("--model", model, "--adapter", adapter, "--forgetting")
    assert "general questions" in done.stdout and "general texts" in done.stdout
    kept = json.loads((folder / "evaluation.json").read_text("utf-8"))["forgetting"]
    assert kept["questions"] >= 40 and kept["changed"] > 0.5 and kept["perplexity_ratio"] != 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "nothing to measure on"),
        (("--forgetting",), "give --adapter, or --base"),
        (("--data", "x", "--alone"), "--alone leaves out"),
        (("--data", "x", "--adapter", "a", "--base", "b"), "leave --base out"),
        (("--data", "x", "--metrics", "blue"), "unknown metric 'blue'; did you mean 'bleu'"),
        (("--data", "no-such-file"), "there is no data 'no-such-file'"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(run, args, says, tmp_path):
    with pytest.raises(GlmkitError, match=says):
        run(*args)
    assert not (tmp_path / "out").exists()


@pytest.mark.network
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_model_elsewhere_is_asked_for_answers_only(run, server, data):
    server.always = lambda body: Act(body=whole(body["messages"][-1]["content"][4:]))
    args = ("--base-url", server.url, "--data", data, "--max-new-tokens", "9")
    done, _ = run(*args, "--metrics", "exact", "--json")
    assert json.loads(done.stdout)["model"] == {"exact": 100.0, "unanswered": 0}
    with pytest.raises(GlmkitError, match="its loss cannot be measured"):
        run(*args, "--metrics", "loss", out="loss")
