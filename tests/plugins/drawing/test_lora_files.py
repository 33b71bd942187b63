"""LoRAs: every layout draws the same, weights are exact, and nothing is left out in silence."""

import json
import shutil

import numpy as np
import pytest
from tiny_loras import factors, save

from glmkit import CheckpointError, UsageError
from glmkit_drawing.lora import read_lora
from glmkit_drawing.merging import merge, save as save_merged
from glmkit_drawing.settings import lora_of

SAME = ("same-diffusers", "same-noted", "same-old", "same-kohya", "same-peft", "same-rslora")


def test_every_layout_says_the_same(loras):
    first = read_lora(loras[SAME[0]]).parts
    for layout in SAME[1:]:
        parts = read_lora(loras[layout]).parts
        assert set(parts) == set(first), layout
        for part, pair in parts.items():
            wanted = first[part].up.flatten(1) @ first[part].down.flatten(1)
            np.testing.assert_allclose(
                pair.up.flatten(1) @ pair.down.flatten(1), wanted, atol=1e-5, err_msg=layout
            )


def test_every_layout_draws_the_same(painter, look, loras):
    base = look(painter)
    drawn = []
    for layout in ("same-diffusers", "same-old", "same-kohya", "same-peft"):
        painter.wear([(loras[layout], 1.0)])
        drawn.append(look(painter))
    assert np.abs(drawn[0] - base).max() > 0.05
    for each in drawn[1:]:
        np.testing.assert_allclose(each, drawn[0], atol=1.01 / 255)


def test_the_weights_are_those_of_the_formula(painter, loras):
    """What the net computes is the base plus each product times its weight."""
    import torch

    painter.wear([(loras["same-kohya"], 0.7), (loras["other"], -0.3)])
    read = [(read_lora(loras["same-kohya"]), 0.7), (read_lora(loras["other"]), -0.3)]
    for (component, name), _ in read[0][0].parts.items():
        module = getattr(painter.pipeline, component).get_submodule(
            name.removeprefix("text_model.")
        )
        base = module.base_layer
        wanted = base.weight.detach().clone()
        for lora, weight in read:
            if (component, name) in lora.parts:
                pair = lora.parts[component, name]
                product = pair.up.flatten(1) @ pair.down.flatten(1)
                wanted += weight * product.reshape(wanted.shape)
        shape = (1, base.weight.shape[1], *(5 for _ in base.weight.shape[2:]))
        given = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            out = module(given)
            base.weight, kept = torch.nn.Parameter(wanted), base.weight
            expected = base(given)
            base.weight = kept
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def test_weight_zero_is_the_base_exactly_and_taking_off_too(painter, look, loras):
    base = look(painter)
    painter.wear([(loras["same-kohya"], 0.0), (loras["other"], 0.0)])
    assert (look(painter) == base).all()
    painter.wear([(loras["same-kohya"], 1.0)])
    assert (look(painter) != base).any()
    painter.wear([])
    assert (look(painter) == base).all()


def test_two_loras_equal_the_merged_file(painter, look, loras, tmp_path):
    """Ours and plain diffusers' loader read the merged file alike."""
    import torch
    from diffusers import StableDiffusionPipeline

    chosen = [(loras["same-peft"], 0.7), (loras["other"], 0.3)]
    painter.wear(chosen)
    wanted = look(painter)
    merged = merge([(read_lora(path), weight) for path, weight in chosen])
    assert (merged.rank, merged.error) == (6, 0.0)
    save_merged(merged, tmp_path / "c.safetensors", said="both")
    painter.wear([(tmp_path / "c.safetensors", 1.0)])
    np.testing.assert_allclose(look(painter), wanted, atol=1e-3)
    painter.wear([])
    plain = StableDiffusionPipeline(**painter.pipeline.components, requires_safety_checker=False)
    plain.set_progress_bar_config(disable=True)
    plain.load_lora_weights(tmp_path, weight_name="c.safetensors")
    generator = torch.Generator().manual_seed(3)
    arguments = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    image = plain("a red apple", generator=generator, **arguments).images[0]
    plain.unload_lora_weights()
    np.testing.assert_allclose(image, wanted, atol=1e-3 + 0.5 / 255)


