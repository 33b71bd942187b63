"""PPO and GRPO on tiny checkpoints: they learn what is rewarded, resume exactly, and stop."""

import json
import shutil
from collections import deque

import pytest
import torch
from online_runs import config_of, run, write_prompts
from safetensors.torch import load_file

from glmkit.errors import BadStepError, UsageError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.loading import load_local
from glmkit.training.state import TrainerState
from glmkit_finetune.aliases import aliases_of, translated
from glmkit_finetune.settings import settings_of
from glmkit_rlhf.grpo import Grpo, GrpoConfig
from glmkit_rlhf.online_task import draw_curves
from glmkit_rlhf.ppo import PpoConfig
from glmkit_rlhf.reward import RewardConfig, reward

pytestmark = pytest.mark.usefixtures("quick")
RECIPES = ("grpo", "ppo")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp("data"))


def mean(values):
    return sum(values) / len(values)


LEARNING = {
    "grpo": {"max_steps": 10, "batch_size": 16, "generations": 8, "learning_rate": 5e-2},
    "ppo": {"max_steps": 26, "batch_size": 16, "learning_rate": 6e-2},
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_reward_rises(name, base, data, tmp_path, app):
    found = run(name, base, data, tmp_path / "out", app=app, **LEARNING[name]).of("reward")
    assert mean(found[:2]) < 0.3
    assert mean(found[-4:]) > 0.8, found


def test_a_shuffled_reward_does_not_rise(base, data, tmp_path, app):
    settings = {"app": app, "shuffle_rewards": True, **LEARNING["grpo"]}
    found = run("grpo", base, data, tmp_path / "out", **settings).of("reward")
    assert mean(found[-4:]) < 0.3, found


@pytest.mark.parametrize("layout", ["chatglm", "chatglm2", "chatglm3", "glm4-9b"])
def test_every_layout_goes_through_both(layout, data, tmp_path, app):
    base = tiny_checkpoint(tmp_path / "base", layout=layout)
    for name in RECIPES:
        more = {"beta": 0.1} if name == "grpo" else {"tuning": "full", "kl_coef": 0.1}
        done = run(name, base, data, tmp_path / name, app=app, max_steps=2, **more)
        assert len(done.losses) == 2 and done.of("kl")[0] == pytest.approx(0, abs=1e-4)
        assert done.of("length")[0] <= 4
        if name == "grpo":
            load_local(base, dtype="float32", adapter=done.out)
        else:
            load_local(done.out)
            assert (done.out / "value_head.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("grpo", {"minibatches": 2, "beta": 0.05}),
        ("ppo", {"kl_coef": 0.1, "kl_target": 2.0, "kl_horizon": 50, "tuning": "full"}),
    ],
)
def test_a_resumed_run_goes_on_exactly(name, more, base, data, tmp_path, app):
    settings = {**more, "max_steps": 4, "save_steps": 2, "save_total_limit": 0, "app": app}
    whole = run(name, base, data, tmp_path / "out", **settings)
    shutil.rmtree(whole.out / "checkpoint-4")
    rest = run(name, base, data, whole.out, **settings, resume=True)
    assert rest.losses == whole.losses[2:]
    assert rest.metrics == whole.metrics[2:]


def test_a_reward_that_is_no_number_stops_the_run_and_names_the_rows(base, data, tmp_path, app):
    with pytest.raises(BadStepError) as told:
        run("grpo", base, data, tmp_path / "out", app=app, reward="breaks", max_steps=30)
    said = str(told.value)
    assert "prompts.jsonl, line 4: the reward" in said and ":breaks is nan for the answer" in said
    kept = max((tmp_path / "out").glob("checkpoint-*"), key=lambda each: int(each.name[11:]))
    assert f"{kept.name} holds the model as it was before" in said
    assert load_file(kept / "adapter_model.safetensors")


def test_held_out_prompts_are_answered_and_rewarded(base, data, tmp_path, app):
    kept = []
    config = config_of("grpo", base, data, tmp_path / "out", val_size=2, eval_steps=1, max_steps=2)
    for line in Grpo(app).run(config):
        kept += [line.metrics] if "eval_reward" in line.metrics else []
    assert len(kept) == 2
    for each in kept:
        assert each["eval_loss"] == -each["eval_reward"] and each["eval_length"] <= 4


def test_a_reward_model_rewards_answers(base, data, tmp_path, app):
    pairs = tmp_path / "pairs.jsonl"
    rows = ({"prompt": f"say {at}", "chosen": "yes", "rejected": f"no {at}"} for at in range(4))
    pairs.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    told = {"model": str(base), "data": (str(pairs),), "output": str(tmp_path / "judge")}
    deque(reward.run(RewardConfig(**told, max_steps=2, report_to=(), learning_rate=1e-2)))
    done = run(
        *("grpo", base, data, tmp_path / "out"),
        app=app,
        max_steps=1,
        reward_model=str(tmp_path / "judge"),
        reward_weights=("0.5", "2"),
    )
    (found,) = done.metrics
    names = [each for each in found if each.startswith("reward_") and each != "reward_std"]
    assert "reward_model" in names and len(names) == 2
    parts = 2 * found["reward_model"] + 0.5 * found[next(n for n in names if n != "reward_model")]
    assert found["reward"] == pytest.approx(parts, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "more", "measured"),
    [
        ("ppo", {"kl_every": 2}, [0, 1, 4, 5]),  # two steps of each round
        ("grpo", {}, [0]),
        ("grpo", {"tuning": "full"}, []),  # no copy of all weights is made for it
        ("grpo", {"tuning": "full", "kl_every": 1}, [0, 1, 2]),
    ],
)
def test_a_divergence_that_does_not_count_is_measured_now_and_then(
    name, more, measured, base, data, tmp_path, app
):
    done = run(
        name, base, data, tmp_path / "out", app=app, max_steps=6 if name == "ppo" else 3, **more
    )
    assert [at for at, each in enumerate(done.metrics) if "kl" in each] == measured
    found = [each["kl"] for each in done.metrics if "kl" in each]
    assert not found or (found[0] == pytest.approx(0, abs=1e-5) and found[-1] >= found[0])


