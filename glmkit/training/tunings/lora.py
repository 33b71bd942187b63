"""LoRA beside the linear layers of our own modules, by PEFT; saved by the base's names.

What is trained beside one fused matrix is saved, where the base's layout cuts that matrix up,
beside each of its parts: all share A, and B's rows are parted. That is the same change, exactly.

Shapes: r rank, in and out the sizes of a linear layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, MissingExtraError, UsageError
from ...models.causal import CausalModel
from ...runtime.adapters import Adapter, LowRank, read_adapter
from ...runtime.fingerprint import Fingerprint
from ...runtime.fitting import check_base, fit_lora, linear_shapes, names_for
from ...runtime.linears import Int4Linear, Int8Linear
from ...runtime.merging import skeleton
from ...runtime.planning import of_folder
from ..config import TrainConfig
from ..optimizers import Group
from ..tuning import together

if TYPE_CHECKING:
    from peft import LoraConfig

_ALL = ("all", "all-linear")
_OWNER = "default"
"""What PEFT calls the adapter in the names of a live model."""
_INITS: dict[str, Any] = {
    "default": True,
    "gaussian": "gaussian",
    "orthogonal": "orthogonal",
}


class LoraTuning:
    """Low-rank changes beside linear layers.

    :param base: the folder of the model.
    :param targets: names of linears, in any layout's words, or ``("all",)``.
    :param ratio: times that B learns as fast as A (LoRA+).
    """

    kind = "lora"
    lossless = True

    def __init__(
        self,
        base: Path,
        *,
        rank: int = 8,
        alpha: float = 16,
        dropout: float = 0.0,
        targets: Sequence[str] = _ALL,
        dora: bool = False,
        rslora: bool = False,
        ratio: float = 1.0,
        init: str = "default",
        family: str | None = None,
    ) -> None:
        self.base, self.family = base, family
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.targets, self.dora, self.rslora = tuple(targets), dora, rslora
        self.ratio, self.init = ratio, init
        linears = tuple(dict.fromkeys(map(_own_name, targets)))
        linears = linears if set(linears) <= set(_OWN.values()) else ("all",)
        self.forecast: Mapping[str, Any] = {"rank": rank, "targets": linears}

    def dress(self, model: CausalModel) -> None:
        """Freeze the model and put new matrices beside its linears; at first they change nothing.

        :raises UsageError: if a target is none of the model's linears.
        """
        try:
            from peft import inject_adapter_in_model
            from peft.tuners.lora import Linear
        except ImportError as error:
            raise MissingExtraError("the recipe lora", "peft", "finetune") from error
        stems = list(chosen(model, self.targets))
        self._refuse_rounded(model, stems)
        config = self._config(stems)
        config._register_custom_module({Int4Linear: Linear, Int8Linear: Linear})
        model.requires_grad_(False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unsupported layer type")  # PEFT knows not ours
            inject_adapter_in_model(config, model)
        for stem, module in model.named_modules():
            if isinstance(module, Linear):
                _settle(module, model.where(stem))

    @property
    def lies(self) -> str | None:
        """How the base's weights lie rounded, where this can be trained beside such."""
        return None if self.dora else lying(self.base, self.family)

    def _refuse_rounded(self, model: CausalModel, stems: list[str]) -> None:
        """Refuse DoRA over quantised weights: it looks at the whole matrix in every step."""
        rounded = (Int4Linear, Int8Linear)
        if self.dora and any(isinstance(model.get_submodule(each), rounded) for each in stems):
            raise UsageError(
                "DoRA needs plain weights, and these are quantised: give --dtype float32 or "
                "bfloat16, which expands them while loading, or leave out --dora"
            )

    def _config(self, targets: list[str]) -> LoraConfig:
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=targets,
            use_dora=self.dora,
            use_rslora=self.rslora,
            init_lora_weights=_INITS[self.init],
            task_type="CAUSAL_LM",
            base_model_name_or_path=str(self.base),
        )

    def groups(self, model: CausalModel, config: TrainConfig) -> list[Group]:
        """Return A and B apart where B learns faster."""
        if self.ratio == 1:
            return together(model)
        named = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
        slow = [each for name, each in named if ".lora_B." not in name]
        fast = [each for name, each in named if ".lora_B." in name]
        return [{"params": slow}, {"params": fast, "lr": config.learning_rate * self.ratio}]

    def save(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write the folder that PEFT reads, by the names of the base's layout, and its base."""
        from safetensors.torch import save_file

        tensors = dict(self._named(state))
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        stems = {name.partition(".lora_")[0].removeprefix(_ROOT) for name in tensors}
        config = self._config(sorted({each.rpartition(".")[2] for each in stems}))
        config.inference_mode = True
        config.save_pretrained(str(folder))
        self._fingerprint.write(folder)

    def _named(self, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield tensors by the names that PEFT gives them over the base's own layout."""
        layout = self._skeleton[0]
        for name, tensor in state.items():
            stem, leaf = _parted(name)
            names = layout.sources(stem)
            whole = len(names) == 1 or leaf == "lora_A.weight"
            rows = self._rows(stem, len(names))
            parts = [tensor] * len(names) if whole else torch.split(tensor, rows)
            for each, part in zip(names, parts, strict=True):
                yield f"{_ROOT}{each}.{leaf}", part.contiguous().clone()

    def _rows(self, stem: str, count: int) -> list[int]:
        """Return how many rows of a fused matrix each part has: queries, keys, values."""
        config = self._skeleton[1].config
        keys = config.kv_heads * config.head_dim
        return [config.heads * config.head_dim, keys, keys] if count == 3 else []

    def load(self, folder: Path) -> dict[str, Tensor]:
        """Return an adapter of any layout by the names of the dressed model.

        :raises CheckpointError: if it was trained on another model, or is of another shape or
            scale than this training; says which flags make it fit.
        """
        adapter = read_adapter(folder)
        if adapter.kind != "lora":
            raise CheckpointError(f"{folder} is a P-Tuning prefix; go on with it in ptuning")
        check_base(adapter, self._fingerprint)
        model = self._skeleton[1]
        fitted = fit_lora(adapter, model)
        self._check(adapter, fitted, set(chosen(model, self.targets)))
        state = {}
        for stem, part in fitted.items():
            state[f"{stem}.lora_A.{_OWNER}.weight"] = part.a
            state[f"{stem}.lora_B.{_OWNER}.weight"] = part.b
            if part.magnitude is not None:
                state[f"{stem}.lora_magnitude_vector.{_OWNER}.weight"] = part.magnitude
        return state

    def _check(self, adapter: Adapter, fitted: dict[str, LowRank], targets: set[str]) -> None:
        ranks = {each.rank for each in fitted.values()}
        scales = {each.scale for each in fitted.values()}
        own = self.alpha / (self.rank**0.5 if self.rslora else self.rank)
        if ranks == {self.rank} and scales == {own} and set(fitted) == targets:
            return
        if len(ranks) > 1 or len(scales) > 1:
            raise CheckpointError(
                f"adapter {adapter.name!r} has ranks {_listed(ranks)} and scales "
                f"{_listed(scales)}; only one rank and scale for all can be trained further"
            )
        rank, scale = ranks.pop(), scales.pop()
        names = sorted({each.rpartition(".")[2] for each in fitted})
        flags = f"--rank {rank} --alpha {scale * rank:g} --targets {','.join(names)}"
        raise CheckpointError(
            f"adapter {adapter.name!r} has other settings than this training (rank {self.rank}, "
            f"alpha {self.alpha:g}, targets {','.join(self.targets)}); give {flags}"
        )

    @cached_property
    def _skeleton(self):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return skeleton(self.base, self.family)

    @cached_property
    def _fingerprint(self) -> Fingerprint:
        return Fingerprint.of(self.base)


def lying(base: Path, family: str | None = None) -> str | None:
    """Return how the weights of a model lie rounded, ``int4`` or ``int8``; None: they are plain."""
    return of_folder(base, family)[1]


_ROOT = "base_model.model."


def _parted(name: str) -> tuple[str, str]:
    """Return the module of a live name, and the rest as PEFT saves it."""
    stem, _, leaf = name.partition(".lora_")
    leaf = "lora_" + leaf.replace(f".{_OWNER}", "", 1)
    return stem, leaf.removesuffix(".weight") if leaf.startswith("lora_magnitude") else leaf


def _listed(values: set[int] | set[float]) -> str:
    return ", ".join(f"{each:g}" for each in sorted(values))


def _settle(layer: nn.Module, device: torch.device) -> None:
    """Train in single precision whatever the base is, where the base computes."""
    for name, each in layer.named_parameters():
        if "lora_" in name:
            each.data = each.data.to(device, torch.float32)


def chosen(model: CausalModel, targets: Sequence[str]) -> Iterator[str]:
    """Yield the linears of blocks that targets name, in any layout's words.

    :raises UsageError: if one names none.
    """
    stems = [each for each in linear_shapes(model) if each != model.HEAD]
    if any(each in _ALL for each in targets):
        yield from stems
        return
    known = {name: place[0] for name, place in names_for(model, dict.fromkeys(stems)).items()}
    wanted = set()
    for target in targets:
        endings = tuple(f".{each}" for each in (_SHORT.get(target, target), _own_name(target)))
        found = {stem for name, stem in known.items() if f".{name}".endswith(endings)}
        if not found:
            names = sorted({each.rpartition(".")[2] for each in known})
            raise UsageError(
                f"targets: {target!r} is no linear layer of this model; all, or some of: "
                f"{', '.join(names)}"
            )
        wanted |= found
    yield from (each for each in stems if each in wanted)


_SHORT = {each: f"{each}_proj" for each in ("q", "k", "v", "o")}
"""What people write short."""
_OWN = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "query_key_value"),
    **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj"), "dense_h_to_4h"),
    **{"o_proj": "dense", "down_proj": "dense_4h_to_h"},
}
"""What Llama's layouts call our matrices, or parts of them."""


def _own_name(target: str) -> str:
    """Return our name of a kind of linear."""
    name = _SHORT.get(target, target)
    return _OWN.get(name, name)