def test_a_smaller_rank_is_the_best_there_is_and_says_its_error(loras):
    import torch

    chosen = [(read_lora(loras["same-diffusers"]), 0.7), (read_lora(loras["other"]), 0.3)]
    exact, rounded = merge(chosen), merge(chosen, rank=3)
    assert rounded.rank == 3
    lost = whole = 0.0
    for part, pair in exact.parts.items():
        wanted = (pair.up.flatten(1) @ pair.down.flatten(1)).double()
        small = rounded.parts[part]
        lost += float((small.up.flatten(1) @ small.down.flatten(1) - wanted).square().sum())
        best = torch.linalg.svdvals(wanted)[3:].square().sum()
        whole += float(wanted.square().sum())
        product = (small.up.flatten(1) @ small.down.flatten(1)).double()
        assert float((product - wanted).square().sum()) == pytest.approx(float(best), abs=1e-6)
    assert rounded.error == pytest.approx((lost / whole) ** 0.5, rel=1e-3)
    assert merge(chosen, rank=6).error == pytest.approx(0, abs=1e-6)


def spoilt(loras, tmp_path, old, new):
    """Return a LoRA with a key renamed."""
    from safetensors.torch import load_file

    tensors = load_file(loras["same-diffusers"])
    assert any(old in key for key in tensors)
    return save(
        {key.replace(old, new): each for key, each in tensors.items()}, tmp_path / "x.safetensors"
    )


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("attn1.to_q", "attn1.to_quark", "to_quark.lora_A.weight' (no such module in its unet)"),
        ("unet.mid_block", "unit.mid_block", "'unit.mid_block"),
        ("lora_B.weight", "lora_C.weight", "lora_C.weight' is no part of a LoRA"),
        ("proj_in.lora_B.weight", "proj_in.hada_w1_a", "it is a LoHa of LyCORIS"),
        ("proj_in.lora_B.weight", "proj_in.dora_scale", "it is a DoRA"),
        ("text_encoder.text", "text_encoder_2.text", "the model has no text_encoder_2"),
        ("up_blocks.0", "up_blocks.1", "(128, 16) for a module of"),
    ],
)
def test_a_key_that_does_not_fit_is_named(painter, look, loras, tmp_path, old, new, named):
    base = look(painter)
    with pytest.raises(CheckpointError) as caught:
        painter.wear([(spoilt(loras, tmp_path, old, new), 1.0)])
    assert named in str(caught.value)
    assert (look(painter) == base).all()


def test_kohyas_keys_are_named_too(painter, loras, tmp_path):
    from safetensors.torch import load_file

    tensors = load_file(loras["same-kohya"])
    key = next(each for each in tensors if "attn1_to_q.lora_down" in each)
    with pytest.raises(CheckpointError, match="lacks one of its two halves"):
        read_lora(save({k: v for k, v in tensors.items() if k != key}, tmp_path / "a.safetensors"))
    renamed = {k.replace("attn1_to_q", "attn7_to_q"): v for k, v in tensors.items()}
    with pytest.raises(CheckpointError, match="attn7_to_q"):
        painter.wear([(save(renamed, tmp_path / "b.safetensors"), 1.0)])
    with pytest.raises(CheckpointError, match="lora_unet_x.lora_mid.weight"):
        more = tensors | {"lora_unet_x.lora_mid.weight": tensors[key].clone()}
        read_lora(save(more, tmp_path / "c.safetensors"))


def test_what_is_no_lora_is_refused(tmp_path, loras, tiny):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        read_lora(tmp_path / "absent")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        read_lora(tmp_path / "junk.safetensors")
    with pytest.raises(CheckpointError, match="should hold one LoRA file and holds none"):
        read_lora(tiny)
    (checkpoint := tmp_path / "stopped" / "checkpoint-20").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=f"has not ended.* {checkpoint}, or end it"):
        read_lora(tmp_path / "stopped")
    shutil.copy(loras["same-kohya"], tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match="holds several: junk.safetensors, two.safetensors"):
        read_lora(tmp_path)
    config = loras["same-peft"] / "unet" / "adapter_config.json"
    folder = shutil.copytree(loras["same-peft"], tmp_path / "dora")
    (folder / "unet" / config.name).write_text(json.dumps({"peft_type": "LORA", "use_dora": True}))
    with pytest.raises(CheckpointError, match="is a DoRA of PEFT"):
        read_lora(folder)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("unet/adapter_model.safetensors", b"", "cannot be read"),
        ("unet/adapter_model.bin", b"", "cannot be read"),
        ("unet/adapter_config.json", b"[]", "should be a JSON object"),
        ("unet/adapter_config.json", b'{"lora_alpha": "much"}', "notes an alpha that is none"),
        ("unet/adapter_config.json", b'{"alpha_pattern": {"(": 1}}', "notes an alpha that is none"),
    ],
)
def test_damaged_peft_folders_are_refused(tmp_path, loras, name, change, said):
    folder = shutil.copytree(loras["same-peft"], tmp_path / "damaged")
    if name.endswith(".bin"):
        (folder / name).with_suffix(".safetensors").unlink()
    (folder / name).write_bytes(change)
    with pytest.raises(CheckpointError, match=said):
        read_lora(folder)


