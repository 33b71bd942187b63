"""LoRAs with random numbers for the tiny picture model, in every layout."""

import json
import math

UNET = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "up_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "mid_block.attentions.0.proj_in",
    "mid_block.resnets.0.conv1",
)
TEXT = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1")
"""As CLIP's layers are called below ``text_model``."""


def factors(pipeline, *, rank=4, seed=0, strength=0.3):
    """Return ``{component: {module: (down, up)}}`` of random numbers."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator) * strength

    found = {"unet": {}, "text_encoder": {}}
    for component, names in (("unet", UNET), ("text_encoder", TEXT)):
        model = getattr(pipeline, component)
        modules = dict(model.named_modules())
        for name in names:
            weight = modules.get(name, modules.get(f"text_model.{name}"))
            weight = getattr(weight, "base_layer", weight).weight
            down = draw(rank, *weight.shape[1:])
            up = draw(weight.shape[0], rank, *(1 for _ in weight.shape[2:]))
            found[component][name] = (down, up)
    return found


def save(tensors, file, metadata=None):
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: each.contiguous() for key, each in tensors.items()}, file, metadata)
    return file


def diffusers_file(found, file, *, alpha=None, rank=4):
    """Write what diffusers' training scripts write today."""
    tensors, metadata = {}, {}
    for component, modules in found.items():
        for name, (down, up) in modules.items():
            name = f"text_model.{name}" if component == "text_encoder" else name
            tensors[f"{component}.{name}.lora_A.weight"] = down
            tensors[f"{component}.{name}.lora_B.weight"] = up
        metadata |= {f"{component}.r": rank, f"{component}.lora_alpha": alpha}
    noted = {"lora_adapter_metadata": json.dumps(metadata)} if alpha else None
    return save(tensors, file, noted)


_OLD = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def old_file(found, file):
    """Write what diffusers wrote in 2023."""
    tensors = {}
    for component, modules in found.items():
        for name, (down, up) in modules.items():
            *parents, last = name.split(".")
            stem = f"{component}.{name}.lora"
            if component == "text_encoder" and last in _OLD:
                stem = f"{component}.text_model.{'.'.join(parents)}.{_OLD[last]}_lora"
            elif component == "text_encoder":
                stem = f"{component}.text_model.{name}.lora_linear_layer"
            elif parents[-1].startswith("attn") or last == "0":
                attention, last = (parents[:-1], "to_out") if last == "0" else (parents, last)
                stem = f"{component}.{'.'.join(attention)}.processor.{last}_lora"
            tensors |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    return save(tensors, file)


def kohya_file(found, file, *, alpha):
    """Write what kohya's scripts write."""
    import torch

    tensors = {}
    for component, modules in found.items():
        for name, (down, up) in modules.items():
            start = "lora_unet_" if component == "unet" else "lora_te_text_model_"
            stem = start + name.replace(".", "_")
            tensors |= {
                f"{stem}.lora_down.weight": down,
                f"{stem}.lora_up.weight": up,
                f"{stem}.alpha": torch.tensor(float(alpha)),
            }
    return save(tensors, file, {"ss_network_module": "networks.lora"})


def peft_folders(found, folder, *, alpha, rank=4, rslora=False):
    """Write what ``save_pretrained`` of PEFT writes for each component."""
    for component, modules in found.items():
        tensors = {}
        for name, (down, up) in modules.items():
            name = f"text_model.{name}" if component == "text_encoder" else name
            tensors[f"base_model.model.{name}.lora_A.weight"] = down
            tensors[f"base_model.model.{name}.lora_B.weight"] = up
        save(tensors, folder / component / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "use_rslora": rslora}
        (folder / component / "adapter_config.json").write_text(json.dumps(config))
    return folder


def scaled(found, factor):
    return {
        component: {name: (down, up * factor) for name, (down, up) in modules.items()}
        for component, modules in found.items()
    }


def write_all(pipeline, folder):
    """Write one LoRA in every layout (``same-*``), and another one (``other``)."""
    same = factors(pipeline)
    written = {
        "same-diffusers": diffusers_file(same, folder / "pytorch_lora_weights.safetensors"),
        "same-noted": diffusers_file(scaled(same, 2), folder / "noted.safetensors", alpha=2),
        "same-old": old_file(same, folder / "old.safetensors"),
        "same-kohya": kohya_file(scaled(same, 2), folder / "kohya.safetensors", alpha=2),
        "same-peft": peft_folders(scaled(same, 0.5), folder / "peft", alpha=8),
        "same-rslora": peft_folders(
            scaled(same, math.sqrt(4) / 8), folder / "rslora", alpha=8, rslora=True
        ),
    }
    other = factors(pipeline, rank=2, seed=1)
    other["unet"].pop("mid_block.attentions.0.proj_in")
    written["other"] = kohya_file(other, folder / "other.safetensors", alpha=2)
    return written
