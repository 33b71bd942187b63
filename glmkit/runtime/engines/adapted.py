"""The part of a local model that has to do with adapters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ...errors import PluginError, UnknownNameError, UsageError
from ...models.causal import CausalModel
from ..adapters import Adapter, read_adapter
from ..fingerprint import Fingerprint
from ..fitting import check_base, doubt
from ..lora import AdapterSet, Choice, Mix

if TYPE_CHECKING:
    from .local import LocalModel

log = logging.getLogger(__name__)

AdapterReader = Callable[[Path, "LocalModel", float | None], Adapter]
"""Takes the path of an adapter, the model that it is for, and the alpha that was given."""


def _read(path: Path, model: LocalModel, alpha: float | None) -> Adapter:
    return read_adapter(path, alpha=alpha)


class Adapted:
    """A model that wears adapters: LoRA, several at once, and P-Tuning prefixes.

    :param folder: where the weights came from; None where nobody knows.
    """

    model: CausalModel
    name: str
    family: str | None

    def __init__(self, model: CausalModel, folder: Path | None) -> None:
        self.folder = folder
        self.adapter_reader: AdapterReader = _read
        """Reads adapters; an application puts its plugins here."""
        self._adapters = AdapterSet(model)

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """The loaded adapters by name."""
        return dict(self._adapters.loaded)

    @property
    def active_adapters(self) -> Mapping[str, float]:
        """What the model wears, with weights; empty: it is the base alone."""
        return dict(self._adapters.active)

    def load_adapter(
        self,
        path: Path | str,
        name: str | None = None,
        *,
        alpha: float | None = None,
        any_base: bool = False,
    ) -> str:
        """Load an adapter, and wear it if no other one is worn; return its name.

        All of it is checked before the model changes.

        :param path: a PEFT folder, a raw ``.pt`` file or a P-Tuning prefix folder.
        :param name: None: the folder's or the file's.
        :param alpha: LoRA's alpha, for files that record none.
        :param any_base: load it also if it was trained on another model of this shape.
        :raises CheckpointError: if it is damaged or does not fit; says what differs.
        :raises UsageError: if the name is taken, or alpha is needed and not given.
        """
        adapter = self.adapter_reader(Path(path), cast("LocalModel", self), alpha)
        if not isinstance(adapter, Adapter):
            kind = type(adapter).__name__
            raise PluginError(f"a plugin read {path} as a {kind}; load_adapter returns an Adapter")
        return self.add_adapter(adapter, name, any_base=any_base)

    def add_adapter(
        self, adapter: Adapter, name: str | None = None, *, any_base: bool = False
    ) -> str:
        """Load an adapter that has been read; see :meth:`load_adapter`.

        :raises CheckpointError: if it does not fit; says what differs.
        :raises UsageError: if the name is taken.
        """
        if adapter.fingerprint is not None and not any_base:
            check_base(adapter, self.fingerprint())
        name = name or adapter.name
        self._adapters.add(name, adapter)
        doubtful = doubt(adapter, self.name, self.family)
        if doubtful is not None:
            log.warning(doubtful)
        if not self._adapters.active:
            self.set_adapter(name)
        return name

    def fingerprint(self) -> Fingerprint | None:
        """Return what tells this model's weights from others; None where no folder is known."""
        return None if self.folder is None else Fingerprint.of(self.folder, self.name)

    def set_adapter(self, choice: Choice | Sequence[str]) -> None:
        """Wear one adapter, several with weights, or none.

        :param choice: a name, a list of names, ``{name: weight}``, or None for the base alone.
        :raises UnknownNameError: if one is not loaded.
        """
        self._adapters.wear(self._adapters.mix({} if choice is None else choice))

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter.

        :raises UnknownNameError: if none has the name.
        """
        self._adapters.remove(name)

    def save_adapter(self, name: str, folder: Path | str, *, force: bool = False) -> Path:
        """Write a LoRA as the folder that peft reads today, and what it was trained on.

        :param force: replace the adapter that the folder holds.
        :raises UnknownNameError: if none has the name.
        :raises UsageError: if it is a prefix, the folder is not empty, or nobody knows the base.
        """
        from ..saving import save_adapter  # which needs the loader, which needs us

        adapter = self.adapters.get(name)
        if adapter is None:
            raise UnknownNameError("adapter", name, self.adapters, hint="load_adapter() loads one")
        base = adapter.fingerprint or self.fingerprint()
        if base is None:
            raise UsageError(
                f"cannot tell what adapter {name!r} was trained on: {self.name} was not loaded "
                "from a folder; glmkit.runtime.saving.save_adapter() saves without that"
            )
        return save_adapter(adapter, folder, base=base, force=force)

    def merge_adapter(self) -> None:
        """Add the LoRA adapters that are worn to the matrices, for speed.

        The plain matrices are kept, so this takes as much memory again as they do. To write a
        merged model to disk, see ``glmkit adapters merge``. Whatever goes wrong, the model is as
        before.

        :raises UsageError: if none is worn, or the matrices are quantised.
        :raises CheckpointError: if no matrix changed, one overflowed, or the merged model scores a
            probe otherwise than it did with the adapters on.
        """
        self._adapters.merge()

    def unmerge_adapter(self) -> None:
        """Put the matrices back as they were, bit for bit.

        :raises UsageError: if nothing is merged.
        """
        self._adapters.unmerge()

    def _mixes(self, adapter: Choice | Sequence[Choice], rows: int) -> list[Mix]:
        """Return what each of several rows wears."""
        if adapter is None or isinstance(adapter, (str, Mapping)):
            return [self._adapters.mix(adapter)] * rows
        if len(adapter) != rows:
            raise UsageError(f"{len(adapter)} adapters were given for {rows} rows")
        return [self._adapters.mix(each) for each in adapter]
