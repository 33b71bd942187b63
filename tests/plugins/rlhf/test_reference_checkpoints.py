"""Published layouts with their own vocabularies go through the recipes of pairs."""

import pytest
from pair_rows import write_pairs

from glmkit.models import vocabularies
from glmkit_rlhf.dpo import DpoConfig, dpo
from glmkit_rlhf.kto import KtoConfig, kto
from glmkit_rlhf.reward import RewardConfig, reward
from glmkit_rlhf.scoring import RewardModel

pytestmark = pytest.mark.usefixtures("quick", "read_once")
NAMES = ("chatglm-6b", "chatglm3-6b", "glm-4-9b")
ROWS = [
    {"prompt": f"{at} 是偶数吗?", "chosen": f"是的, {at} 是", "rejected": "no!"} for at in range(4)
]


@pytest.fixture
def read_once(monkeypatch):
    """Read each vocabulary once, of tens of thousands of pieces, not in every run anew."""
    known = {}
    find = vocabularies.find

    def once(folder, **given):
        if folder not in known:
            known[folder] = find(folder, **given)
        return known[folder]

    monkeypatch.setattr(vocabularies, "find", once)


def whole(reference, name, folder):
    """Put a checkpoint and its vocabulary into one folder."""
    folder.mkdir()
    for place in (f"checkpoints/{name}-realvocab-tiny", f"tokenizers/{name}"):
        for file in (reference / place).iterdir():
            (folder / file.name).symlink_to(file)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_reference_checkpoints(tmp_path, shared_reference, name):
    base = whole(shared_reference, name, tmp_path / "base")
    data = write_pairs(tmp_path, ROWS)
    common = {
        **{"model": str(base), "data": (str(data),), "cache": str(tmp_path / "tokens")},
        **{"report_to": (), "max_steps": 3, "warmup_ratio": 0.0, "learning_rate": 2e-2},
        **{"dtype": "float32", "device": "cpu", "save_steps": 3},
    }
    recipes = ((reward, RewardConfig, 0.693147), (dpo, DpoConfig, 0.693147), (kto, KtoConfig, 0.5))
    for recipe, config, first in recipes:
        out = str(tmp_path / config.__name__)
        logs = [each for each in recipe.run(config(output=out, **common)) if each.loss is not None]
        assert logs[0].loss == pytest.approx(first, abs=1e-4)
        assert logs[-1].loss < logs[0].loss
    question = [{"role": "user", "content": ROWS[0]["prompt"]}]
    answers = [ROWS[0][each] for each in ("chosen", "rejected")]
    asked = [[*question, {"role": "assistant", "content": each}] for each in answers]
    better, worse = RewardModel.load(tmp_path / "RewardConfig").score(asked)
    assert better > worse
