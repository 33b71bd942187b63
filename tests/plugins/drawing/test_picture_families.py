"""Picture models of every family: told what was asked for, drawn as diffusers alone draws."""

import io

import numpy as np
import pytest
import tiny_families
from PIL import Image
from tiny_loras import save

import glmkit_drawing
from glmkit import DrawOptions, SourceError, UsageError
from glmkit.console import drain
from glmkit.testing import make_app
from glmkit_drawing.lora import read_lora
from glmkit_drawing.wishes import word

pytestmark = [  # of diffusers' own making
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
]
WISH = "a red apple"
OPTIONS = DrawOptions(size=(32, 16), steps=2, seed=5, guidance=3.0)


@pytest.fixture(scope="module")
def painters(tmp_path_factory, one_thread_always):
    """Return a function that opens a tiny model of a family, made and loaded once."""
    import torch

    folder, made = tmp_path_factory.mktemp("families"), {}
    app = make_app(folder / "home", drawing=glmkit_drawing)

    def painter(family):
        if family not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                tiny_families.FAMILIES[family](folder / family)
            made[family] = app.load_image_model(str(folder / family))
        return made[family]

    return painter


def drawn(painter, options=OPTIONS):
    (picture,) = drain(painter.draw(WISH, options))
    return np.asarray(Image.open(io.BytesIO(picture.png)), dtype=np.float64) / 255


@pytest.mark.parametrize("family", tiny_families.FAMILIES)
def test_a_family_draws_what_diffusers_draws(painters, family):
    import torch

    painter = painters(family)
    (alone,) = painter.pipeline(
        WISH,
        width=32,
        height=16,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images
    pixels = drawn(painter)
    assert pixels.shape == (16, 32, 3)
    np.testing.assert_allclose(pixels, alone, atol=0.51 / 255)
    assert np.abs(drawn(painter, DrawOptions(size=(32, 16), steps=2, seed=6)) - pixels).max() > 0.05
    assert 0 < painter.count(WISH) < painter.room


@pytest.mark.parametrize("family", ["kolors", "cogview4"])
def test_what_reads_chinese_is_told_a_chinese_wish(painters, family):
    def nobody():
        raise SourceError("no chat model")

    worded = word("一只微笑的水豚", painters(family), nobody)
    assert worded.prompt == "一只微笑的水豚"
    with pytest.raises(UsageError, match="nobody here puts this wish into English"):
        word("一只微笑的水豚", painters("sdxl"), nobody)


def test_what_a_pipeline_refuses_is_an_error_of_usage(painters):
    with pytest.raises(UsageError, match=r"StableDiffusionXLPipeline cannot .* divisible by 8"):
        drawn(painters("sdxl"), DrawOptions(size=(18, 18), steps=2))


NAMES = {
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (
        "input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    ),
    "down_blocks.2.attentions.1.proj_in": "input_blocks_8_1_proj_in",
    "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
    "down_blocks.1.resnets.1.conv1": "input_blocks_5_0_in_layers_2",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.2": (
        "middle_block_1_transformer_blocks_0_ff_net_2"
    ),
    "mid_block.resnets.1.time_emb_proj": "middle_block_2_emb_layers_1",
    "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_out.0": (
        "output_blocks_2_1_transformer_blocks_0_attn2_to_out_0"
    ),
    "up_blocks.1.upsamplers.0.conv": "output_blocks_5_2_conv",
    "up_blocks.2.resnets.0.conv_shortcut": "output_blocks_6_0_skip_connection",
}
"""Modules of SDXL's net as diffusers names them, and as kohya's scripts do."""
ENCODERS = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
QUERY = "text_model.encoder.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def sdxl_loras(painters, tmp_path_factory):
    """Return one LoRA for SDXL by layout: ``diffusers``, ``kohya``."""
    import torch

    pipeline, generator = painters("sdxl").pipeline, torch.Generator().manual_seed(0)
    diffusers, kohya = {}, {}

    def add(weight, name, other):
        down = torch.randn((2, *weight.shape[1:]), generator=generator) * 0.3
        up = torch.randn((len(weight), 2, *(1,) * (weight.ndim - 2)), generator=generator) * 0.3
        diffusers.update({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up})
        halves = {"lora_down.weight": down, "lora_up.weight": 2 * up, "alpha": torch.tensor(1.0)}
        kohya.update({f"{other}.{half}": each for half, each in halves.items()})

    for ours, theirs in NAMES.items():
        add(pipeline.unet.get_submodule(ours).weight, f"unet.{ours}", f"lora_unet_{theirs}")
    for component, start in ENCODERS.items():
        model = getattr(pipeline, component)
        module = dict(model.named_modules()).get(QUERY) or model.get_submodule(
            QUERY.removeprefix("text_model.")
        )
        add(module.weight, f"{component}.{QUERY}", start + QUERY.replace(".", "_"))
    folder = tmp_path_factory.mktemp("sdxl-loras")
    return {
        "diffusers": save(diffusers, folder / "diffusers.safetensors"),
        "kohya": save(kohya, folder / "kohya.safetensors"),
    }


def test_kohyas_loras_for_sdxl_are_read(painters, sdxl_loras):
    """Its names count the blocks of the net through, from the first to the last."""
    ours, theirs = (read_lora(sdxl_loras[each]).parts for each in ("diffusers", "kohya"))
    assert set(theirs) == set(ours)
    assert {component for component, _ in theirs} == {"unet", *ENCODERS}
    for part, pair in theirs.items():
        wanted = ours[part].up.flatten(1) @ ours[part].down.flatten(1)
        np.testing.assert_allclose(pair.up.flatten(1) @ pair.down.flatten(1), wanted, atol=1e-5)


def test_loras_for_sdxl_change_its_net_and_both_encoders(painters, sdxl_loras):
    painter = painters("sdxl")
    base, seen = drawn(painter), {}
    for layout, file in sdxl_loras.items():
        painter.wear([(file, 1.0)])
        seen[layout] = drawn(painter)
        for component in ENCODERS:
            worn = dict(getattr(painter.pipeline, component).named_modules())
            assert any(name.endswith("q_proj.lora_A") for name in worn), component
    painter.wear([])
    np.testing.assert_allclose(seen["kohya"], seen["diffusers"], atol=1.01 / 255)
    assert np.abs(seen["diffusers"] - base).max() > 0.02
    assert (drawn(painter) == base).all()
