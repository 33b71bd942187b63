"""DreamBooth: whole runs of a tiny picture model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_pictures import SIDE, tiny_clip_tokenizer, tiny_picture_model

from glmkit.errors import CheckpointError, UsageError
from glmkit_drawing.dreambooth import evaluating
from glmkit_drawing.dreambooth.config import DreamboothConfig
from glmkit_drawing.dreambooth.lora import FILE
from glmkit_drawing.dreambooth.recipe import dreambooth
from glmkit_finetune.flags import config_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny picture model."""
    return tiny_picture_model(tmp_path_factory.mktemp("model"), prediction="v_prediction")


@pytest.fixture
def config(model: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes configurations of short runs."""
    monkeypatch.setattr(evaluating, "_EACH", 2)

    def made(**told) -> DreamboothConfig:
        short = {
            "model": str(model),
            "data": (str(photographs),),
            "prompt": "a photo of sks dog",
            "output": str(tmp_path / "run"),
            "max_steps": 4,
            "save_steps": 2,
            "eval_steps": 4,
            "batch_size": 2,
            "learning_rate": 1e-2,
            "sample_steps": 2,
            "report_to": (),
            "memory_check": False,
        }
        return DreamboothConfig(**short | told)

    return made


def losses(config: DreamboothConfig) -> list[float]:
    return [each.loss for each in dreambooth.run(config) if each.loss is not None]


# ------------------------------------------------------------------------------------ whole runs


def drawn(folder: Path, *, lora: Path | None = None) -> np.ndarray:
    """Draw with plain diffusers."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    if lora is not None:
        pipeline.load_lora_weights(lora)
    said = {"num_inference_steps": 3, "height": SIDE, "width": SIDE, "output_type": "np"}
    own = torch.Generator().manual_seed(0)
    return pipeline("a photo of sks dog", generator=own, **said).images[0]


def test_a_run_leaves_what_plain_diffusers_and_people_read(config, model, tmp_path):
    told = config(
        prior_preservation=True,
        class_prompt="a photo of a dog",
        class_count=3,
        train_text_encoder=True,
        validation_prompt="a photo of sks dog in the rain",
        validation_count=3,
        targets=("attention", "conv1"),
        min_snr=5.0,
        flip=True,
        alpha=4.0,
    )
    lines = list(dreambooth.run(told))
    run = tmp_path / "run"
    assert not np.allclose(drawn(model), drawn(model, lora=run), atol=1e-3)
    sheets = sorted(each.name for each in (run / "validation").iterdir())
    assert sheets == ["step-000000.png", "step-000004.png"]
    with Image.open(run / "validation" / sheets[0]) as sheet:
        assert sheet.size == (3 * SIDE, SIDE)
    assert len(list((run / "class_pictures").glob("*.png"))) == 3
    evaluated = [each.metrics["eval_loss"] for each in lines if "eval_loss" in each.metrics]
    assert len(evaluated) == 2 and evaluated[1] < evaluated[0]
    metrics = next(each.metrics for each in lines if each.step == 1)
    assert metrics.keys() == {"thing_loss", "class_loss"}
    record = json.loads((run / "run.json").read_text())
    assert record["recipe"] == "dreambooth" and record["data"]["class_pictures"] == 3
    assert record["files"] == ["pytorch_lora_weights.safetensors"]
    assert "--lora" in (run / "README.md").read_text() and (run / "training_loss.png").is_file()
    for count in (3, 9):
        other = replace(told, class_prompt="a cat", class_count=count, overwrite=True)
        with pytest.raises(UsageError, match="were drawn otherwise .*prompt 'a photo of a dog'"):
            list(dreambooth.run(other))


def test_the_file_says_the_same_to_plain_diffusers_as_the_trained_net(config, model, tmp_path):
    from glmkit_drawing.dreambooth.base import loaded
    from glmkit_drawing.dreambooth.learner import Nets
    from glmkit_drawing.dreambooth.lora import LoraFile, dress

    told = config(train_text_encoder=True, targets=("all",), alpha=2.0, rank=4)
    pipeline = loaded(model)
    nets = Nets(pipeline.unet, pipeline.text_encoder)
    file = LoraFile(dress(nets, told), nested=hasattr(pipeline.text_encoder, "text_model"))
    for each in nets.parameters():
        if each.requires_grad:
            torch.nn.init.normal_(each, std=0.05)
    state = {name: each for name, each in nets.named_parameters() if each.requires_grad}
    file.save(state, tmp_path)
    again = file.load(tmp_path)
    assert again.keys() == state.keys()
    assert all(again[name].equal(each) for name, each in state.items())
    own = pipeline(
        "a photo of sks dog",
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=3,
        height=SIDE,
        width=SIDE,
        output_type="np",
    ).images[0]
    assert np.abs(own - drawn(model, lora=tmp_path)).max() < 1e-5
    assert np.abs(own - drawn(model)).max() > 1e-2


def test_what_a_killed_run_leaves_goes_on_as_if_it_had_not_been(config, tmp_path):
    told = {"train_text_encoder": True, "dropout": 0.2, "scheduler": "cosine"}
    whole = []
    for log in dreambooth.run(config(output=str(tmp_path / "whole"), **told)):
        whole += [] if log.loss is None else [log.loss]
        if log.step == 3:  # nothing is closed or written to the end, as by kill -9
            shutil.copytree(tmp_path / "whole", tmp_path / "run", dirs_exist_ok=True)
    assert losses(config(resume=True, **told)) == whole[2:]
    first, second = (load_file(tmp_path / each / FILE) for each in ("whole", "run"))
    assert first.keys() == second.keys()
    assert all(each.equal(second[name]) for name, each in first.items())
    with pytest.raises(UsageError, match="prompt was 'a photo of sks dog', now 'a cat'"):
        losses(config(resume=True, **told, prompt="a cat"))


def test_class_pictures_are_drawn_on_where_drawing_stopped(config, tmp_path):
    told = config(
        prompt="a photo of a dog",
        prior_preservation=True,
        class_prompt="a dog",
        class_count=3,
        sample_batch_size=1,
        max_steps=1,
    )
    for line in dreambooth.run(told):
        if "1 of 3" in line.note:
            break
    folder = tmp_path / "run" / "class_pictures"
    first = (folder / "00000.png").read_bytes()
    (folder / ".00001.png.partial").write_bytes(b"half")
    notes = [each.note for each in dreambooth.run(told)]
    assert any("0 of 2" in each for each in notes)
    assert any("'a photo of a dog' has no rare word" in each for each in notes)
    assert (folder / "00000.png").read_bytes() == first
    assert len({each.read_bytes() for each in folder.glob("*.png")}) == 3


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"prompt": " "}, "say what the photographs show"),
        ({"data": ()}, "name a folder of photographs"),
        ({"prompt": "sks " * 20}, "has 62 tokens, and the text encoder reads 32"),
        ({"resolution": 30}, r"multiple of 4 for this model, got 30; --resolution 32"),
        ({"targets": ("to_w",)}, "target 'to_w' is no layer of the net"),
        ({"optimizer": "adamx"}, "optimizer must be one of"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_written(config, tmp_path, told, said):
    with pytest.raises(UsageError, match=said):
        losses(config(**told))
    assert not (tmp_path / "run" / "run.json").exists()


def test_other_models_are_refused_by_name(config, tmp_path):
    with pytest.raises(CheckpointError, match="no picture model in diffusers' format"):
        losses(config(model=str(tmp_path)))
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(CheckpointError, match="is a FluxPipeline; DreamBooth teaches Stable"):
        losses(config(model=str(tmp_path)))


def test_rare_words_are_those_that_have_no_token_of_their_own():
    from types import SimpleNamespace

    from glmkit_drawing.dreambooth.base import rare_words

    own = SimpleNamespace(tokenizer=tiny_clip_tokenizer())
    assert rare_words(own, "a photo of sks dog", None) == ["sks"]
    assert rare_words(own, "a photo of a dog", None) == []
    assert rare_words(own, "a photo of a corgi", "a Corgi") == []


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"prior_preservation": True}, "give --class-prompt"),
        ({"dtype": "float16"}, "lost to rounding in float16"),
        ({"rank": 0}, "rank must be 1 or more"),
        ({"class_count": 0}, "class_count must be 1 or more"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1"),
    ],
)
def test_settings_out_of_range_are_refused(told, said):
    with pytest.raises(UsageError, match=said):
        DreamboothConfig(**told)


