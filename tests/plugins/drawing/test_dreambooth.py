"""DreamBooth: photographs, batches, the loss, and whole runs of a tiny picture model."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pictures import SIDE, tiny_clip_tokenizer, tiny_picture_model

from glmkit.errors import CheckpointError, DataError, UsageError
from glmkit_drawing.dreambooth.config import DreamboothConfig
from glmkit_drawing.dreambooth.feed import CLASS, THING, Batch, Feed
from glmkit_drawing.dreambooth.photographs import files_of, numbers, opened, squares
from glmkit_drawing.dreambooth.recipe import dreambooth
from glmkit_finetune.flags import config_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny picture model."""
    return tiny_picture_model(tmp_path_factory.mktemp("model"), prediction="v_prediction")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three pictures, one of them wide."""
    folder = tmp_path_factory.mktemp("photographs")
    for at, size in enumerate(((20, 20), (16, 16), (48, 24))):
        shades = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3)
        Image.fromarray(np.roll(shades.astype(np.uint8), at * 50, axis=1)).save(
            folder / f"{at}.png"
        )
    return folder


@pytest.fixture
def config(model: Path, photographs: Path, tmp_path: Path):
    """Return a function that makes configurations of short runs."""

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
        }
        return DreamboothConfig(**short | told)

    return made


def losses(config: DreamboothConfig) -> list[float]:
    return [each.loss for each in dreambooth.run(config) if each.loss is not None]


# ------------------------------------------------------------------------------------ photographs


def test_photographs_are_found_and_what_is_none_is_named(tmp_path, photographs):
    (photographs / ".hidden.png").write_text("no picture")
    (photographs / "notes.txt").write_text("no picture")
    assert [each.name for each in files_of([str(photographs)])] == ["0.png", "1.png", "2.png"]
    with pytest.raises(DataError, match="holds no picture .* name another folder with --data"):
        files_of([str(tmp_path)])
    with pytest.raises(DataError, match="there is no"):
        files_of([str(tmp_path / "nowhere")])
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture at all")
    with pytest.raises(DataError, match=r"broken.jpg cannot be read as a picture \(no picture\)"):
        opened(broken)
    cut = tmp_path / "cut.png"
    cut.write_bytes((photographs / "0.png").read_bytes()[:60])
    with pytest.raises(DataError, match="cut.png cannot be read"):
        opened(cut)


def test_transparent_is_white_and_turned_is_turned_back(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert opened(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    turned = Image.new("RGB", (8, 4))
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    assert opened(tmp_path / "turned.jpg").size == (4, 8)


@pytest.mark.parametrize(
    ("size", "count", "flip", "made"),
    [
        ((32, 32), 3, False, 1),
        ((64, 32), 3, False, 3),
        ((32, 64), 3, True, 6),
        ((64, 32), 1, False, 1),
        ((34, 32), 3, False, 2),
    ],
)
def test_squares_are_spread_along_the_longer_side(size, count, flip, made):
    found = squares(Image.new("RGB", size), SIDE, count=count, flip=flip)
    assert [each.size for each in found] == [(SIDE, SIDE)] * made


def test_squares_begin_and_end_at_the_edges():
    bands = np.repeat(np.arange(0, 240, 10, dtype=np.uint8), 4)[None, :, None]
    picture = Image.fromarray(np.broadcast_to(bands, (48, 96, 3)).copy())
    left, middle, right = (np.asarray(each)[0, :, 0] for each in squares(picture, 48, count=3))
    assert (left[0], left[-1]) == (0, 110) and (right[0], right[-1]) == (120, 230)
    assert middle[0] == 60
    pixels = numbers([Image.new("RGB", (2, 2), (255, 0, 0))])
    assert pixels.shape == (1, 3, 2, 2)
    assert pixels[0, :, 0, 0].tolist() == [1, -1, -1]


# ------------------------------------------------------------------------------------ batches, loss


def feed(batch_size=2, accumulation=1, classes=3, seed=1) -> Feed:
    pictures = [torch.full((2, 2, 1, 2, 2), float(at)) for at in range(5)]
    of_class = [torch.full((1, 2, 1, 2, 2), 100.0 + at) for at in range(classes)]
    return Feed(pictures, of_class, batch_size, accumulation, times=1000, seed=seed)


def test_rows_do_not_depend_on_how_they_are_put_together():
    whole = feed(4).batches(0, 1, 0)[0]
    first, second = feed(2, 2).batches(0, 1, 0)
    for shows in (THING, CLASS):
        parts = [
            torch.cat([getattr(each, name)[each.shows == shows] for each in (first, second)])
            for name in ("clean", "noise", "times")
        ]
        for name, part in zip(("clean", "noise", "times"), parts, strict=True):
            assert part.equal(getattr(whole, name)[whole.shows == shows])
    assert not feed(4, seed=2).batches(0, 1, 0)[0].times.equal(whole.times)


def test_an_epoch_shows_every_photograph_and_as_many_of_the_class():
    own = feed(1)
    assert own.steps() == 5 and feed(2, 2).steps() == 2 and own.weight(0, 0) == 1
    batches = [own.batches(0, step, 0)[0] for step in range(5)]
    assert all(each.shows.tolist() == [THING, CLASS] for each in batches)
    plain = replace(
        own, things=[each * torch.tensor([1, 0])[:, None, None, None] for each in own.things]
    )  # no spread
    seen = [float(plain.batches(0, step, 0)[0].clean[0, 0, 0, 0]) for step in range(5)]
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert feed(3, classes=0).batches(0, 0, 0)[0].shows.tolist() == [THING] * 3


class Fixed(torch.nn.Module):
    """A net that foretells the same number everywhere."""

    def forward(self, noisy, times, encoder_hidden_states):
        from types import SimpleNamespace

        return SimpleNamespace(sample=torch.full_like(noisy, 0.25))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_loss_is_the_published_one(kind, gamma):
    from diffusers import DDPMScheduler

    from glmkit_drawing.dreambooth.learner import Nets, PictureLearner

    noise = DDPMScheduler(prediction_type=kind, rescale_betas_zero_snr=True)
    learner = PictureLearner(
        Nets(Fixed(), None), torch.zeros(2, 3, 4), None, noise, prior_weight=0.5, min_snr=gamma
    )
    clean, drawn = torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([10, 500, 999])
    found = learner(Batch(clean, drawn, times, torch.tensor([THING, THING, CLASS])))
    kept = noise.alphas_cumprod[times].double()[:, None, None, None]
    wanted = {
        "epsilon": drawn,
        "sample": clean,
        "v_prediction": kept.sqrt() * drawn - (1 - kept).sqrt() * clean,
    }[kind]
    errors = (wanted.double() - 0.25).square().mean(dim=(1, 2, 3))
    snr = (kept / (1 - kept)).flatten()
    if gamma:
        at_most = snr.clamp(max=gamma)
        errors *= {
            "epsilon": torch.where(snr > 1e-9, at_most / snr.clamp(min=1e-9), 1.0),
            "sample": at_most,
            "v_prediction": at_most / (snr + 1),
        }[kind]
    assert float(found.total) == pytest.approx(float(errors @ torch.tensor([1, 1, 0.5]).double()))
    assert float(found.weight) == 2
    assert float(found.figures["class_loss"]) == pytest.approx(float(errors[2]))


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
    with pytest.raises(UsageError, match="were drawn otherwise .*prompt 'a photo of a dog'"):
        list(dreambooth.run(replace(told, class_prompt="a cat", class_count=9, overwrite=True)))


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


def test_resumed_run_has_the_losses_of_an_uninterrupted_one(config, tmp_path):
    told = {"train_text_encoder": True, "dropout": 0.2, "scheduler": "cosine", "max_steps": 5}
    whole = losses(config(output=str(tmp_path / "whole"), **told))
    lines = dreambooth.run(config(**told))
    first = [next(each.loss for each in lines if each.step == at and each.loss) for at in (1, 2, 3)]
    assert first == whole[:3]
    lines.close()  # behind checkpoint-2
    assert losses(config(resume=True, **told)) == whole[2:]
    weights = [tmp_path / each / "pytorch_lora_weights.safetensors" for each in ("whole", "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    with pytest.raises(UsageError, match="prompt was 'a photo of sks dog', now 'a cat'"):
        losses(config(resume=True, **told, prompt="a cat"))


@pytest.mark.timeout(400)
def test_killed_run_goes_on_as_if_it_had_not_been(config, forks, tmp_path):
    whole = losses(config(output=str(tmp_path / "whole"), max_steps=6))
    told = config(max_steps=6)
    child = forks.start(
        """
        import json, sys, time
        from glmkit_drawing.dreambooth.config import DreamboothConfig
        from glmkit_drawing.dreambooth.recipe import dreambooth
        told = json.loads(sys.argv[1])
        told["data"], told["report_to"] = tuple(told["data"]), ()
        told["targets"] = tuple(told["targets"])
        for log in dreambooth.run(DreamboothConfig(**told)):
            if log.step == 5:
                time.sleep(600)
        """,
        json.dumps(vars(told)),
    )
    patience = time.monotonic() + 300
    while not (tmp_path / "run" / "checkpoint-4").is_dir() and time.monotonic() < patience:
        time.sleep(0.005)
    assert child.kill() == -9, child.said()
    assert losses(config(max_steps=6, resume=True)) == whole[4:]


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
