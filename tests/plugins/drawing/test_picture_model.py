"""The embedded picture model: its data, its training on a made-up set, and what it draws."""

from __future__ import annotations

import io
import json
import random
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from glmkit.console import drain
from glmkit.errors import DataError, SourceError, UsageError
from glmkit_drawing import picture_model
from glmkit_drawing.picture_model import captions, choice, data, evaluate
from glmkit_drawing.picture_model.colours import main_colour
from glmkit_drawing.picture_model.networks import Sizes

pytest.importorskip("diffusers")

TINY = Sizes(
    picture=32,
    latent_channels=4,
    vae=(8, 8, 8),
    unet=(8, 16),
    unet_head=8,
    unet_time=32,
    text=16,
    text_layers=1,
    tokens=12,
)
MADE_UP = {
    "1F34E": ("red apple", "红苹果", ["fruit", "red"], ["水果"], 4, 42, "red"),
    "2600": ("sun", "太阳", ["bright"], ["晴天"], 5, 59, "gold"),
    "1F433": ("spouting whale", "鲸鱼", ["animal"], ["动物"], 3, 38, "blue"),
    "1F1E8-1F1F3": ("flag: China", "旗: 中国", ["CN"], ["旗"], 9, 98, "red"),
}
GROUPS = {3: "animals-nature", 4: "food-drink", 5: "travel-places", 9: "flags"}
SUBGROUPS = {38: "animal-marine", 42: "food-fruit", 59: "sky-weather", 98: "country-flag"}


def disc(colour: str) -> bytes:
    """Return a disc on nothing, as a PNG of 64x64."""
    from PIL import Image, ImageDraw

    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((8, 8, 56, 56), fill=colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def names_of(language: int) -> bytes:
    return json.dumps(
        [
            {"hexcode": code, "label": row[language], "tags": row[2 + language]}
            | {"group": row[4], "subgroup": row[5]}
            | ({"skins": [{"hexcode": f"{code}-1F3FB"}]} if code == "2600" else {})
            for code, row in MADE_UP.items()
        ]
    ).encode()


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("packages")
    kinds = {
        "groups": [{"order": order, "key": key} for order, key in GROUPS.items()],
        "subgroups": [{"order": order, "key": key} for order, key in SUBGROUPS.items()],
    }
    pictures = {f"{code.lower()}": disc(row[6]) for code, row in MADE_UP.items()}
    pictures |= {"2600-1f3fb": disc("brown"), "2600-fe0f": pictures.pop("2600")}
    return (
        archive(
            folder / "pictures.tgz",
            {f"img/google/64/{code}.png": png for code, png in pictures.items()},
        ),
        archive(
            folder / "names.tgz",
            {
                "en/data.json": names_of(0),
                "zh/data.json": names_of(1),
                "en/messages.json": json.dumps(kinds).encode(),
            },
        ),
    )


@pytest.fixture(scope="module")
def emoji(archives: tuple[Path, Path]) -> list[data.Emoji]:
    return data.read(*archives)


def test_archives_are_read(emoji: list[data.Emoji]):
    assert [each.code for each in emoji] == ["1F34E", "2600", "2600-1F3FB", "1F433", "1F1E8-1F1F3"]
    apple, sun, brown = emoji[:3]
    assert apple.names == ("red apple", "红苹果") and apple.tags == (("fruit", "red"), ("水果",))
    assert (apple.group, apple.subgroup) == ("food-drink", "food-fruit")
    assert apple.picture.shape == (64, 64, 3)
    assert apple.picture[0, 0].tolist() == [255, 255, 255], "what is transparent is white"
    assert (apple.colour, sun.colour) == ("red", "yellow")
    assert brown.skin and not sun.skin and brown.names == sun.names
    assert [each.code for each in emoji if choice.is_learned(each)] == ["1F34E", "2600", "1F433"]


def test_another_layout_is_an_error(archives: tuple[Path, Path]):
    with pytest.raises(DataError, match="holds no package/en/data.json"):
        data.read(archives[0], archives[0])
    with pytest.raises(DataError, match="holds no pictures"):
        data.read(archives[1], archives[1])


def test_a_changed_package_is_refused(tmp_path: Path):
    package = data.Package("emoji", "1.0.0", sha256="0" * 64)
    (tmp_path / package.file).write_bytes(b"other")
    with pytest.raises(SourceError, match="has sha256 d9298a10.* expected 0000"):
        data.fetch(package, tmp_path)


def test_without_npm_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="npm fetches the emoji and is not installed"):
        data.fetch(data.PICTURES, tmp_path)