def test_measuring_the_divergence_changes_nothing(base, data, tmp_path, app):
    runs = [
        run("grpo", base, data, tmp_path / str(at), app=app, max_steps=3, kl_every=at)
        for at in (0, 1)
    ]
    assert runs[0].losses == runs[1].losses
    assert runs[1].of("kl")[-1] > 1e-4


def test_pictures_of_a_run(tmp_path, monkeypatch):
    drawn = {}

    def draw(curves, file, *, title, label):
        drawn[file.name] = {name: each for name, each in curves.items() if each}, label

    monkeypatch.setattr("glmkit.training.plots.draw", draw)
    figures = {"reward": 0.1, "kl": 0.2, "length": 5, "reward_std": 1}
    history = [{"step": at, **figures} for at in (1, 2)]
    TrainerState(log_history=[*history, {"step": 2, "eval_reward": 0.5}]).write(tmp_path)
    draw_curves(tmp_path)
    assert drawn.keys() == {f"training_{name}.png" for name in ("reward", "kl", "length")}
    curves, label = drawn["training_reward.png"]
    told = {"reward": [(1, 0.1), (2, 0.1)], "eval_reward": [(2, 0.5)]}
    assert told.items() <= curves.items()
    assert label == "reward of an answer"


def test_all_weights_learn_beside_a_copy_of_the_first(base, data, tmp_path, app):
    done = run(
        "grpo",
        base,
        data,
        tmp_path / "out",
        app=app,
        tuning="full",
        beta=0.1,
        max_steps=3,
        learning_rate=2e-3,
    )
    assert done.of("kl")[0] == pytest.approx(0, abs=1e-5) and done.of("kl")[-1] > 1e-3
    before, after = (load_file(each / "model.safetensors") for each in (base, done.out))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_that_goes_on_is_what_it_is_compared_with(base, data, tmp_path, app):
    first = run("grpo", base, data, tmp_path / "a", app=app, max_steps=3)
    for name, more in {"grpo": {"beta": 0.1}, "ppo": {"kl_coef": 0.1}}.items():
        more |= {"app": app, "max_steps": 1, "init_adapter": str(first.out)}
        again = run(name, base, data, tmp_path / name, **more)
        assert again.of("kl")[0] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("grpo", {"generations": 1}, "generations must be 2 or more"),
        ("grpo", {"generations": 3}, "must be a multiple of generations 3"),
        ("grpo", {"reward_weights": ("1", "2")}, "2 numbers for 1 rewards"),
        ("grpo", {"reward_weights": ("x",)}, "must be numbers, one for each reward, got 'x'"),
        ("grpo", {"minibatches": 2, "save_steps": 3}, "no multiple of the 2 steps .* give 4"),
        ("grpo", {"max_new_tokens": 64}, "leaves no room for a prompt"),
        ("grpo", {"loss": "best"}, "loss must be one of grpo, bnpo, dr_grpo, dapo"),
        ("grpo", {"parallel": "fsdp"}, "must write answers while it learns"),
        ("grpo", {"packing": True}, "packing has no meaning"),
        ("ppo", {"lam": 1.5}, "lam must be from 0 to 1"),
        ("ppo", {"kl_target": 6.0}, "kl_target adapts kl_coef, which is 0"),
        ("ppo", {"temperature": 0.0}, "temperature must be from 0.01 to 100"),
    ],
)
def test_settings_that_make_no_sense(name, settings, says, base, data, tmp_path, app):
    with pytest.raises(UsageError, match=says):
        run(name, base, data, tmp_path / "out", app=app, max_steps=2, **settings)
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_run_needs_a_reward():
    with pytest.raises(UsageError, match="nothing says what a good answer is: give --reward"):
        GrpoConfig()


def test_the_names_of_trl(app):
    def read(kind, **given):
        known = {each.name for each in settings_of(kind)}
        return translated(given, known, "x", aliases_of(kind))

    found = read(
        GrpoConfig,
        num_generations="4",
        max_completion_length="9",
        reward_funcs="gsm8k",
        beta="0.1",
        num_iterations="2",
        loss_type="grpo",
        per_device_train_batch_size="8",
    )
    assert found == {
        "generations": "4",
        "max_new_tokens": "9",
        "reward": "gsm8k",
        "beta": "0.1",
        "iterations": "2",
        "loss": "grpo",
        "batch_size": "8",
    }
    found = read(PpoConfig, num_ppo_epochs="2", cliprange="0.1", cliprange_value="0.3", lam="1")
    assert found == {"iterations": "2", "epsilon": "0.1", "value_clip": "0.3", "lam": "1"}