# ------------------------------------------------------------------------------------ command line


def test_flags_of_diffusers_script_are_taken(tmp_path, caplog):
    script = {
        "pretrained_model_name_or_path": "base",
        "instance_data_dir": "photos",
        "instance_prompt": "a photo of sks dog",
        "class_data_dir": "dogs",
        "class_prompt": "a photo of a dog",
        "with_prior_preservation": "true",
        "prior_loss_weight": "0.5",
        "num_class_images": "20",
        "train_text_encoder": "true",
        "validation_prompt": "a sks dog swims",
        "num_validation_images": "2",
        "validation_epochs": "10",
        "checkpointing_steps": "50",
        "checkpoints_total_limit": "1",
        "rank": "16",
        "resolution": "512",
        "center_crop": "true",
        "train_batch_size": "1",
        "gradient_accumulation_steps": "2",
        "max_train_steps": "400",
        "lr_scheduler": "constant",
        "lr_warmup_steps": "40",
        "mixed_precision": "bf16",
        "snr_gamma": "5",
        "lora_dropout": "0.1",
        "output_dir": str(tmp_path),
        "resume_from_checkpoint": "latest",
    }
    found = config_of(DreamboothConfig, "dreambooth", flags=script)
    assert found == DreamboothConfig(
        model="base",
        data=("photos",),
        prompt="a photo of sks dog",
        class_data="dogs",
        class_prompt="a photo of a dog",
        prior_preservation=True,
        prior_weight=0.5,
        class_count=20,
        train_text_encoder=True,
        validation_prompt="a sks dog swims",
        validation_count=2,
        save_steps=50,
        save_total_limit=1,
        rank=16,
        resolution=512,
        crops=1,
        batch_size=1,
        gradient_accumulation=2,
        max_steps=400,
        warmup_ratio=0.1,
        dtype="bfloat16",
        min_snr=5.0,
        dropout=0.1,
        output=str(tmp_path),
        resume=True,
    )
    assert "validation_epochs: without a counterpart" in caplog.text
    with pytest.raises(UsageError, match="unknown key 'instance_promt'"):
        config_of(DreamboothConfig, "dreambooth", flags={"instance_promt": "x"})
