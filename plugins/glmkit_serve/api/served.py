"""What is served under which name, and what answers it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glmkit import ClosedError, MissingExtraError, UnknownNameError, UsageError
from glmkit.live import Live
from glmkit.sharing import Lazy

if TYPE_CHECKING:
    from glmkit import ChatModel, Encoder, GenerationOptions, Glmkit, ImageModel

    from ..settings import Settings

DEFAULT = "default"
_READERS = 8
"""Questions to one knowledge base side by side; the model behind it writes them in its batch."""


@dataclass(frozen=True)
class Served:
    """One name that a request may ask."""

    name: str
    kind: Literal["chat", "adapter", "knowledge"]
    live: Live
    adapter: str | None = None
    """What the rows of its answers wear; None: nothing but the model."""
    root: str = ""
    """What is behind it, for the list of models."""


@dataclass(frozen=True)
class Wanted:
    """What shall be served.

    :raises UsageError: if a name is given twice, or is none.
    """

    model: str | None = None
    """Catalog name, hub id or folder; None: as configured."""
    adapters: Mapping[str, Path] | None = None
    """Adapters by the name they are asked by."""
    bases: Mapping[str, Path] | None = None
    """Folders of documents by the name they are asked by."""
    encoder: str | None = None
    loading: Mapping[str, Any] | None = None
    """The other parameters of ``Glmkit.load_model``."""

    def __post_init__(self) -> None:
        names = [DEFAULT, *(self.adapters or ()), *(self.bases or ())]
        for name in names:
            if not name.strip() or names.count(name) > 1:
                raise UsageError(
                    f"the name {name!r} is empty or given twice; {DEFAULT!r} is the model itself"
                )


class Serving:
    """The models of one server.

    :param model: who answers; a running server is the only one that asks it.
    """

    def __init__(self, app: Glmkit, settings: Settings, model: ChatModel) -> None:
        self.app, self.settings = app, settings
        self.live = self._alive(model, settings.concurrency)
        self.models: dict[str, Served] = {}
        """By name, the model itself first."""
        self.models[DEFAULT] = Served(DEFAULT, "chat", self.live, root=model.name)
        self.created = int(time.time())
        self.draining = False
        """Whether the server has been told to stop: no more questions are taken."""
        self.beside: dict[str, Callable[[], bool]] = {}
        """What runs beside the API, by name, and what tells whether it still does."""
        self._image_models: dict[str | None, Lazy[ImageModel]] = {}
        self.encoder_name: str | None = None
        """The encoder to load; None: as configured."""

    @classmethod
    def open(cls, app: Glmkit, settings: Settings, wanted: Wanted) -> Serving:
        """Load what shall be served.

        :raises UsageError: if the model wears no adapters, or documents are not read.
        """
        adapters, bases = wanted.adapters or {}, wanted.bases or {}
        model = app.load_model(wanted.model, adapters=adapters, **wanted.loading or {})
        serving = cls(app, settings, model)
        serving.encoder_name = wanted.encoder
        for name in adapters:
            serving.models[name] = Served(name, "adapter", serving.live, name, root=model.name)
        for name, path in bases.items():
            serving.add_base(name, path)
        return serving

    def add_base(self, name: str, path: Path) -> None:
        """Serve answers from the documents at ``path``."""
        model = self.app.knowledge_model(path, self.live)
        live = self._alive(model, min(_READERS, self.live.concurrency))
        self.models[name] = Served(name, "knowledge", live, root=self.live.name)

    def _alive(self, model: ChatModel, concurrency: int | None) -> Live:
        return Live(model, concurrency=concurrency, queue=self.settings.max_waiting)

    def named(self, name: str) -> Served:
        """Return what answers to a name; the model's own one is good for it, too.

        :raises UnknownNameError: if nothing does.
        :raises ClosedError: if no more questions are taken.
        """
        if self.draining:
            raise ClosedError("the server is shutting down; ask again in a while")
        found = self.by_name.get(name)
        if found is None:
            raise UnknownNameError("model", name, self.models, hint="/v1/models lists them")
        return found

    @property
    def by_name(self) -> dict[str, Served]:
        """What answers to each name, the model's own one among them; the default comes first."""
        return {**self.models, self.live.name: self.models[DEFAULT]}

    @property
    def options(self) -> GenerationOptions:
        """How tokens are picked where a request says nothing."""
        return self.app.config.generation

    @property
    def encoder_id(self) -> str:
        """What requests may call the encoder, also before it is loaded."""
        name = self.encoder_name or self.app.config.encoder
        return "encoder" if name == DEFAULT else Path(name).name

    @property
    def encoder(self) -> Encoder:
        """What embeds; loaded when it is first needed, so this may take a while."""
        return self.app.shared_encoder(self.encoder_name)

    @contextmanager
    def image_model(self, name: str | None) -> Iterator[ImageModel]:
        """Lend what draws, to one at a time; loaded when it is first needed.

        :param name: what a plugin calls it; None: the first that is there.
        :raises UnknownNameError: if no plugin registered it: clients name no folders.
        :raises MissingExtraError: if no plugin draws.
        """
        names = self.app.image_models.names()
        if not names:
            raise MissingExtraError("drawing", "a plugin that draws", "drawing")
        if name is not None and name not in names:
            raise UnknownNameError("image model", name, names)
        lazy = self._image_models.setdefault(
            name or names[0], Lazy(lambda: self.app.load_image_model(name))
        )
        model = lazy.get()
        with lazy.lock:
            yield model

    def close(self) -> None:
        """End whatever runs."""
        for each in reversed(self.models.values()):
            each.live.close()
            close = getattr(each.live.model, "close", None)
            if each.kind == "knowledge" and close is not None:
                close()  # its index
