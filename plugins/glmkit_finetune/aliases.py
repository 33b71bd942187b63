"""The names that other trainers use, and what they are called here. One table, in this order.

LF LLaMA-Factory, HF transformers' TrainingArguments, SW ms-swift, GLM the original scripts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from glmkit import Alias, UsageError

from .settings import FALSE, TRUE, is_true

log = logging.getLogger(__name__)

Given = Mapping[str, Any]
"""Values by alias, as they were written."""


def _aliases(setting: str, names: str) -> list[Alias]:
    return [Alias(each, tuple(setting.split("|"))) for each in names.split()]


def _switch(setting: str, names: str) -> list[Alias]:
    return [Alias(each, (setting,), switch=True) for each in names.split()]


def _bits(value: object) -> str:
    known = {"4": "int4", "8": "int8"}
    if str(value) not in known:
        raise UsageError(f"quantization-bit must be 4 or 8, got {value!r}")
    return known[str(value)]


def _dtype(name: str) -> str:
    return _DTYPES.get(name, {"fp32": "float32"}.get(name, name))


_OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf"), "adamw"),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), "adamw_8bit"),
}

ALIASES: tuple[Alias, ...] = (
    *_aliases("model", "model_name_or_path"),
    *_aliases("data", "dataset train_file dataset_path"),
    *_aliases("eval_data", "eval_dataset validation_file"),
    *_aliases("output", "output_dir"),
    *_aliases("device", "devices"),
    *_aliases("workers", "preprocessing_num_workers dataset_num_proc"),
    *_aliases("init_adapter", "ptuning_checkpoint adapters adapter_name_or_path"),
    *_aliases("max_length", "cutoff_len max_seq_length model_max_length"),
    *_aliases("batch_size", "per_device_train_batch_size"),
    *_aliases("gradient_accumulation", "gradient_accumulation_steps"),
    *_aliases("epochs", "num_train_epochs"),
    *_aliases("early_stopping", "early_stopping_patience early_stopping_steps"),
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
    Alias("torch_dtype", ("dtype",), lambda name: _dtype(str(name).removeprefix("torch."))),
)
"""Names that stand for one setting."""

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "pure_bf16": "bfloat16"}
_LOADED = {"load_in_4bit": "4", "load_in_8bit": "8"}
_SPOKEN = ("max_source_length", "max_target_length")
_LONGEST = {"max_source_length": 1024, "max_target_length": 128}
"""What the original scripts take where one is not given."""

_STRATEGIES = {
    "save_strategy": "save_steps",
    "eval_strategy": "eval_steps",
    "evaluation_strategy": "eval_steps",
}
_WARMING = ("warmup_steps", "lr_warmup_steps")
SWITCHES = (
    *(*_DTYPES, *_LOADED, "do_eval", "do_predict", "plot_loss"),
    *("predict_with_generate", "resume_from_checkpoint"),
)
"""Names that need no value and stand for no setting of the same kind."""
OTHERS = (
    *("stage", "finetuning_type", "tuner_type", "template", "max_samples", *_SPOKEN),
    *(*_STRATEGIES, *_WARMING, "quantize", "quantization_bit", "quant_bits"),
)
"""Names that need a value."""
IDLE = (
    *("trust_remote_code", "overwrite_cache", "ddp_timeout", "dataloader_num_workers"),
    *("save_only_model", "per_device_eval_batch_size", "ddp_find_unused_parameters"),
    *("dataloader_pin_memory", "remove_unused_columns", "use_fast_tokenizer", "flash_attn"),
    *("double_quantization", "bnb_4bit_use_double_quant", "bnb_4bit_quant_type"),
    *("bnb_4bit_compute_dtype", "quantization_method", "quantization_type"),
    *("ignore_pad_token_for_loss", "save_safetensors", "logging_dir", "run_name", "test_file"),
    *("metric_for_best_model", "greater_is_better", "use_cache", "adam_epsilon", "local_rank"),
)
"""Names of what needs no setting here: they are left out, with a warning."""
_OURS = ("lora", "qlora", "ptuning", "full", "freeze")
"""Recipes that are supervised fine-tuning; those of other plugins do what they do."""
_NO = (*FALSE, "none", "null")
_STAGES = {"rm": "reward", "dpo": "dpo", "kto": "kto", "ppo": "ppo", "grpo": "grpo"}
"""What others call a stage, and the recipe that does it here."""
_FIXED: dict[str, tuple[tuple[str, ...], str]] = {
    "stage": (("sft",), f"the recipe does 'sft'; others: {', '.join(_STAGES.values())}"),
    "do_train": (TRUE, "glmkit finetune trains; to measure a model: glmkit evaluate"),
    "lora_bias": (("none",), "a LoRA trains no biases here; leave it out"),
    "merge_lora": (_NO, "merge when it is trained: glmkit adapters merge BASE OUTPUT -o MERGED"),
    "push_to_hub": (_NO, "nothing is uploaded; copy the run folder yourself"),
    "logging_strategy": (("steps",), "say how often: --logging-steps N"),
    "adam_beta1": (("0.9",), "AdamW has 0.9 here; leave it out"),
    "adam_beta2": (("0.999",), "AdamW has 0.999 here; leave it out"),
}
"""Names that one value only has a meaning of, and what to do in place of the others."""
_BEST = "load_best_model_at_end"
LOOSE = (*SWITCHES, *IDLE, *(each for each in _FIXED if each != "stage"), _BEST)
"""Names that need no value on the command line, and may have one."""


def aliases_of(config_type: type[Any]) -> tuple[Alias, ...]:
    """Return the names that settings of a recipe may be given, its own first."""
    own: tuple[Alias, ...] = getattr(config_type, "aliases", ())
    names = {each.name for each in own}
    return (*own, *(each for each in ALIASES if each.name not in names))


def translated(
    given: Given, known: set[str], recipe: str, aliases: Iterable[Alias] = ALIASES
) -> dict[str, Any]:
    """Return values by the names of settings.

    :param given: by setting or alias.
    :param known: the settings of the recipe.
    :param recipe: its name.
    :param aliases: see :func:`aliases_of`.
    :raises UsageError: if two names say different things of one setting, or one says what the
        recipe cannot do.
    """
    left = {name: value for name, value in given.items() if value is not None or name in known}
    for name, bits in _LOADED.items():
        if is_true(left.pop(name, "no")):
            left.setdefault("quantization_bit", bits)
    found = {name: left.pop(name) for name in list(left) if name in known}
    for alias in aliases:
        if alias.name in left:
            setting = next((each for each in alias.settings if each in known), None)
            if not alias.settings:
                del left[alias.name]
                log.warning("%s: without a counterpart in glmkit, left out", alias.name)
            elif setting is not None:
                _add(found, setting, alias.read(left.pop(alias.name)), alias.name)
    for name, dtype in _DTYPES.items():
        if name in left and is_true(left.pop(name)):
            _add(found, "dtype", dtype, name)
    if any(name in left for name in _SPOKEN):
        lengths = {name: int(left.pop(name, _LONGEST[name])) for name in _SPOKEN}
        _add(found, "max_length", sum(lengths.values()), " and ".join(_SPOKEN))
    _refuse_rounding(left, known, recipe)
    _resume(found, left)
    _limit(found, left)
    _pace(found, left)
    _judge(found, left)
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
    if not is_true(value) and str(value) != "latest":
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


def _refuse_rounding(left: dict[str, Any], known: set[str], recipe: str) -> None:
    """Say which recipe rounds the frozen weights, where this one does not."""
    named = next((each for each in _ROUNDING if each in left), "")
    if not named or "quantize" in known:
        return
    if str(left[named]).lower() in _NO:
        del left[named]
        return
    other = "glmkit finetune qlora" if recipe == "lora" else "qlora or ptuning"
    raise UsageError(f"{named}: the recipe {recipe!r} keeps weights as they are; use {other}")


_ROUNDING = ("quantize", "quantization_bit", "quant_bits")


def _pace(found: dict[str, Any], left: dict[str, Any]) -> None:
    """Take what says when to warm up, to save and to evaluate."""
    for name, setting in _STRATEGIES.items():
        _strategy(found, setting, name, left.pop(name, None))
    said = [float(left.pop(name)) for name in _WARMING if name in left]
    steps = max(said, default=0.0)
    if not steps:
        return
    most = float(found.get("max_steps", 0))
    if not most:
        raise UsageError(
            f"warmup_steps is {steps:g}, and how many steps there are is not known; give "
            "--max-steps too, or the share of the steps: --warmup-ratio 0.03"
        )
    _add(found, "warmup_ratio", min(1.0, steps / most), "warmup_steps")


def _strategy(found: dict[str, Any], setting: str, name: str, value: object) -> None:
    """Take steps, or epoch: that is what a setting without steps means."""
    said = "steps" if value is None else str(value).lower()
    evaluates = setting == "eval_steps" and (found.get("eval_data") or found.get("val_size"))
    if said == "epoch":
        found.pop(setting, None)
    elif said in _NO and setting == "eval_steps" and not evaluates:
        found.pop(setting, None)
    elif said in _NO:
        raise UsageError(f"{name} is {value!r}; {_INSTEAD[setting]}")
    elif said != "steps":
        raise UsageError(f"{name} must be steps or epoch, got {value!r}")


_INSTEAD = {
    "save_steps": "a run leaves a checkpoint to go on from: keep one with --save-total-limit 1",
    "eval_steps": "leave out what it is evaluated on: --eval-data, --val-size",
}


def _judge(found: dict[str, Any], left: dict[str, Any]) -> None:
    """Take what says whether and how a run is evaluated."""
    data = found.get("eval_data") or found.get("val_size")
    if is_true(left.pop("do_eval", "no")) and not data:
        raise UsageError(
            "do_eval needs something to evaluate on: --eval-data FILE, --val-size 0.05"
        )
    if is_true(left.pop("predict_with_generate", "no")):
        if data:
            found.setdefault("eval_generate", _ANSWERED)
        else:
            log.warning("predict_with_generate: without --eval-data, left out; see glmkit evaluate")
    if is_true(left.pop("do_predict", "no")):
        if not is_true(left.get("do_train", "no")):
            raise UsageError(
                "do_predict is another command here: glmkit evaluate --model BASE --adapter OUTPUT "
                "--data FILE"
            )
        log.warning("do_predict: predict when it is trained, with glmkit evaluate --data FILE")
    if is_true(left.pop(_BEST, "no")) and not found.get("early_stopping"):
        raise UsageError(f"{_BEST} needs --early-stopping N, which leaves the best; give that")


_ANSWERED = 32
"""Samples that ``predict_with_generate`` answers while training."""


def _leave_out(left: dict[str, Any]) -> None:
    idle = [name for name in IDLE if left.pop(name, None) is not None]
    if idle:
        log.warning("%s: without a counterpart in glmkit, left out", ", ".join(idle))


def _check_kind(left: dict[str, Any], recipe: str) -> None:
    """Check what other trainers are told and a recipe's name says here."""
    ours = recipe in _OURS
    stage = str(left.get("stage", "")).lower()
    if stage in _STAGES and (ours or recipe in _STAGES.values()) and _STAGES[stage] != recipe:
        raise UsageError(
            f"stage is {stage!r}, and the recipe is {recipe!r}; run glmkit finetune "
            f"{_STAGES[stage]}"
        )
    for name, (allowed, says) in _FIXED.items():
        value = left.pop(name, None)
        if value is not None and ours and str(value).lower() not in allowed:
            raise UsageError(f"{name} is {value!r}; {says}")
    for name in ("finetuning_type", "tuner_type"):
        value = left.pop(name, None)
        if value is not None and ours and str(value) not in (recipe, recipe.removeprefix("q")):
            raise UsageError(
                f"{name} is {value!r}, and the recipe is {recipe!r}; run glmkit finetune {value}"
            )
    for name in ("template", "plot_loss"):  # the model's own; always
        left.pop(name, None)
