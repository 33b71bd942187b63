"""Drawing: seeds, records, files, guards, and the command that ties them together."""

import io
import json
import shutil
import threading
from itertools import islice

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import glmkit_drawing
from glmkit import ConfigError, DataError, DrawOptions, ImageModel, OutOfMemoryError, UsageError
from glmkit.console import drain
from glmkit.testing import make_app
from glmkit_drawing.app import draw
from glmkit_drawing.commands import draw as draw_group
from glmkit_drawing.files import keep, slug
from glmkit_drawing.opening import About
from glmkit_drawing.painter import Painter
from glmkit_drawing.records import read_record
from glmkit_drawing.running import PictureError
from glmkit_drawing.settings import size_of

QUICK = ("--steps", "2", "--seed", "5")


@pytest.fixture
def app(opened, tmp_path, monkeypatch):
    """Return an application that draws with the tiny model, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    app = make_app(tmp_path / "home", drawing=glmkit_drawing)
    opened.wear([])
    loaded = app.load_image_model
    # Loaded once for all tests; other names go the whole way.
    app.load_image_model = lambda name=None: opened if name == opened.name else loaded(name)
    yield app
    opened.wear([])


@pytest.fixture
def run(app, opened):
    """Run ``glmkit run draw`` with the tiny model; return what it wrote to stdout and stderr."""

    def invoke(*arguments, code=0, model=opened.name):
        model = () if model is None else ("--image-model", model)
        done = CliRunner().invoke(draw, [*model, *map(str, arguments)], obj=app)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, done.output
        return done

    return invoke


def drawn(painter, wish="a red apple", **options):
    return drain(painter.draw(wish, DrawOptions(**({"steps": 2} | options))))


def test_the_same_seed_draws_the_same_picture_alone_or_among_others(painter):
    assert isinstance(painter, ImageModel)
    three = drawn(painter, seed=7, count=3)
    assert [each.seed for each in three] == [7, 8, 9]
    assert len({each.png for each in three}) == 3
    for each in three:
        assert drawn(painter, seed=each.seed)[0].png == each.png
    assert drawn(painter)[0].seed != drawn(painter)[0].seed


def test_progress_counts_the_steps_of_all_pictures(painter):
    events = list(painter.draw("a cat", DrawOptions(steps=3, count=2, seed=1)))
    assert [each.done for each in events] == [0, 1, 2, 3, 3, 4, 5, 6]
    assert {each.total for each in events} == {6}
    assert events[-1].note == "picture 2 of 2"


def test_closing_stops_the_net_and_frees_the_model(painter, monkeypatch):
    steps = []
    net = painter.pipeline.unet
    forward = net.forward
    monkeypatch.setattr(net, "forward", lambda *a, **k: steps.append(1) or forward(*a, **k))
    drawing = painter.draw("a cat", DrawOptions(steps=200, seed=1))
    assert len(list(islice(drawing, 3))) == 3
    drawing.close()
    assert len(steps) < 200
    assert threading.active_count() < 50 and drawn(painter)


def test_threads_share_a_model_and_get_their_own_pictures(painter):
    alone = {seed: drawn(painter, seed=seed)[0].png for seed in (1, 2, 3)}
    found = {}
    threads = [
        threading.Thread(target=lambda s=s: found.update({s: drawn(painter, seed=s)[0].png}))
        for s in alone
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == alone


def test_a_picture_says_how_it_was_drawn(painter, loras):
    painter.wear([(loras["same-kohya"], 0.5), (loras["other"], 0.0)])
    options = DrawOptions("a dog", (32, 16), 3, 2.5, 11)
    (picture,) = drain(painter.draw("a red apple", options, asked="红苹果"))
    record = read_record(picture.png)
    assert (record.wish, record.prompt, record.negative) == ("红苹果", "a red apple", "a dog")
    assert (record.size, record.steps, record.guidance, record.seed) == ((32, 16), 3, 2.5, 11)
    assert (record.model, record.fingerprint) == (painter.name, painter.fingerprint)
    assert (record.scheduler, record.pipeline) == ("DDIMScheduler", "StableDiffusionPipeline")
    assert [(each.weight, len(each.sha256)) for each in record.loras] == [(0.5, 64), (0.0, 64)]
    assert {"torch", "diffusers", "glmkit"} <= set(record.versions)
    with Image.open(io.BytesIO(picture.png)) as opened:
        assert opened.size == (32, 16)
        told = opened.info["parameters"]
    assert told.startswith(
        "a red apple\nNegative prompt: a dog\nSteps: 3, Sampler: DDIM, CFG scale: 2.5"
    )


def test_a_picture_is_drawn_again_from_its_file(run, app, loras, tmp_path):
    run(
        "a green cat",
        "--no-expand",
        *QUICK,
        "--lora",
        f"{loras['same-peft']}:0.7",
        "--negative",
        "a dog",
    )
    first = tmp_path / "pictures" / "a-green-cat-5.png"
    again = run("--again", first, model=None)
    second = tmp_path / "pictures" / "a-green-cat-5-2.png"
    assert again.stdout.split() == ["pictures/a-green-cat-5-2.png", "seed", "5"]
    assert second.read_bytes() == first.read_bytes()
    other = run("a", "red", "cat", "--again", first, "--json", model=None)
    shown = json.loads(other.stdout)["pictures"][0]
    assert (shown["wish"], shown["seed"]) == ("a red cat", 5) and shown["loras"]
    run("--again", first, "--seed", "6", "--out", "more", model=None)
    varied = read_record(tmp_path / "more" / "a-green-cat-6.png")
    assert (varied.negative, varied.steps, varied.seed) == ("a dog", 2, 6)
    assert varied.loras == read_record(first).loras


def test_drawing_again_refuses_what_would_be_another_picture(
    run, app, opened, loras, tmp_path, monkeypatch
):
    worn = shutil.copytree(loras["same-peft"], tmp_path / "mine")
    run("a cat", "--no-expand", *QUICK, "--lora", worn)
    picture = tmp_path / "pictures" / "a-cat-5.png"
    shutil.rmtree(worn / "text_encoder")
    with pytest.raises(UsageError, match="was drawn with another LoRA than .*mine holds now"):
        run("--again", picture, model=None)
    assert run("--again", picture, "--lora", worn, model=None)
    monkeypatch.setattr(opened, "fingerprint", "0000")
    with pytest.raises(UsageError, match="it would draw another picture"):
        run("--again", picture, model=None)
    assert run("--again", picture, "--lora", worn)
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(DataError, match="cannot be read as a picture"):
        run("--again", tmp_path / "no.png", model=None)
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png")
    with pytest.raises(DataError, match="does not say how it was drawn"):
        run("--again", tmp_path / "foreign.png", model=None)


@pytest.mark.parametrize("said", ['{"prompt": 1}', "[]", "nonsense", '{"size": "big"}'])
def test_a_damaged_record_is_an_error(tmp_path, said):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("glmkit", said)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=info)
    with pytest.raises(DataError, match="says damaged things"):
        read_record(tmp_path / "x.png")


def test_several_pictures_get_a_contact_sheet_and_nothing_is_overwritten(run, tmp_path):
    for _ in range(2):
        done = run("a cat", "-n", "3", *QUICK, "--no-expand")
    names = sorted(each.name for each in (tmp_path / "pictures").iterdir())
    assert names == sorted(
        f"a-cat-{stem}{again}.png" for stem in ("5", "6", "7", "sheet") for again in ("", "-2")
    )
    assert "a-cat-sheet-2.png" in done.stdout
    with Image.open(tmp_path / "pictures" / "a-cat-sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[0] > 2 * 96 and pixels.shape[1] > 2 * 96
    assert (pixels[:8] == 255).all() and (pixels[8:100] != 255).any()


def test_json_holds_everything(run, opened):
    done = run("red", "apple", *QUICK, "--no-expand", "--json")
    said = json.loads(done.stdout)
    assert (said["wish"], said["prompt"], said["cut"]) == ("red apple", "red apple", "")
    assert said["how"] == "drawn as wished" and said["sheet"] is None
    (picture,) = said["pictures"]
    assert picture["path"].endswith("red-apple-5.png")
    assert (picture["seed"], picture["model"], picture["steps"]) == (5, opened.name, 2)


def test_what_does_not_fit_is_cut_and_told(run, painter):
    wish = "a red apple, " + ", ".join(["a green cat"] * 12)
    assert painter.count(wish) > painter.room == 32
    with pytest.raises(UsageError, match="tokens and the text encoder of .* reads 32; shorten it"):
        drawn(painter, wish)
    done = run(wish, *QUICK, "--no-expand", "--json")
    said = json.loads(done.stdout)
    assert said["prompt"] + ", " + said["cut"] == wish
    assert painter.count(said["prompt"]) <= 32 < painter.count(said["prompt"] + ", a green cat")
    assert f"cut, as the text encoder reads 32 tokens: {said['cut'][:80]}...\n" in done.stderr


def test_a_longer_text_encoder_beside_clip_is_the_one_that_counts(painter):
    class Twice:
        tokenizer, tokenizer_2 = None, painter.pipeline.tokenizer

        def __call__(self, prompt, max_sequence_length=256): ...

    class Wordless:
        def __call__(self, prompt): ...

    assert Painter(Twice(), name="x").room == 256
    assert Painter(Twice(), name="x").count("a red apple") == 5
    assert Painter(Wordless(), name="x").room is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": (30, 16)}, "size must be multiples of 2 for|size must be multiples of 8 for"),
        ({"negative": "x", "guidance": 1.0}, "a negative wish works through guidance"),
        ({"seed": 2**63 - 1, "count": 2}, "leaves no room for 2 pictures"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_it_begins(painter, options, said):
    if options.get("size"):
        options = {"size": (17, 16)}
    with pytest.raises(UsageError, match=said):
        drawn(painter, **options)


def test_options_that_a_pipeline_lacks_are_refused(painter, monkeypatch):
    takes = {
        k: v for k, v in painter._takes.items() if k not in ("guidance_scale", "negative_prompt")
    }
    monkeypatch.setattr(painter, "_takes", takes)
    assert read_record(drawn(painter)[0].png).guidance is None
    with pytest.raises(UsageError, match="StableDiffusionPipeline knows no guidance"):
        drawn(painter, guidance=2.0)
    with pytest.raises(UsageError, match="knows no negative"):
        drawn(painter, negative="x")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("CUDA out of memory"), "drawing 16x16; what helps: a smaller --size"),
        (MemoryError(), "drawing 16x16; what helps: a smaller --size"),
        (RuntimeError("shapes differ"), "shapes differ"),
    ],
)
def test_memory_that_runs_out_is_told(painter, look, monkeypatch, error, said):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(painter.pipeline.unet, "forward", fail)
    with pytest.raises((OutOfMemoryError, RuntimeError), match=said) as caught:
        look(painter)
    assert isinstance(caught.value, OutOfMemoryError) == ("drawing" in said)


def test_numbers_that_are_not_finite_never_become_a_picture(painter, monkeypatch):
    import torch

    weight = painter.pipeline.unet.conv_out.bias
    monkeypatch.setattr(weight, "data", torch.full_like(weight, torch.nan))
    with pytest.raises(PictureError, match="not finite in step 1"):
        drawn(painter)
    monkeypatch.undo()
    bias = painter.pipeline.vae.decoder.conv_out.bias
    monkeypatch.setattr(bias, "data", torch.full_like(bias, torch.nan))
    with pytest.raises(PictureError, match="its decoder overflowed"):
        drawn(painter)
    monkeypatch.undo()
    monkeypatch.setattr(bias, "data", torch.full_like(bias, -99.0))
    with pytest.raises(PictureError, match="all black"):
        drawn(painter)
    monkeypatch.undo()
    assert drawn(painter)


def test_the_merge_command_writes_what_draws_the_same(app, opened, loras, tmp_path):
    def invoke(*arguments):
        return CliRunner().invoke(draw_group, ["merge", *map(str, arguments)], obj=app)

    both = (f"{loras['same-peft']}:0.7", f"{loras['other']}:0.5")
    done = invoke(*both, "-o", "c.safetensors", "--image-model", opened.name)
    assert done.stdout == "wrote c.safetensors: 7 modules, rank 6, exact\n"
    assert isinstance(invoke(*both, "-o", "c.safetensors").exception, UsageError)
    done = invoke(*both, "-o", "c", "--rank", "2", "--json")
    said = json.loads(done.stdout)
    assert (said["rank"], said["modules"]) == (2, 7)
    assert 0 < said["error"] < 1
    assert (tmp_path / "c" / "pytorch_lora_weights.safetensors").is_file()


def test_wrong_usage_is_told_before_a_model_is_loaded(run, app, monkeypatch, tmp_path):
    monkeypatch.setattr(app, "load_image_model", lambda name=None: pytest.fail("loaded"))
    for arguments, said in (
        ((), "say what to draw"),
        (("a cat", "--lora", "nosuch"), "no LoRA 'nosuch': there is no such file or folder"),
        (("a cat", "--size", "big"), "a size is WIDTHxHEIGHT"),
        (("a cat", "-n", "0"), "count must be a whole number from 1 to 100"),
        (("a cat", "--steps", "0"), "steps must be"),
    ):
        with pytest.raises(UsageError, match=said):
            run(*arguments)
    (tmp_path / "file").touch()
    assert "'file' is a file" in run("a cat", "--out", "file", code=2).output


def test_sizes_and_settings_are_read():
    assert [size_of(each) for each in ("512x768", "64", "32×16", " 8*8 ")] == [
        (512, 768),
        (64, 64),
        (32, 16),
        (8, 8),
    ]
    for table, said in (({"outt": "x"}, "did you mean 'out'"), ({"out": 3}, "must be a text")):
        with pytest.raises(ConfigError, match=said):
            make_app("home", {"plugins": {"drawing": table}}, drawing=glmkit_drawing)


def test_names_of_files_are_safe(tmp_path):
    assert slug("一只戴帽子的柯基！") == "一只戴帽子的柯基"
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("CON") == "con-" and slug("???") == "picture"
    assert len(slug("word " * 50)) <= 40
    paths = [keep(tmp_path / "new", "a", bytes([each])) for each in range(3)]
    assert [each.name for each in paths] == ["a.png", "a-2.png", "a-3.png"]
    assert [each.read_bytes() for each in paths] == [b"\0", b"\1", b"\2"]


def test_the_example_writes_a_picture_book(opened, tmp_path, monkeypatch):
    import runpy
    from pathlib import Path

    example = Path(__file__).parents[3] / "examples" / "drawing" / "picture_book.py"
    monkeypatch.setattr(opened, "about", About(steps=2))
    book = tmp_path / "book.html"
    runpy.run_path(str(example))["write_book"](book, ["red <apple>", "猫"], opened)
    page = book.read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,iVBORw0KGgo") == 2
    assert "<figcaption>red &lt;apple&gt;</figcaption>" in page and 'alt="猫"' in page
