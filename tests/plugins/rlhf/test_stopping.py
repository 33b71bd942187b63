"""What stops a run of PPO and GRPO, and what it says: rewards and judges that refuse answers."""

import json
import re
from pathlib import Path

import pytest
from online_runs import config_of, run, write_prompts

from glmkit.errors import BadStepError, CheckpointError, DataError, UsageError
from glmkit.training.configs import LoraConfig, tuning_of
from glmkit.training.written import Written
from glmkit_rlhf.gathering import gathered
from glmkit_rlhf.rewards import Weighted
from glmkit_rlhf.rounds import Rounds
from glmkit_rlhf.writing import Question, Writer

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp("data"))


NEVER = "\ndef never(answer, *, question, row):\n    return float('nan')\n"
HELD = "\ndef held(answer, *, question, row):\n    return float(row.get('worth', 0.5))\n"


def with_reward(tmp_path, code):
    data = write_prompts(tmp_path)
    with (tmp_path / "rewards.py").open("a") as file:
        file.write(code)
    return data


def test_each_row_is_named_once_and_the_advice_can_be_followed(base, tmp_path, app):
    data = with_reward(tmp_path, NEVER)
    with pytest.raises(BadStepError) as told:
        run("grpo", base, data, tmp_path / "out", app=app, reward="never", max_steps=1)
    said = str(told.value)
    rows = re.findall(r"line (\d+): ", said)
    assert len(rows) == len(set(rows)) == 4, said
    assert said.count("(4 answers)") == 4
    assert "correct the reward and go on with --resume" in said


def test_a_reward_that_fails_while_it_is_evaluated_keeps_the_model(base, tmp_path, app):
    data = with_reward(tmp_path, HELD)
    aside = tmp_path / "held.jsonl"
    aside.write_text(json.dumps({"prompt": "say 1", "worth": "nan"}))
    more = {"eval_data": (str(aside),), "eval_steps": 2, "max_steps": 3, "reward": "held"}
    with pytest.raises(
        BadStepError, match="(?s)held.jsonl, line 1: .* checkpoint-2 holds the model"
    ):
        run("grpo", base, data, tmp_path / "out", app=app, **more)
    assert (tmp_path / "out" / "checkpoint-2" / "adapter_model.safetensors").is_file()


def prompts_aside(folder, *sizes):
    aside = folder / "aside.jsonl"
    rows = [json.dumps({"prompt": "x" * size}) for size in sizes]
    aside.write_text("\n".join(rows))
    return {"eval_data": (str(aside),), "eval_steps": 1, "max_steps": 1}


def test_prompts_of_an_evaluation_that_do_not_fit_are_told(base, data, tmp_path, app):
    done = run("grpo", base, data, tmp_path / "out", app=app, **prompts_aside(tmp_path, 3, 99))
    assert any(
        "1 prompts to evaluate on; 1 are left out, for example aside.jsonl, line 2" in each
        for each in done.notes
    ), done.notes
    with pytest.raises(DataError, match="no prompt to evaluate on can be answered: aside.jsonl"):
        run("grpo", base, data, tmp_path / "none", app=app, **prompts_aside(tmp_path, 99))


def test_a_reward_too_large_for_single_precision_is_none(base, tmp_path, app):
    data = with_reward(tmp_path, "\ndef huge(answer, *, question, row):\n    return 1e200\n")
    with pytest.raises(BadStepError, match=r"line \d: all rewards together are 1e\+200"):
        run("grpo", base, data, tmp_path / "out", app=app, reward="huge", max_steps=1)


@pytest.mark.parametrize("more", [{"early_stopping": 1}, {}])
def test_evaluations_lie_between_rounds(more, base, data, tmp_path):
    settings = {"minibatches": 2, "val_size": 2, "eval_steps": 3, **more}
    with pytest.raises(UsageError, match="eval_steps 3 is no multiple of the 2 steps .* give 4"):
        config_of("grpo", base, data, tmp_path / "out", **settings)


class Unread:
    """A judge that can read no answer of some rows."""

    def __call__(self, pairs):
        return ["no room" if question.prompt.where.endswith("2") else 1.0 for question, _ in pairs]


def test_a_judge_that_refuses_an_answer_stops_all_processes_together(monkeypatch):
    from glmkit.dataset.prompts import Prompt
    from glmkit.tables.files import Place
    from glmkit.types import Message

    asked = []

    def together(own):
        asked.append(own)
        return gathered(own)

    monkeypatch.setattr("glmkit_rlhf.writing.gathered", together)
    said = (Message("user", "?"),)
    questions = [Question(Prompt(said, "", {}, "p", Place(at)), (1,)) for at in (1, 2)]
    shape = Rounds(prompts=2, generations=1, batch_size=2, accumulation=1)
    rewards = [Weighted("r", 1.0, lambda answer, *, question, row: 0.0)]
    writer = Writer(None, questions, shape, rewards, None, 4, judge=Unread())
    pairs = [(each, Written([1], "a", True)) for each in questions]
    with pytest.raises(BadStepError, match="p, line 2: the reward model cannot read .* no room"):
        writer._rewarded(pairs)
    assert len(asked) == 1  # both processes come here, so neither waits for the other


def test_prompts_that_the_judge_cannot_read_are_named_before_anything_is_loaded(
    base, tmp_path, app, monkeypatch
):
    from test_sides import reward_run

    judge = str(reward_run(base, Path(tmp_path / "judge"), max_length=48))
    rows = [{"prompt": "why" * (1 if at % 3 else 12)} for at in range(12)]
    data = write_prompts(tmp_path)
    data.write_text("\n".join(map(json.dumps, rows)))
    more = {"app": app, "reward_model": judge, "max_steps": 1, "max_length": 128}
    loaded = []
    monkeypatch.setattr("glmkit.training.run.load_local", lambda *a, **b: loaded.append(a))
    with pytest.raises(DataError) as told:
        run("grpo", base, data, tmp_path / "out", **more)
    said = str(told.value)
    assert "cannot read 4 of 12 prompts" in said and "--skip-bad" in said and not loaded
    assert re.findall(r"prompts.jsonl, line (\d+): a question leaves no room", said) == [
        *("1", "4", "7", "10")
    ]
    assert not (tmp_path / "out" / "run.json").exists()
    monkeypatch.undo()
    done = run("grpo", base, data, tmp_path / "out", skip_bad=True, **more)
    assert any("8 prompts; " in each and "4 are left out" in each for each in done.notes)
    (tmp_path / "held.jsonl").write_text(json.dumps(rows[0]))
    data.write_text(json.dumps(rows[1]))
    with pytest.raises(DataError, match="cannot read 1 of 1 prompts"):
        run("ppo", base, data, tmp_path / "x", eval_data=(str(tmp_path / "held.jsonl"),), **more)


def test_all_weights_cannot_begin_with_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    config = LoraConfig(model="x", data=("x",), output="x")
    with pytest.raises(
        CheckpointError, match="glmkit adapters merge MODEL .* train --model MERGED"
    ):
        tuning_of(config, "full").load(tmp_path)
