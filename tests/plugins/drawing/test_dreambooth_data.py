"""What DreamBooth learns from: photographs, batches, and the loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pictures import SIDE

from glmkit.errors import DataError
from glmkit_drawing.dreambooth.feed import CLASS, THING, Batch, Feed
from glmkit_drawing.dreambooth.photographs import files_of, numbers, opened, squares

pytestmark = pytest.mark.usefixtures("one_thread")


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
