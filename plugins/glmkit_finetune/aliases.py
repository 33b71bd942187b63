"""The names that other trainers use, and what they are called here. One table, in this order.

LF LLaMA-Factory, HF transformers' TrainingArguments, SW ms-swift, GLM the original scripts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glmkit import UsageError

log = logging.getLogger(__name__)

Given = Mapping[str, Any]
"""Values by alias, as they were written."""


@dataclass(frozen=True)
class Alias:
    """A name that people know."""

    name: str
    settings: tuple[str, ...]
    """What it sets, the first of these that a recipe has; empty: nothing, see ``says``."""
    read: Callable[[Any], Any] = lambda value: value
    """Returns the value as the setting is written."""
    switch: bool = False
    """On the command line it needs no value."""


def _aliases(setting: str, names: str) -> list[Alias]:
    return [Alias(each, tuple(setting.split("|"))) for each in names.split()]


def _switch(setting: str, names: str) -> list[Alias]:
    return [Alias(each, (setting,), switch=True) for each in names.split()]


def is_true(value: object) -> bool:
    """Tell whether a switch is on."""
    return str(value).strip().lower() in ("1", "true", "yes", "on")


def _bits(value: object) -> str:
    known = {"4": "int4", "8": "int8"}
    if str(value) not in known:
        raise UsageError(f"quantization-bit must be 4 or 8, got {value!r}")
    return known[str(value)]


_OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf"), "adamw"),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), "adamw_8bit"),
}

ALIASES: tuple[Alias, ...] = (
    *_aliases("model", "model_name_or_path"),
    *_aliases("data", "dataset train_file"),
    *_aliases("eval_data", "eval_dataset validation_file"),
    *_aliases("output", "output_dir"),
    *_aliases("device", "devices"),
    *_aliases("workers", "preprocessing_num_workers dataset_num_proc"),
    *_aliases("init_adapter", "ptuning_checkpoint adapters adapter_name_or_path"),
    *_aliases("max_length", "cutoff_len max_seq_length"),
    *_aliases("batch_size", "per_device_train_batch_size"),
    *_aliases("gradient_accumulation", "gradient_accumulation_steps"),
    *_aliases("epochs", "num_train_epochs"),
    *_aliases("scheduler", "lr_scheduler_type"),
    *_aliases("neftune", "neftune_noise_alpha"),
    *_aliases("rank", "lora_rank lora_r"),
    *_aliases("alpha", "lora_alpha"),
    *_aliases("dropout", "lora_dropout"),
    *_aliases("targets", "lora_target lora_target_modules target_modules"),
    *_aliases("loraplus", "loraplus_lr_ratio"),
    *_switch("dora", "use_dora"),
    *_switch("rslora", "use_rslora"),
    *_aliases("layers", "freeze_trainable_layers num_layer_trainable"),
    *_aliases("modules", "freeze_trainable_modules"),
    *_aliases("extra_modules", "freeze_extra_modules"),
    *_switch("projection", "prefix_projection"),
    *_switch("overwrite", "overwrite_output_dir"),
    Alias("mask_history", ("train_on",), lambda on: "last" if is_true(on) else "all", switch=True),
    Alias("optim", ("optimizer",), lambda name: _OPTIMIZERS.get(name, name)),
    Alias("quantization_bit", ("quantize",), _bits),
    Alias("quant_bits", ("quantize",), _bits),
)
"""Names that stand for one setting."""

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "pure_bf16": "bfloat16"}
_SPOKEN = ("max_source_length", "max_target_length")
_LONGEST = {"max_source_length": 1024, "max_target_length": 128}
"""What the original scripts take where one is not given."""

SWITCHES = (*_DTYPES, "do_train", "plot_loss")
"""Names that need no value and stand for no setting of the same kind."""
OTHERS = (
    *("resume_from_checkpoint", "stage", "finetuning_type", "tuner_type", "template"),
    *("max_samples", *_SPOKEN),
)
IDLE = (
    *("trust_remote_code", "overwrite_cache", "ddp_timeout", "dataloader_num_workers"),
    *("save_only_model", "per_device_eval_batch_size", "eval_strategy", "evaluation_strategy"),
    *("dataloader_pin_memory", "remove_unused_columns", "use_fast_tokenizer", "flash_attn"),
)
"""Names of what needs no setting here: they are left out, with a warning."""
_KINDS = {"stage": ("sft",), "do_train": ("true", "1", "yes", "on")}


def translated(given: Given, known: set[str], recipe: str) -> dict[str, Any]:
    """Return values by the names of settings.

    :param given: by setting or alias.
    :param known: the settings of the recipe.
    :param recipe: its name.
    :raises UsageError: if two names say different things of one setting, or one says what the
        recipe cannot do.
    """
    left = dict(given)
    found = {name: left.pop(name) for name in list(left) if name in known}
    for alias in ALIASES:
        if alias.name in left:
            setting = next((each for each in alias.settings if each in known), None)
            if setting is not None:
                _add(found, setting, alias.read(left.pop(alias.name)), alias.name)
    for name, dtype in _DTYPES.items():
        if name in left and is_true(left.pop(name)):
            _add(found, "dtype", dtype, name)
    if any(name in left for name in _SPOKEN):
        lengths = {name: int(left.pop(name, _LONGEST[name])) for name in _SPOKEN}
        _add(found, "max_length", sum(lengths.values()), " and ".join(_SPOKEN))
    _resume(found, left)
    _limit(found, left)
    _check_kind(left, recipe)
    _leave_out(left)
    return found | left


def _add(found: dict[str, Any], setting: str, value: object, name: str) -> None:
    if setting in found and str(found[setting]) != str(value):
        raise UsageError(
            f"{name} and {setting} are the same setting, and got {value!r} and "
            f"{found[setting]!r}; give one of them"
        )
    found[setting] = value


def _resume(found: dict[str, Any], left: dict[str, Any]) -> None:
    """Take transformers' flag: true, or the path of a checkpoint in the run folder."""
    value = left.pop("resume_from_checkpoint", None)
    if value is None or str(value).lower() in ("false", "none", "null"):
        return
    if not is_true(value):
        folder = str(value).rstrip("/").rpartition("/")[0] or "."
        _add(found, "output", folder, "the folder of resume_from_checkpoint")
    found["resume"] = True


def _limit(found: dict[str, Any], left: dict[str, Any]) -> None:
    """Take so many samples of each of the data that have no number of their own."""
    most, data = left.pop("max_samples", None), found.get("data")
    if most is None or not data:
        return
    files = data.split(",") if isinstance(data, str) else data
    found["data"] = [each if "#" in each else f"{each}#{most}" for each in files]


def _leave_out(left: dict[str, Any]) -> None:
    idle = [name for name in IDLE if left.pop(name, None) is not None]
    if idle:
        log.warning("%s: without a counterpart in glmkit, left out", ", ".join(idle))


def _check_kind(left: dict[str, Any], recipe: str) -> None:
    """Check what other trainers are told and a recipe's name says here."""
    for name, allowed in _KINDS.items():
        value = left.pop(name, None)
        if value is not None and str(value).lower() not in allowed:
            raise UsageError(
                f"{name} is {value!r}; glmkit finetune does {allowed[0]!r} only "
                "(see glmkit finetune --list)"
            )
    for name in ("finetuning_type", "tuner_type"):
        value = left.pop(name, None)
        if value is not None and str(value) not in (recipe, recipe.removeprefix("q")):
            raise UsageError(
                f"{name} is {value!r}, and the recipe is {recipe!r}; run glmkit finetune {value}"
            )
    for name in ("template", "plot_loss"):  # the model's own; always
        left.pop(name, None)
