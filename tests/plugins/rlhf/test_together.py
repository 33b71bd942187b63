"""`--nproc 2`, as a user runs it: two processes learn what one does."""

import json
import subprocess
import sys
from collections import deque

import pytest
from online_runs import write_prompts
from pair_rows import write_pairs

from glmkit.models.tiny import tiny_checkpoint
from glmkit_rlhf.dpo import DpoConfig, dpo
from glmkit_rlhf.grpo import GrpoConfig, grpo
from glmkit_rlhf.kto import KtoConfig, kto
from glmkit_rlhf.ppo import PpoConfig, ppo
from glmkit_rlhf.reward import RewardConfig, reward

pytestmark = [
    pytest.mark.parallel,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("quick"),
]
ONLINE = {"max_new_tokens": 4, "reward": "length:2", "batch_size": 4, "epsilon": 0.05}
RECIPES = {
    "reward": (reward, RewardConfig, {"batch_size": 2, "val_size": 5}),
    "dpo": (dpo, DpoConfig, {"batch_size": 2, "val_size": 5}),
    # The divergence is that of the whole step, and of all that is evaluated.
    "kto": (kto, KtoConfig, {"batch_size": 3, "val_size": 7, "beta": 0.5}),
    # Both processes' answers have their own lengths, and rewards their own deviation.
    "grpo": (grpo, GrpoConfig, {**ONLINE, "generations": 4, "beta": 0.1, "scale_rewards": "batch"}),
    "ppo": (ppo, PpoConfig, {**ONLINE, "iterations": 2, "kl_coef": 0.2, "kl_target": 3.0}),
}
COMMON = {
    **{"max_steps": 4, "save_steps": 4, "rank": 4, "learning_rate": 1e-2, "max_length": 64},
    **{"device": "cpu", "dtype": "float32", "report_to": "none", "warmup_ratio": 0.0},
}
TIMES = ("tokens_per_s",)


def history(folder):
    """Return what the log says of each step and evaluation, without times."""
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in state["log_history"]
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_learn_what_one_does(tmp_path, monkeypatch, name):
    recipe, config, own = RECIPES[name]
    online = name in ("grpo", "ppo")
    told = {
        **COMMON,
        **own,
        "model": str(tiny_checkpoint(tmp_path / "base", layout="chatglm3")),
        "data": str((write_prompts if online else write_pairs)(tmp_path)),
        "cache": str(tmp_path / "tokens"),
    }
    lists = {each: (told[each],) for each in ("data", "reward", "report_to") if each in told}
    alone = {**told, **lists, "gradient_accumulation": 2, "output": str(tmp_path / "one")}
    deque(recipe.run(config(**alone)), maxlen=0)
    flags = {**told, "nproc": 2, "output": tmp_path / "two"}
    words = [str(word) for key, each in flags.items() for word in (f"--{key}", each)]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-m", "glmkit", "finetune", name, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert len(one) == len(two) >= 4
    assert one[0] != one[3]  # something is learnt
    for mine, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-3, abs=1e-4)
