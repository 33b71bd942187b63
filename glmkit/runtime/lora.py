"""Applying adapters: LoRA beside any linear layer, quantised or not, and prefixes.

Several adapters at once are their true sum: the halves of all are put side by side, and a weight
for each row of the low rank says how much of it counts. With weights of its own for every row of
a batch, each row wears other adapters.

Shapes: B rows of a batch, T tokens, R the sum of the ranks of the adapters in play.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import cast

import torch

from ..errors import CheckpointError, UnknownNameError, UsageError
from ..models.causal import CausalModel
from ..models.prefix import PrefixEncoder
from .adapters import Adapter, LowRank
from .beside import Choice as Choice, LoraLinear, Mix as Mix, Worn
from .fitting import fit_lora, fit_prefix
from .probing import check_scores, scores


class AdapterSet:
    """The adapters of one model: which are loaded, which are worn."""

    def __init__(self, model: CausalModel) -> None:
        self.model = model
        self.loaded: dict[str, Adapter] = {}
        self.active: Mix = ()
        self.merged: Mix | None = None
        self._worn = Worn()
        self._layers: dict[str, LoraLinear] = {}
        self._prefixes: dict[str, PrefixEncoder] = {}
        self._own_prefix = model.prefix
        self.changes = 0
        """How often what the names mean has changed."""
        self.lock = threading.RLock()
        """Held while the model runs or changes, so that several threads may ask it."""
        self._held: Counter[str] = Counter()
        """Adapters that running rows wear."""
        self._running = 0

    def add(self, name: str, adapter: Adapter) -> None:
        """Load an adapter under a name; all is checked before anything changes.

        :raises CheckpointError: if it does not fit the model.
        :raises UsageError: if the name is taken, or the model is merged.
        """
        self._refuse_merged("load an adapter")
        if name in self.loaded:
            raise UsageError(
                f"an adapter {name!r} is loaded already; unload it, or give this one another name"
            )
        if adapter.kind == "prefix":
            self._prefixes[name] = fit_prefix(adapter, self.model)
        else:
            fitted = fit_lora(adapter, self.model)
            self._check_at_hand(name, fitted)
            self._put(name, fitted)
        self.loaded[name] = adapter
        self.changes += 1

    def _check_at_hand(self, name: str, fitted: Mapping[str, LowRank]) -> None:
        """Refuse DoRA where matrices are elsewhere: it has to see them."""
        measured = any(each.magnitude is not None for each in fitted.values())
        if measured and any(each.carried for each in self.model.stack.turns):
            raise UsageError(
                f"adapter {name!r} is a DoRA, which looks at whole matrices, and some layers are "
                "brought in for each pass; merge it first: glmkit adapters merge"
            )

    def _put(self, name: str, fitted: Mapping[str, LowRank]) -> None:
        for stem, part in fitted.items():
            # Float32 whatever the model is: the halves are small and were trained so.
            where = self.model.where(stem)
            a, b = (each.to(where, torch.float32).contiguous() for each in (part.a, part.b))
            lengths = None if part.magnitude is None else part.magnitude.to(where, torch.float32)
            if stem not in self._layers:
                layer = LoraLinear(self.model.get_submodule(stem), self._worn)
                self.model.set_submodule(stem, layer)
                self._layers[stem] = layer
            self._layers[stem].put(name, LowRank(a, b, part.scale, lengths))

    def remove(self, name: str) -> None:
        """Unload an adapter; layers that no other one changes are as if there had been none.

        :raises UnknownNameError: if none has the name.
        """
        self._refuse_merged("unload an adapter")
        self._check_name(name)
        if self._held[name]:
            self._refuse_running(f"unload adapter {name!r}")
        self.wear(tuple(each for each in self.active if each[0] != name))
        del self.loaded[name]
        self.changes += 1
        self._prefixes.pop(name, None)
        for stem, layer in list(self._layers.items()):
            layer.drop(name)
            if not layer.parts:
                self.model.set_submodule(stem, layer.base)
                del self._layers[stem]

    def mix(self, choice: Choice | Sequence[str]) -> Mix:
        """Return a choice in one form; None is what is active, a list of names weighs each as 1.

        :raises UnknownNameError: if an adapter is not loaded.
        :raises UsageError: if a weight is no number, or prefixes are mixed or weighted.
        """
        if choice is None:
            return self.active
        self._refuse_merged("choose adapters")
        wanted = _weights(choice)
        for name, weight in wanted.items():
            self._check_name(name)
            _check_weight(name, weight)
        chosen = tuple(sorted((n, float(w)) for n, w in wanted.items() if w))
        self._check_prefixes(chosen)
        return chosen

    def _check_name(self, name: str) -> None:
        if name not in self.loaded:
            hint = "--adapter NAME=PATH, or load_adapter(), loads one"
            raise UnknownNameError("adapter", name, self.loaded, hint=hint)

    def _check_prefixes(self, mix: Mix) -> None:
        found = [(name, weight) for name, weight in mix if name in self._prefixes]
        if len(found) > 1:
            names = " and ".join(repr(name) for name, _ in found)
            raise UsageError(
                f"adapters {names} are P-Tuning prefixes, and a model wears one at a time"
            )
        for name, weight in found:
            if weight != 1:
                raise UsageError(
                    f"adapter {name!r} is a P-Tuning prefix, which has no weight (got {weight:g}); "
                    "only LoRA adapters are scaled"
                )

    def wear(self, mix: Mix) -> None:
        """Make a mix the active one."""
        self._refuse_merged("switch adapters")
        self.active = mix
        self._worn.now = (mix,)
        self._dress(mix)

    def _dress(self, mix: Mix) -> None:
        encoder = self.prefix_of(mix)
        if encoder is not self.model.prefix:
            setattr(self.model.transformer, "prefix_encoder", encoder)  # noqa: B010

    def prefix_of(self, mix: Mix) -> PrefixEncoder | None:
        """Return the prefix that a mix comes with: an adapter's, or the model's own."""
        for name, _ in mix:
            if name in self._prefixes:
                return self._prefixes[name]
        return self._own_prefix

    @contextmanager
    def wearing(self, mixes: Sequence[Mix]) -> Iterator[None]:
        """Wear something else for one run of the model.

        :param mixes: one for all rows, or one for each row of the batch.
        :raises UsageError: if rows differ in their prefix.
        """
        if self.merged is not None:
            yield
            return
        now = tuple(mixes)
        if len(set(now)) == 1:
            now = now[:1]
        if len({id(self.prefix_of(mix)) for mix in now}) > 1:
            raise UsageError(ONE_PREFIX)
        before = self._worn.now
        self._worn.now = now
        self._dress(now[0])
        try:
            yield
        finally:
            self._worn.now = before
            self._dress(self.active)

    def hold(self, mix: Mix) -> None:
        """Take note that a row runs which wears a mix."""
        self._running += 1
        self._held.update(name for name, _ in mix)

    def let_go(self, mix: Mix) -> None:
        """Take note that it is over."""
        self._running -= 1
        self._held.subtract(name for name, _ in mix)

    def _refuse_running(self, what: str) -> None:
        if self._running:
            raise UsageError(
                f"cannot {what} while {self._running} answers are running; "
                "close their streams or let them end"
            )

    def merge(self) -> None:
        """Add the active LoRA adapters to the matrices; :meth:`unmerge` takes them out again.

        Whatever goes wrong, the model is as before.

        :raises UsageError: if none is active, or a matrix is quantised.
        :raises CheckpointError: if nothing changed, or the result is not base + adapters.
        """
        self._refuse_merged("merge")
        self._refuse_running("merge adapters")
        loras = tuple(each for each in self.active if each[0] not in self._prefixes)
        if any(each.carried for each in self.model.stack.turns):
            raise UsageError(
                "some layers are brought in for each pass, and would come without what is merged; "
                "write a merged model with: glmkit adapters merge"
            )
        if not loras:
            raise UsageError("no LoRA adapter is active, so there is nothing to merge")
        worn = scores(self.model)
        with ExitStack() as undo:
            undo.callback(self._take_out)
            changed = [layer.merge(loras, stem) for stem, layer in self._layers.items()]
            if not any(changed):
                raise CheckpointError(
                    "merging changed no weight: the adapters' changes are 0, or below what the "
                    "model's precision can tell apart"
                )
            self._worn.now = ((),)
            check_scores(worn, scores(self.model), self.model.like.dtype)
            undo.pop_all()
        self.merged = loras
        self.changes += 1

    def unmerge(self) -> None:
        """Put the matrices back as they were, bit for bit."""
        if self.merged is None:
            raise UsageError("no adapter is merged")
        self._refuse_running("unmerge adapters")
        self._take_out()
        self.merged = None
        self.changes += 1

    def _take_out(self) -> None:
        for layer in self._layers.values():
            layer.unmerge()
        self._worn.now = (self.active,)

    def _refuse_merged(self, what: str) -> None:
        if self.merged is not None:
            names = ", ".join(name for name, _ in self.merged)
            raise UsageError(f"cannot {what}: {names} is merged; call unmerge_adapter() first")


ONE_PREFIX = "the rows of a batch wear one P-Tuning prefix, or all none; ask in two batches"


def _weights(choice: object) -> dict[str, float]:
    """Return adapters with their weights.

    :raises UsageError: if the choice has another form.
    """
    if isinstance(choice, str):
        return {choice: 1.0}
    if isinstance(choice, Mapping):
        return dict(choice)
    if isinstance(choice, Sequence) and all(isinstance(each, str) for each in choice):
        return dict.fromkeys(choice, 1.0)
    raise UsageError(
        f"adapters are chosen by a name, a list of names or {{name: weight}}, got {choice!r}"
    )


def _check_weight(name: str, weight: object) -> None:
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not number or not abs(cast(float, weight)) < 1e6:
        raise UsageError(f"the weight of adapter {name!r} must be a number, got {weight!r}")