@pytest.mark.parametrize(
    ("down", "up", "said"),
    [
        ((0, 4), (4, 0), "do not fit together"),
        ((4,), (4,), "do not fit together"),
        ((), (), "do not fit together"),
        ((2, 4), (4, 2, 1, 1), "do not fit together"),
        ((2, 4), (4, 3), "do not fit together"),
        ((2, 4), None, "not finite"),
    ],
)
def test_halves_that_make_no_pair_are_refused(tmp_path, down, up, said):
    import torch

    other = torch.full((4, 2), torch.nan) if up is None else torch.ones(up)
    pair = {"unet.x.lora_A.weight": torch.ones(down), "unet.x.lora_B.weight": other}
    with pytest.raises(CheckpointError, match=said):
        read_lora(save(pair, tmp_path / "odd.safetensors"))


def test_real_peft_folders_are_read(painter, look, tmp_path):
    """What PEFT itself saves, adapters with names of their own included."""
    import copy

    import peft
    import torch

    unet = copy.deepcopy(painter.pipeline.unet)
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["to_q", "conv1"], init_lora_weights=False
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(unet, config, adapter_name="mine")
    model.save_pretrained(tmp_path / "unet")
    assert (tmp_path / "unet" / "mine" / "adapter_config.json").is_file()
    painter.wear([(tmp_path, 1.0)])
    drawn = look(painter)
    painter.wear([])
    kept, painter.pipeline.unet = painter.pipeline.unet, model.merge_and_unload()
    try:
        np.testing.assert_allclose(look(painter), drawn, atol=2 / 255)
    finally:
        painter.pipeline.unet = kept


def test_merging_refuses_what_does_not_belong_together(opened, loras, tmp_path):
    import torch

    odd = factors(opened.pipeline)
    name = next(iter(odd["unet"]))
    key = f"unet.{name}.lora_"
    file = save(
        {f"{key}A.weight": torch.ones(2, 5), f"{key}B.weight": torch.ones(7, 2)},
        tmp_path / "odd.safetensors",
    )
    both = [(read_lora(loras["same-diffusers"]), 1.0), (read_lora(file), 1.0)]
    with pytest.raises(CheckpointError, match="were trained on two models"):
        merge(both)
    with pytest.raises(UsageError, match="rank must be 1 or more"):
        merge(both[:1], rank=0)
    target = tmp_path / "there.safetensors"
    target.touch()
    with pytest.raises(UsageError, match="is there already"):
        save_merged(merge(both[:1]), target, said="")
    save_merged(merge(both[:1]), target, said="", force=True)
    assert read_lora(target).parts.keys() == both[0][0].parts.keys()


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.7", "a.safetensors", 0.7),
        ("dir/a:-.5", "dir/a", -0.5),
        (r"C:\loras\a.safetensors", r"C:\loras\a.safetensors", 1.0),
        (r"C:\loras\a.safetensors:1e-1", r"C:\loras\a.safetensors", 0.1),
        ("C:/loras/a", "C:/loras/a", 1.0),
        ("a:b:2", "a:b", 2.0),
    ],
)
def test_a_lora_is_a_path_with_a_weight(text, path, weight):
    assert lora_of(text) == (type(lora_of(text)[0])(path), weight)


@pytest.mark.parametrize("text", ["", ":0.5", "a:", "a:much", "a:nan", "a:1e999"])
def test_a_lora_without_path_or_number_is_refused(text):
    with pytest.raises(UsageError, match="a LoRA is PATH or PATH:WEIGHT"):
        lora_of(text)


def test_a_path_that_ends_like_a_weight_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v:2").mkdir()
    assert lora_of("v:2")[1] == 1.0
