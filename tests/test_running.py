"""What changes while answers are running: adapters, cancellations, threads."""

import threading

import pytest
import torch
from tiny_adapters import config_of, lora, tensors_of, write

from glmkit import GenerationOptions, UsageError
from glmkit.errors import CheckpointError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.decode import columns
from glmkit.runtime.loading import load_local
from glmkit.runtime.reuse import Kept
from glmkit.runtime.rows import Row
from glmkit.types import Ask

PROMPT = [7, 30, 200, 11] * 8
QUESTION = [{"role": "user", "content": "hello, who are you and what can you do?"}]
GREEDY = GenerationOptions(max_tokens=8, temperature=0)


def dressed(folder, *names):
    model = load_local(folder, dtype="float32")
    for at, name in enumerate(names, 1):
        model._adapters.add(name, lora(model, seed=at, scale=6.0))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def test_switching_adapters_does_not_reach_running_answers(folder):
    model = dressed(folder, "a", "b")
    known = {name: dressed(folder, "a", "b").generate_ids(PROMPT, 8, adapter=name) for name in "ab"}
    assert known["a"] != known["b"]
    model.set_adapter("a")
    steps = model._decode([Row(PROMPT, 8)], slots=1)
    rows = [next(steps)[0] for _ in range(3)]
    model.set_adapter("b")
    assert model.generate_ids(PROMPT, 8) == known["b"]
    for _ in steps:
        pass
    assert rows[0].new == known["a"]
    assert model.generate_ids(PROMPT, 8) == known["b"]


def test_an_answer_closed_after_a_switch_leaves_nothing_to_the_others(folder):
    model = dressed(folder, "a", "b")
    plain = dressed(folder, "a", "b").generate_ids(PROMPT, 8, adapter="b")
    model.set_adapter("a")
    steps = model._decode([Row(PROMPT, 8)], slots=1)
    next(steps)
    model.set_adapter("b")
    steps.close()
    assert model.generate_ids(PROMPT, 8) == plain


def test_an_adapter_loaded_under_a_running_answer(folder):
    plain = load_local(folder, dtype="float32").generate_ids(PROMPT, 8)
    worn = dressed(folder, "a").generate_ids(PROMPT, 8, adapter="a")
    model = load_local(folder, dtype="float32")
    later = []

    def rows():
        yield Row(PROMPT, 8)
        model._adapters.add("a", lora(model, seed=1, scale=6.0))
        model.set_adapter("a")
        later.append(Row(PROMPT, 8, adapter="a"))
        yield later[0]

    first = None
    for column in model._decode(rows(), slots=1):
        first = first or column[0]
    assert first.new == plain
    assert later[0].new == worn
    model.unload_adapter("a")
    assert model.generate_ids(PROMPT, 8) == plain


def test_what_a_running_answer_wears_stays(folder):
    model = dressed(folder, "a", "b")
    steps = model._decode([Row(PROMPT, 8, adapter="a")], slots=1)
    next(steps)
    with pytest.raises(UsageError, match="running"):
        model.unload_adapter("a")
    model.set_adapter("b")
    with pytest.raises(UsageError, match="running"):
        model.merge_adapter()
    steps.close()
    model.unload_adapter("a")
    assert set(model.adapters) == {"b"}


def test_threads_get_their_own_answers(folder):
    model = dressed(folder, "a", "b")
    names = ["a", "b", {}]
    known = [dressed(folder, "a", "b").generate_ids(PROMPT, 8, adapter=each) for each in names]
    wrong = []

    def ask(at):
        for _ in range(10):
            if model.generate_ids(PROMPT, 8, adapter=names[at]) != known[at]:
                wrong.append(at)

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong
    assert [model.generate_ids(PROMPT, 8, adapter=each) for each in names] == known


def test_scores_that_are_no_numbers_leave_nothing_behind(folder):
    model = load_local(folder, dtype="float32").model
    kept = Kept(1 << 30)
    steps = columns(model, [Row(PROMPT, 8)], kept=kept)
    next(steps)
    weight = model.transformer.encoder.final_layernorm.weight
    sound = weight.clone()
    weight.data.fill_(float("nan"))
    (row,) = next(steps)
    assert isinstance(row.error, CheckpointError)
    assert "not numbers" in str(row.error)
    assert list(steps) == []
    weight.data.copy_(sound)
    assert len(kept) == 0


def test_an_unknown_adapter_is_the_error_of_its_row(folder):
    model = dressed(folder, "a")
    choices = ["a", "absent", {}]
    asked = [
        Ask(at, QUESTION, GenerationOptions(max_tokens=4, temperature=0, adapter=each))
        for at, each in enumerate(choices)
    ]
    found = dict(model.answers(asked, concurrency=3))
    assert "unknown adapter" in str(found[1])
    alone = GenerationOptions(max_tokens=4, temperature=0, adapter={})
    assert found[2].text == model.reply(QUESTION, alone).text


def test_many_rows_are_kept_and_found_in_bounded_time():
    kept = Kept(1 << 30)
    kv = [torch.zeros(2, 20, 4)]
    for at in range(2000):
        kept.add([*range(16), at, 5, 6, 7], None, kv)
    assert len(kept) == 256
    assert kept.bytes == 256 * 2 * 20 * 4 * 4


def test_adapters_are_chosen_in_every_usual_way(folder):
    model = dressed(folder, "a", "b")
    model.set_adapter(["a", "b"])
    assert model.active_adapters == {"a": 1.0, "b": 1.0}
    model.set_adapter(["b"])
    assert model.active_adapters == {"b": 1.0}
    for wrong in (5, [1], {"a": "much"}):
        with pytest.raises(UsageError):
            model.set_adapter(wrong)


def test_chat_puts_several_adapters_on(folder, tmp_path, capsys):
    from glmkit.cli import main

    model = load_local(folder, dtype="float32")
    for at, name in enumerate("ab", 1):
        write(tmp_path / name, tensors_of(lora(model, seed=at, scale=6.0)), config_of(lora(model)))
    chat = ["--home", str(tmp_path), "--no-plugins", "run", "chat", "--model", str(folder)]
    chat += ["--ask", "hello", "--max-tokens", "12", "--temperature", "0", "--dtype", "float32"]
    said = []
    for more in ("a", "b", "a b", "a b 1 0", "a b 0.7 0.3"):
        names, weights = more.split()[:2], more.split()[2:]
        given = [each for name in names if name in "ab" for each in ("--adapter", tmp_path / name)]
        given += [each for weight in weights for each in ("--adapter-weight", weight)]
        assert main([*chat, *map(str, given)]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[3]
    assert len(set(said)) == 4
    assert main([*chat, "--adapter", str(tmp_path / "a"), "--adapter-weight", "1", *[]]) == 0
    assert main([*chat, "--adapter-weight", "1"]) == 2
