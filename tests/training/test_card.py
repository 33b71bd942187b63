"""The model card: its commands are those that work where the run was started."""

import json

import pytest

from glmkit.training.card import write_card

RUN = {"config": {}, "recipe": "lora", "data": {}, "versions": {}}


@pytest.fixture
def card(tmp_path, monkeypatch):
    """Return a function that writes the card of ``runs/my lora``, and returns its lines."""
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    folder = Path("runs") / "my lora"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")

    def written(base, **more):
        Path(base).mkdir(parents=True, exist_ok=True)
        given = {"run": RUN, "figures": {}, "whole": False} | more
        return write_card(folder, Path(base), **given).read_text("utf-8").splitlines()

    return written


def test_folders_are_named_as_they_were_given(card):
    lines = card("bases/glm")
    assert "glmkit run chat --model bases/glm --adapter 'runs/my lora'" in lines
    merge = "glmkit adapters merge bases/glm 'runs/my lora' -o 'runs/my lora-merged'"
    assert any(each.startswith(merge) for each in lines)
    assert "glmkit run chat --model 'runs/my lora'" in card("bases/glm", whole=True)


def test_what_was_pulled_is_called_by_its_name(card, tmp_path):
    base = tmp_path / "home" / "models" / "thing"
    base.mkdir(parents=True)
    (base / "glmkit-manifest.json").write_text(json.dumps({"name": "org/thing"}))
    assert "glmkit run chat --model org/thing --adapter 'runs/my lora'" in card(base)


@pytest.mark.parametrize("how", [{"quantization_bit": 4}, {"quantization_config": {"bits": 4}}])
def test_nobody_is_told_to_merge_into_a_quantised_base(card, tmp_path, how):
    base = tmp_path / "rounded"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(how))
    assert not any("adapters merge" in each for each in card(base))
    (base / "config.json").write_text(json.dumps({"quantization_bit": 0}))
    assert any("adapters merge" in each for each in card(base))
