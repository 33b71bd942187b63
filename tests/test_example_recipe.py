"""The third-party recipe in examples/: used through its hook, as after an install."""

import json
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "plugins" / "glmkit-bitfit"


@pytest.fixture
def app(tmp_path, monkeypatch, one_thread):
    """Return an application that has the recipe."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import glmkit_bitfit

    from glmkit.testing import make_app

    return make_app(tmp_path / "home", bitfit=glmkit_bitfit)


def test_it_trains_biases_and_norms_and_nothing_else(app, tmp_path):
    from safetensors.torch import load_file

    from glmkit.models.tiny import tiny_checkpoint

    base = tiny_checkpoint(tmp_path / "base", layout="chatglm3")
    rows = [{"instruction": str(at), "output": f"{at}!"} for at in range(8)]
    (tmp_path / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    recipe = app.load_recipe("bitfit")
    config = recipe.config_type(
        model=str(base),
        data=(str(tmp_path / "data.json"),),
        output=str(tmp_path / "out"),
        max_steps=4,
        batch_size=8,
        learning_rate=0.05,
        report_to=(),
    )
    losses = [log.loss for log in recipe.run(config) if log.loss is not None]
    assert losses[-1] < losses[0]
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {name for name in before if name.endswith((".bias", "norm.weight"))}
    assert app.load_model(str(tmp_path / "out")).generate_ids([5, 6], 2)


def test_a_model_without_biases_is_refused(app, tmp_path):
    from dataclasses import replace

    from glmkit.errors import UsageError
    from glmkit.models.glm import Glm
    from glmkit.models.tiny import TINY

    recipe = app.load_recipe("bitfit")
    assert recipe.config_type().norms
    import glmkit.training.run as run

    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            run, "train", lambda config, tuning, **named: iter(asked.append(tuning) or ())
        )
        list(recipe.run(recipe.config_type(model=str(tmp_path), norms=False)))
    with pytest.raises(UsageError, match="has no biases; leave out --no-norms"):
        asked[0].chosen(Glm(replace(TINY, qkv_bias=False)))