def test_the_standards_details_are_left_out(emoji: list[data.Emoji]):
    apple = emoji[0]
    kept = replace(apple, code="1F9D1", subgroup="person")
    assert choice.is_learned(kept)
    for code in ("1F468-1F373", "1F3C3-200D-2642", "1F3C3-200D-27A1"):
        assert not choice.is_learned(replace(kept, code=code))
    assert not choice.is_learned(replace(apple, code="1F551", subgroup="time"))
    assert choice.is_learned(replace(apple, code="23F0", subgroup="time"))


def test_captions_name_the_thing_in_both_languages(emoji: list[data.Emoji]):
    dice = random.Random(0)
    english = [captions.caption(emoji[0], dice, chinese=False) for _ in range(200)]
    chinese = [captions.caption(emoji[0], dice, chinese=True) for _ in range(200)]
    assert all(any(word in text for word in ("apple", "fruit", "red")) for text in english)
    assert all(text.isascii() for text in english) and len(set(english)) > 50
    assert all("苹果" in text or "水果" in text for text in chinese) and len(set(chinese)) > 50
    assert not any(text.isascii() for text in chinese)
    again = random.Random(0)
    assert english == [captions.caption(emoji[0], again, chinese=False) for _ in range(200)]


def test_a_becomes_an_before_a_vowel():
    said = {captions.wished("apple", random.Random(at), chinese=False) for at in range(60)}
    assert "an apple" in said and not any("a apple" in text for text in said)
    said = {captions.wished("unicorn", random.Random(at), chinese=False) for at in range(60)}
    assert "a unicorn" in said


def test_chinese_is_cut_into_characters(tmp_path: Path):
    from transformers import CLIPTokenizer

    from glmkit_drawing.picture_model.tokenizer import train_tokenizer

    texts = ["红苹果", "绿苹果", "a red apple", "an apple", "the red sun"]
    tokenizer = train_tokenizer(texts, pieces=540, tokens=12)
    assert len(tokenizer("红苹果").input_ids) == 3 + 2
    inside, end = tokenizer("果红").input_ids[1], tokenizer("红果").input_ids[2]
    assert inside != end, "a character at the end of a run is a token of its own"
    assert tokenizer("苹果汁").input_ids[1] == tokenizer("红苹果").input_ids[2]
    assert len(tokenizer("Apple").input_ids) == 3, "capitals don't matter"
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    wish = "一个 red 苹果, 鱼"
    assert loaded(wish).input_ids == tokenizer(wish).input_ids
    assert loaded.model_max_length == 12


def test_a_resumed_run_equals_one_in_one_go(tmp_path: Path):
    import torch
    from torch import nn

    from glmkit_drawing.picture_model.loop import Plan, averaged_weights, learn

    def run(checkpoint: Path, *stops: int) -> dict[str, torch.Tensor]:
        for stop in stops:
            torch.manual_seed(0)
            net = nn.Linear(4, 1)

            def loss(generator: torch.Generator, net: nn.Linear = net) -> torch.Tensor:
                inputs = torch.randn(8, 4, generator=generator)
                return (net(inputs)[:, 0] - inputs.sum(1)).square().mean()

            plan = Plan(steps=stop, lr=0.05, warmup=1, cooldown=0, ema=0.9)
            drain(learn(net, loss, plan, checkpoint, stage="test"))
        return averaged_weights(checkpoint)

    whole, parts = run(tmp_path / "a.pt", 200), run(tmp_path / "b.pt", 200)
    assert torch.equal(whole["weight"], parts["weight"])
    assert torch.allclose(whole["weight"], torch.ones(1, 4), atol=0.05)
    halves = run(tmp_path / "c.pt", 190, 200)
    assert torch.allclose(whole["weight"], halves["weight"], atol=1e-3)


