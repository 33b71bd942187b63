"""The settings of DreamBooth. The docstring of an attribute is the help of its flag."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from glmkit import Alias, UsageError
from glmkit.training.config import RunConfig

if TYPE_CHECKING:
    from ..opening import About

FREE = (
    *("validation_prompt", "validation_count", "sample_steps", "sample_batch_size", "guidance"),
    *("eval_steps", "early_stopping"),
)
"""Settings that may differ when a run is resumed: they change nothing in what it learns."""


def _names(setting: str, names: str, *, switch: bool = False) -> list[Alias]:
    return [Alias(each, (setting,), switch=switch) for each in names.split()]


def _idle(names: str) -> list[Alias]:
    return [Alias(each) for each in names.split()]


def _is_on(value: object) -> bool:
    return str(value).strip().lower() not in ("0", "false", "no", "off")


def _precision(value: object) -> str:
    names = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}
    return names.get(str(value), str(value))


@dataclass(frozen=True, kw_only=True)
class DreamboothConfig(RunConfig):
    """Settings of ``dreambooth``.

    :raises UsageError: if a value is out of its range.
    """

    # --- DreamBooth ---
    data: tuple[str, ...] = ()
    """Photographs of the thing: folders or files."""
    prompt: str = ""
    """What they show, with a rare word for the thing: "a photo of sks dog"."""
    prior_preservation: bool = False
    """Learn pictures of the class beside, so that what the model knows of it is kept."""
    class_prompt: str | None = None
    """What pictures of the class show: "a photo of a dog"."""
    class_data: str | None = None
    """The folder of pictures of the class; default: class_pictures in output."""
    class_count: int = 100
    """How many there are; those that lack are drawn with the model as it is."""
    prior_weight: float = 1.0
    """Weight of the class in the loss."""
    train_text_encoder: bool = False
    """Train the text encoder, too."""
    resolution: int = 0
    """Width and height that pictures are learnt in; 0: the model's own."""
    crops: int = 3
    """Squares of a picture that is none, spread evenly along it; 1: the middle."""
    flip: bool = False
    """Learn pictures as in a mirror, too."""
    min_snr: float = 0.0
    """Weigh steps of little noise down to this (Min-SNR's gamma, 5 for example); 0: never."""

    # --- LoRA ---
    rank: int = 8
    """Of the small matrices."""
    alpha: float | None = None
    """What they add is multiplied by alpha / rank; default: the rank."""
    dropout: float = 0.0
    """Share of their inputs that is left out at random."""
    targets: tuple[str, ...] = ()
    """Which layers of the net get them: attention, all, or names such as to_q, ff.net.2, conv1;
    default: what suits the model, or attention."""

    # --- pictures on the way ---
    validation_prompt: str | None = None
    """Draw this at the beginning and every eval-steps; the pictures are in output/validation."""
    validation_count: int = 4
    """How many pictures."""
    guidance: float | None = None
    """How closely such pictures, and those of the class, follow their prompt; default: what suits
    the model, or 7.5."""
    sample_steps: int | None = None
    """Steps of the scheduler that they are drawn with; default: what suits the model, or 30."""
    sample_batch_size: int = 4
    """How many are drawn at a time."""

    # --- optimisation ---
    max_steps: int = 500
    """Stop after so many steps; 0: as epochs say."""
    batch_size: int = 4
    """Photographs of one pass, with as many pictures of the class beside."""
    scheduler: str = "constant"
    """How it falls: constant, cosine, linear, ... as transformers names them."""
    warmup_ratio: float = 0.0
    """Share of the steps in which it rises."""
    weight_decay: float = 1e-2
    """Of the optimizer."""

    # --- device, memory ---
    dtype: str = "auto"
    """Precision of the frozen weights: auto, float32, bfloat16."""
    memory_check: bool = True
    """Foretell the memory of a step, and refuse what does not fit."""

    # --- running ---
    save_steps: int = 500
    """Steps between checkpoints; 0: one at the end of each epoch."""
    eval_steps: int = 100
    """Steps between evaluations; 0: at the end of each epoch."""

    aliases: ClassVar[tuple[Alias, ...]] = (
        *_names("model", "pretrained_model_name_or_path"),
        *_names("data", "instance_data_dir"),
        *_names("prompt", "instance_prompt"),
        *_names("prior_preservation", "with_prior_preservation", switch=True),
        *_names("class_data", "class_data_dir"),
        *_names("class_count", "num_class_images"),
        *_names("prior_weight", "prior_loss_weight"),
        *_names("min_snr", "snr_gamma"),
        *_names("validation_count", "num_validation_images"),
        *_names("batch_size", "train_batch_size"),
        *_names("max_steps", "max_train_steps"),
        *_names("save_steps", "checkpointing_steps"),
        *_names("save_total_limit", "checkpoints_total_limit"),
        *_names("eval_steps", "validation_steps"),
        *_names("scheduler", "lr_scheduler"),
        *_names("weight_decay", "adam_weight_decay"),
        *_names("flip", "random_flip", switch=True),
        Alias("center_crop", ("crops",), lambda on: 1 if _is_on(on) else 3, switch=True),
        Alias("mixed_precision", ("dtype",), _precision),
        Alias(
            "use_8bit_adam",
            ("optimizer",),
            lambda on: "adamw_8bit" if _is_on(on) else "adamw",
            switch=True,
        ),
        *_idle("validation_epochs pre_compute_text_embeddings cache_latents set_grads_to_none"),
        *_idle("enable_xformers_memory_efficient_attention allow_tf32 hub_model_id hub_token"),
        *_idle("prior_generation_precision image_interpolation_mode scale_lr lr_num_cycles"),
        *_idle("lr_power tokenizer_max_length text_encoder_use_attention_mask"),
    )
    """The names of diffusers' script."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UsageError(f"{name} must be {least} or more, got {value!r}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout must be from 0 to below 1, got {self.dropout}")
        if self.alpha is not None and not self.alpha > 0:
            raise UsageError(f"alpha must be above 0, got {self.alpha}")
        if self.dtype == "float16":
            raise UsageError(
                "gradients of pictures are lost to rounding in float16; give --dtype bfloat16, or "
                "float32 where the card has no bfloat16"
            )
        if self.prior_preservation and not (self.class_prompt or "").strip():
            raise UsageError(
                "prior_preservation needs to know the class: give --class-prompt, such as "
                "'a photo of a dog' where --prompt says 'a photo of sks dog'"
            )

    @property
    def scale(self) -> float:
        """What the matrices add is multiplied by it."""
        return (self.alpha or self.rank) / self.rank

    def told(self) -> dict[str, Any]:
        """Return what a LoRA of PEFT is told."""
        return {
            "r": self.rank,
            "lora_alpha": self.alpha or self.rank,
            "lora_dropout": self.dropout,
            "init_lora_weights": "gaussian",
        }


def suited(config: DreamboothConfig, about: About) -> DreamboothConfig:
    """Return a config with what learns and how pictures are drawn as the model wants them.

    What somebody has said stays.
    """
    guidance = next(each for each in (config.guidance, about.guidance, 7.5) if each is not None)
    return replace(
        config,
        guidance=guidance,
        sample_steps=config.sample_steps or about.steps or 30,
        targets=config.targets or about.lora_targets,
    )


_LEAST: dict[str, float] = {
    "class_count": 1,
    "prior_weight": 0,
    "resolution": 0,
    "crops": 1,
    "min_snr": 0,
    "rank": 1,
    "validation_count": 1,
    "guidance": 0,
    "sample_steps": 1,
    "sample_batch_size": 1,
}
