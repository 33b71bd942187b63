"""LoRA beside the layers of a picture model, and its file, as diffusers has both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from glmkit import CheckpointError, UsageError
from glmkit.training.checkpoint import read_tensors

from .config import DreamboothConfig
from .learner import Nets

FILE = "pytorch_lora_weights.safetensors"
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
_NAME = "default"
"""PEFT's name for the matrices that are trained."""


def dress(nets: Nets, config: DreamboothConfig) -> dict[str, dict[str, Any]]:
    """Freeze the nets and put matrices beside their layers, in place.

    Return what is to be known of the matrices, for their file, by net.

    :raises UsageError: if a target is no layer of the net.
    """
    from peft import LoraConfig

    targets = {"unet": layers_of(nets.unet, config.targets), "text_encoder": list(_TEXT)}
    about = {}
    for name, net in nets.named_children():
        net.requires_grad_(False)
        own: Any = LoraConfig(target_modules=targets[name], **config.told())
        add: Any = net.add_adapter
        add(own)
        about[name] = own.to_dict()
    for each in nets.parameters():
        if each.requires_grad:
            each.data = each.data.float()
    return about


def layers_of(net: nn.Module, targets: Sequence[str]) -> list[str]:
    """Return the names of layers that targets mean.

    :raises UsageError: naming a target that is no layer.
    """
    known = [name for name, each in net.named_modules() if isinstance(each, (nn.Linear, nn.Conv2d))]
    found: set[str] = set()
    for target in targets:
        ends = {"attention": _ATTENTION, "all": ("",)}.get(target, (target,))
        meant = [name for name in known if any(f".{name}".endswith(_dotted(end)) for end in ends)]
        if not meant:
            raise UsageError(
                f"target {target!r} is no layer of the net; take attention, all, or names such as "
                f"{', '.join(sorted({_short(name) for name in known})[:8])}"
            )
        found.update(meant)
    return sorted(found)


def _dotted(end: str) -> str:
    return f".{end}" if end else ""


def _short(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


class LoraFile:
    """Keeps the matrices in the file that diffusers loads; see `training/tuning.py`.

    The layers of CLIP are named there as every version of diffusers reads them; newer versions of
    transformers have them one level higher.

    :param about: as :func:`dress` returns it.
    :param nested: the text encoder has the extra level.
    """

    lossless = True

    def __init__(self, about: dict[str, dict[str, Any]], *, nested: bool = False) -> None:
        self.about, self.nested = about, nested

    def save(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write the matrices, by names that all versions of diffusers with PEFT read."""
        from diffusers import StableDiffusionPipeline

        plain = {_portable(name.replace(f".{_NAME}.", ".")): each for name, each in state.items()}
        layers = {
            net: {
                name.removeprefix(f"{net}."): each.contiguous()
                for name, each in plain.items()
                if name.startswith(f"{net}.")
            }
            for net in ("unet", "text_encoder")
        }
        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=layers["unet"],
            text_encoder_lora_layers=layers["text_encoder"],
            unet_lora_adapter_metadata=self.about.get("unet"),
            text_encoder_lora_adapter_metadata=self.about.get("text_encoder"),
        )

    def load(self, folder: Path) -> dict[str, Tensor]:
        """Return the matrices of a file of ours, or of diffusers' script.

        :raises CheckpointError: if it is damaged, or of another kind.
        """
        found = read_tensors(folder / FILE if folder.is_dir() else folder)
        renamed = {self._own(_renamed(name)): each.float() for name, each in found.items()}
        odd = [name for name in renamed if f".lora_A.{_NAME}." not in name]
        odd = [name for name in odd if f".lora_B.{_NAME}." not in name]
        if odd:
            raise CheckpointError(f"{folder} is no LoRA of DreamBooth: it holds {odd[0]!r}")
        return renamed

    def _own(self, name: str) -> str:
        return name if self.nested else name.replace(_LEVEL, "text_encoder.", 1)


_LEVEL = "text_encoder.text_model."


def _portable(name: str) -> str:
    return name.replace("text_encoder.encoder.", f"{_LEVEL}encoder.", 1)


def _renamed(name: str) -> str:
    """Return a name as PEFT has it in a net."""
    for end, matrix in _MATRICES.items():
        if name.endswith(f".{end}.weight"):
            return f"{name.removesuffix(f'{end}.weight')}{matrix}.{_NAME}.weight"
    return name


_MATRICES = {
    "lora_A": "lora_A",
    "lora_B": "lora_B",
    "lora_linear_layer.down": "lora_A",
    "lora_linear_layer.up": "lora_B",
    "lora.down": "lora_A",
    "lora.up": "lora_B",
}
