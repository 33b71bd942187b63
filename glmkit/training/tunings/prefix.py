"""P-Tuning v2: a prefix is learnt in single precision in front of a frozen model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError
from ...models.causal import CausalModel
from ...models.chatglm import ChatGlm
from ...models.files import read_json
from ...models.prefix import PrefixConfig, PrefixEncoder
from ...runtime.adapter_files import PREFIX
from ...runtime.adapters import read_adapter
from ...runtime.fingerprint import Fingerprint
from ...runtime.fitting import check_base
from ..config import TrainConfig
from ..optimizers import Group
from ..tuning import together


class PrefixTuning:
    """A learned prefix.

    :param base: the folder of the model.
    :param length: its entries.
    :param projection: it is learnt through a small network.
    """

    kind = "ptuning"
    lossless = True

    def __init__(self, base: Path, *, length: int = 128, projection: bool = False) -> None:
        self.base, self.length, self.projection = base, length, projection
        self.forecast: Mapping[str, Any] = {"prefix": length}

    def dress(self, model: CausalModel) -> None:
        """Freeze the model and give it a new prefix; one of its own is replaced."""
        model.requires_grad_(False)
        config = model.config
        shape = PrefixConfig(
            self.length,
            config.layers,
            config.kv_heads,
            config.head_dim,
            config.hidden_size,
            projection=self.projection,
            narrow=isinstance(model, ChatGlm),
        )
        encoder = PrefixEncoder(shape)
        nn.init.normal_(encoder.embedding.weight)  # as in the original code; the rest is torch's
        model.transformer.prefix_encoder = encoder.to(model.where(model.EMBEDDING), torch.float32)

    def groups(self, model: CausalModel, config: TrainConfig) -> list[Group]:
        """Return all of it as one group."""
        return together(model)

    def save(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write the prefix alone, as the original scripts do, and its base."""
        torch.save({name: each.contiguous() for name, each in state.items()}, folder / _FILE)
        raw = read_json(self.base / "config.json")
        raw |= {"pre_seq_len": self.length, "prefix_projection": self.projection}
        raw.setdefault("_name_or_path", str(self.base))
        text = json.dumps(raw, indent=2, ensure_ascii=False)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        self._fingerprint.write(folder)

    def load(self, folder: Path) -> dict[str, Tensor]:
        """Return a prefix by the names of the dressed model.

        :raises CheckpointError: if it is for another model, or of another shape.
        """
        adapter = read_adapter(folder)
        if adapter.kind != "prefix":
            raise CheckpointError(f"{folder} is a LoRA adapter; go on with it in the recipe lora")
        check_base(adapter, self._fingerprint)
        length = adapter.prefix["embedding.weight"].shape[0]
        projection = "trans.0.weight" in adapter.prefix
        if (length, projection) != (self.length, self.projection):
            flags = f"--pre-seq-len {length} --{'' if projection else 'no-'}projection"
            raise CheckpointError(
                f"the prefix {adapter.name!r} has {length} entries "
                f"{'with' if projection else 'without'} projection, this training {self.length} "
                f"{'with' if self.projection else 'without'}; give {flags}"
            )
        return {f"{PREFIX}{name}": each for name, each in adapter.prefix.items()}

    @cached_property
    def _fingerprint(self) -> Fingerprint:
        return Fingerprint.of(self.base)


_FILE = "pytorch_model.bin"