@pytest.fixture(scope="module")
def studio(emoji: list[data.Emoji], tmp_path_factory: pytest.TempPathFactory):
    """Return a work folder in which every stage has taken a few steps."""
    from glmkit_drawing.picture_model.loop import Plan
    from glmkit_drawing.picture_model.stages import TRAINERS, Studio

    small = [replace(each, picture=each.picture[::2, ::2]) for each in emoji]
    studio = Studio(tmp_path_factory.mktemp("work"), small, TINY, pieces=530, wishes=3)
    with pytest.raises(UsageError, match="train the stage 'vae' first"):
        studio.finished("vae")
    for train in TRAINERS.values():
        drain(train(studio, Plan(steps=3, lr=1e-3, warmup=1, ema=0.5), 4))
    return studio


@pytest.mark.parametrize("stage", ["vae", "text", "unet", "decoder"])
def test_every_stage_learns(studio, stage: str):
    import torch

    from glmkit_drawing.picture_model import judge, networks, stages, text, unet, vae

    torch.manual_seed(0)
    autoencoder, tokenizer = stages.vae_of(studio), studio.tokenizer
    pictures = vae.PictureSet(studio.emoji)
    if stage in ("vae", "decoder"):
        net = autoencoder.requires_grad_(True)
        loss = vae.vae_loss(net, pictures, 3, decoder_only=stage == "decoder")
    elif stage == "text":
        encoder = networks.new_text_encoder(TINY, len(tokenizer), tokenizer.eos_token_id)
        latents = vae.latents_of(autoencoder, judge.pictures_of(studio.learned))
        codes = text.codes_of(latents, TINY.text)
        net = text.TextLearner(encoder, codes, end=tokenizer.eos_token_id)
        loss = text.text_loss(net, text.Wishes(studio.learned, tokenizer), 8)
    else:
        net = networks.new_unet(TINY)
        latents = vae.latents_of(autoencoder, judge.pictures_of(studio.learned))
        encoder = stages.text_encoder_of(studio)
        known = unet.latent_set(studio.learned, latents, encoder, tokenizer, wishes=3)
        loss = unet.unet_loss(net, networks.new_scheduler(), known, 8)
    optimizer = torch.optim.Adam([each for each in net.parameters() if each.requires_grad], 2e-3)
    values = []
    for _ in range(6):
        value = loss(torch.Generator().manual_seed(1))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.97 * values[0], values


def test_latents_are_standard_and_pictures_stay(studio):
    import torch

    from glmkit_drawing.picture_model import judge, networks, vae

    torch.manual_seed(0)
    net = networks.new_vae(TINY).eval()
    pictures = judge.pictures_of(studio.emoji)
    with torch.no_grad():
        before = net.decode(net.encode(pictures).latent_dist.mean).sample
        vae.standardise(net, pictures)
        after = net.decode(net.encode(pictures).latent_dist.mean).sample
    latents = vae.latents_of(net, pictures)
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(4), atol=1e-4)
    assert torch.allclose(before, after, atol=1e-4)


