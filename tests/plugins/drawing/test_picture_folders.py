"""Folders and repositories of picture models: which draw, and what of them is fetched."""

import json
import shutil

import pytest
from tiny_pictures import tiny_picture_model

import glmkit_drawing
from glmkit import CheckpointError, DrawOptions
from glmkit.console import drain
from glmkit.testing import make_app


@pytest.fixture
def app(tmp_path, monkeypatch):
    """Return an application that draws, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return make_app(tmp_path / "home", drawing=glmkit_drawing)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_class_name": "MyOwnPipeline"}, "which diffusers .* does not have"),
        ({"_class_name": "StableDiffusionInpaintPipeline"}, "draws no pictures from text alone"),
        ({"_class_name": "DDPMPipeline"}, "draws no pictures from text alone"),
        ({"unet": ["diffusers", "NoSuchNet"]}, "cannot be opened as a text-to-image model"),
    ],
)
def test_folders_that_draw_nothing_are_refused(app, tiny, tmp_path, change, said):
    folder = shutil.copytree(tiny, tmp_path / "changed")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | change))
    with pytest.raises(CheckpointError, match=said):
        app.load_image_model(str(folder))


def test_weights_are_read_from_safetensors_only(app, tiny, tmp_path):
    import torch
    from safetensors.torch import load_file

    folder = shutil.copytree(tiny, tmp_path / "pickled")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(CheckpointError, match="with weights in safetensors"):
        app.load_image_model(str(folder))
    (folder / "model_index.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        app.load_image_model(str(folder))
    with pytest.raises(CheckpointError, match="'diffusers' is no folder of diffusers'"):
        app.load_image_model("diffusers")


def test_precision_follows_device_and_files(tiny, tmp_path, monkeypatch):
    import torch
    from safetensors.torch import load_file, save_file

    from glmkit_drawing.opening import precision_of

    folder = shutil.copytree(tiny, tmp_path / "brief")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    norm = next(name for name in sorted(tensors) if "norm" in name)
    brief = {name: each.bfloat16() for name, each in tensors.items()}
    save_file(brief | {norm: tensors[norm]}, file)
    both = shutil.copytree(tiny, tmp_path / "both") / "unet"
    save_file(brief, both / "diffusion_pytorch_model.bf16.safetensors")  # which is not read
    able = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: able)
    assert precision_of(folder, "cpu") == precision_of(tiny, "cpu") == torch.float32
    assert precision_of(tiny, "cuda:0") == precision_of(both.parent, "cuda") == torch.float16
    assert precision_of(folder, "cuda") == torch.float32  # an older card
    assert precision_of(folder, "mps") == torch.bfloat16
    able.append("it is")
    assert precision_of(folder, "cuda") == torch.bfloat16


def test_fingerprints_tell_models_apart(tiny, tmp_path, opened):
    from glmkit_drawing.opening import fingerprint

    assert fingerprint(shutil.copytree(tiny, tmp_path / "same")) == opened.fingerprint
    assert fingerprint(tiny_picture_model(tmp_path / "other", seed=1)) != opened.fingerprint


def test_a_pulled_model_draws_by_its_hub_id(app, tiny):
    from glmkit import OfflineError, SourceError, sources

    with pytest.raises(SourceError, match="run: glmkit pull me/tiny"):
        app.load_image_model("me/tiny")
    with pytest.raises(OfflineError):
        drain(sources.pull("me/tiny", config=app.config))
    drain(sources.pull("me/tiny", config=app.config, origin=tiny))
    painter = app.load_image_model("me/tiny")
    assert drain(painter.draw("a red apple", DrawOptions(steps=2)))


def test_of_a_repository_of_diffusers_all_weights_come_once():
    from glmkit.hubs import needed_paths

    weights = {
        "": ("v1-5-pruned.safetensors", "v1-5.ckpt"),
        "unet/": ("d.safetensors", "d.fp16.safetensors", "d.non_ema.safetensors", "d.bin"),
        "text_encoder/": ("model-00001-of-00002.safetensors", "pytorch_model.bin"),
        "vae/": ("d.fp16.safetensors",),
    }
    paths = [folder + each for folder, names in weights.items() for each in names]
    others = ["model_index.json", "unet/config.json", "tokenizer/merges.txt"]
    assert needed_paths([*paths, *others], "here") == sorted(
        [
            *others,
            "unet/d.safetensors",
            "text_encoder/model-00001-of-00002.safetensors",
            "vae/d.fp16.safetensors",
        ]
    )
