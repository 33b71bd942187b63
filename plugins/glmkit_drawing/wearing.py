"""LoRAs on a pipeline: checked against its modules, put on, and looked at again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glmkit import CheckpointError, UsageError

from .lora import Factors, Lora, Part

if TYPE_CHECKING:
    from torch import Tensor, nn

_NAMED = 5
"""Keys that a message names; the rest are counted."""


def wear(pipeline: Any, loras: Sequence[tuple[Lora, float]]) -> None:  # noqa: ANN401
    """Make a pipeline draw with these LoRAs, each with its weight, and no other.

    One with the weight 0 is checked and left off: the base draws exactly as it did. Where one
    cannot be put on, none is on afterwards.

    :raises UsageError: if the pipeline takes no LoRA.
    :raises CheckpointError: if a key fits no module; it is named.
    """
    if loras and not hasattr(pipeline, "load_lora_weights"):
        kind = type(pipeline).__name__
        raise UsageError(f"diffusers knows no LoRA for {kind}; draw without --lora")
    take_off(pipeline)
    fitted = {
        f"lora{number}": (_fitted(pipeline, lora), (lora, weight))
        for number, (lora, weight) in enumerate(loras)
    }
    worn = {name: each for name, each in fitted.items() if each[1][1] != 0}
    try:
        for name, (parts, _) in worn.items():
            _put_on(pipeline, parts, name)
        if worn:
            pipeline.set_adapters(list(worn), [weight for _, (_, weight) in worn.values()])
        for name, (parts, asked) in worn.items():  # at the end: putting one on may touch another
            _look_again(pipeline, parts, name, asked)
    except BaseException:
        take_off(pipeline)
        raise


def _put_on(pipeline: Any, parts: Mapping[Part, Factors], name: str) -> None:  # noqa: ANN401
    """Put one on: networks of diffusers by diffusers, text encoders by PEFT.

    For those, diffusers calls transformers, which in some versions starts the LoRAs anew that are
    on already.
    """
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    for component in {each for each, _ in parts}:
        own = {part: factors for part, factors in parts.items() if part[0] == component}
        model, state = getattr(pipeline, component), state_of(own)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            if hasattr(model, "load_lora_adapter"):
                model.load_lora_adapter(state, prefix=component, adapter_name=name)
                continue
            rank = max(each.shape[0] for key, each in state.items() if "lora_A" in key)
            names = [module for _, module in own]
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
            inject_adapter_in_model(config, model, adapter_name=name)
            plain = {key.removeprefix(f"{component}."): each for key, each in state.items()}
            set_peft_model_state_dict(model, plain, adapter_name=name)


def take_off(pipeline: Any) -> None:  # noqa: ANN401
    """Take every LoRA off again."""
    if hasattr(pipeline, "unload_lora_weights") and pipeline.get_list_adapters():
        pipeline.unload_lora_weights()


def _fitted(pipeline: Any, lora: Lora) -> dict[Part, Factors]:  # noqa: ANN401
    """Return the parts by the pipeline's own names.

    :raises CheckpointError: if a part has no module there, or one of another shape.
    """
    found: dict[Part, Factors] = {}
    wrong: list[str] = []
    models = {each: getattr(pipeline, each, None) for each, _ in lora.parts}
    inside = {name: dict(each.named_modules()) for name, each in models.items() if each is not None}
    for (component, name), factors in lora.parts.items():
        model = models[component]
        own = _own_name(model, name)
        module = inside.get(component, {}).get(own)
        problem = _problem(component, model, module, factors)
        if problem:
            wrong.append(f"{factors.key!r} ({problem})")
        found[component, own] = factors
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise CheckpointError(
            f"{lora.path} does not fit this picture model: {'; '.join(wrong[:_NAMED])}{more}; it "
            "was trained on another one"
        )
    return found


def _own_name(model: nn.Module | None, name: str) -> str:
    """Return a module's name in a text encoder, which newer versions have one level higher."""
    if model is None or hasattr(model, "text_model"):
        return name
    return name.removeprefix("text_model.")


def _problem(
    component: str, model: nn.Module | None, module: nn.Module | None, factors: Factors
) -> str:
    if model is None:
        return f"the model has no {component}"
    weight = getattr(module, "weight", None)
    if module is None or weight is None:
        return f"no such module in its {component}"
    base: Any = getattr(module, "base_layer", module)  # under a LoRA that is on already
    there = tuple(base.weight.shape)
    asked = (factors.up.shape[0], *factors.down.shape[1:])
    return "" if there == asked else f"{asked} for a module of {there}"


def state_of(parts: Mapping[Part, Factors]) -> dict[str, Tensor]:
    """Return parts as diffusers reads them, of one rank per component: its scale is then 1."""
    ranks: dict[str, int] = {}
    for (component, _), factors in parts.items():
        ranks[component] = max(ranks.get(component, 0), factors.down.shape[0])
    state: dict[str, Tensor] = {}
    for (component, name), factors in parts.items():
        down, up = _padded(factors, ranks[component])
        stem = f"{component}.{name}"
        state |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    return state


def _padded(factors: Factors, rank: int) -> tuple[Tensor, Tensor]:
    """Return down and up with zeros up to a rank."""
    import torch

    down, up = factors.down, factors.up
    missing = rank - down.shape[0]
    if missing:
        down = torch.cat([down, down.new_zeros(missing, *down.shape[1:])])
        up = torch.cat([up, up.new_zeros(up.shape[0], missing, *up.shape[2:])], dim=1)
    return down.contiguous(), up.contiguous()


def _look_again(
    pipeline: Any,  # noqa: ANN401
    parts: Mapping[Part, Factors],
    name: str,
    worn: tuple[Lora, float],
) -> None:
    """Make sure that every tensor arrived where it belongs, as loaders skip some in silence.

    :raises CheckpointError: naming the first that did not.
    """
    import torch

    for (component, own), factors in parts.items():
        module = getattr(pipeline, component).get_submodule(own)
        there = getattr(module, "lora_B", {})
        rank = factors.up.shape[1]
        arrived = (
            name in there
            and name in module.active_adapters
            and module.scaling[name] == worn[1]
            and torch.equal(there[name].weight[:, :rank], factors.up.to(there[name].weight))
        )
        if not arrived:
            raise CheckpointError(
                f"{worn[0].path}: {factors.key!r} did not arrive on {component}.{own}; please "
                "report this with the versions of diffusers and peft"
            )