def test_codes_keep_which_pictures_are_alike():
    import torch

    from glmkit_drawing.picture_model.text import codes_of

    torch.manual_seed(0)
    kinds = torch.randn(3, 4, 2, 2)
    latents = 1 + kinds.repeat_interleave(5, 0) + 0.1 * torch.randn(15, 4, 2, 2)
    codes = codes_of(latents, 8)
    assert codes.shape == (15, 8)
    assert torch.allclose(codes.square().mean(1), torch.ones(15))
    near = torch.cdist(codes, codes).topk(5, largest=False).indices
    assert (near // 5 == (torch.arange(15) // 5)[:, None]).float().mean() > 0.8
    assert codes_of(latents, 32).shape == (15, 32), "more than there are directions"


def test_late_steps_are_learned_more_often():
    import torch

    from glmkit_drawing.picture_model.unet import FIRST, draw_times

    times = draw_times(20_000, 1000, torch.Generator().manual_seed(0))
    assert times.min() >= 0 and times.max() == 999
    assert abs((times == 999).float().mean().item() - FIRST) < 0.02
    assert (times > 700).float().mean() > 0.5


def test_what_is_exported_draws(studio, tmp_path: Path):
    from glmkit_drawing.picture_model.export import export, size_of

    assert export(studio, tmp_path) == size_of(tmp_path) > 100_000
    about = json.loads((tmp_path / "glmkit.json").read_text())
    assert about["languages"] == ["en", "zh"]
    words = (tmp_path / "words.txt").read_text(encoding="utf-8").split()
    assert {"apple", "photo", "红苹果", "张"} <= set(words) and "china" not in words
    pipeline = evaluate.loaded(tmp_path)
    drawn = evaluate.draw(pipeline, ["a red apple", "太阳"], seed=1, steps=2, guidance=2.0)
    assert drawn.shape == (2, 32, 32, 3)
    alone = evaluate.draw(pipeline, ["a red apple"], seed=1, steps=2, guidance=2.0)
    assert abs(alone[0].astype(int) - drawn[0]).max() <= 1, "neighbours don't change a picture"


def test_wishes_are_twenty_plain_ones_in_each_language():
    wishes = evaluate.read_wishes()
    assert [wish.language for wish in wishes] == ["en"] * 20 + ["zh"] * 20
    assert len({wish.wish for wish in wishes}) == 40
    assert all(wish.right and len(wish.wish.split()) <= 6 for wish in wishes)


def test_wilsons_interval():
    low, high = evaluate.wilson(12, 20)
    assert (round(low, 3), round(high, 3)) == (0.387, 0.781)
    assert evaluate.wilson(0, 20)[0] == pytest.approx(0) and evaluate.wilson(20, 20)[1] <= 1


def test_the_judge_tells_colours_apart(studio):
    import torch

    from glmkit_drawing.picture_model import judge

    torch.manual_seed(0)
    pictures = judge.pictures_of(studio.learned)
    net = judge.new_judge(len(pictures), 32)
    loss = judge.judge_loss(net, pictures, 16)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for step in range(12):
        value = loss(torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    seen = judge.disturbed(pictures, torch.Generator().manual_seed(99))
    assert judge.nearest(net, seen, pictures).tolist() == [0, 1, 2]


@pytest.fixture(scope="module")
def embedded():
    """Return the embedded model, as diffusers loads it when it is told nothing."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(picture_model.folder())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_embedded_model_is_small_and_says_what_it_is():
    from glmkit_drawing.picture_model.export import size_of

    folder = picture_model.folder()
    assert 1e6 < size_of(folder) <= 40e6
    assert json.loads((folder / "glmkit.json").read_text())["languages"] == ["en", "zh"]
    words = set((folder / "words.txt").read_text(encoding="utf-8").split())
    assert {"dog", "photo", "狗", "一"} <= words and not {"corgi", "柯基"} & words
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("Apache-2.0", "MIT", "## Limits", "## Training"))


def test_the_embedded_model_draws_colours_that_are_asked_for(embedded):
    wishes = ["a red apple", "红苹果", "a Christmas tree"]
    drawn = evaluate.draw(embedded, wishes, seed=0, steps=8, guidance=2.0)
    assert [main_colour(each) for each in drawn] == ["red", "red", "green"]
    again = evaluate.draw(embedded, wishes[:1], seed=0, steps=8, guidance=2.0)
    other = evaluate.draw(embedded, wishes[:1], seed=1, steps=8, guidance=2.0)
    assert abs(again[0].astype(int) - drawn[0]).max() <= 1, "the same seed draws the same picture"
    assert abs(other[0].astype(int) - drawn[0]).max() > 20
