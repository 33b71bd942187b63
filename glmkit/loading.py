"""Loading in one call, for programs that need no application of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .app import Glmkit

if TYPE_CHECKING:
    from .servers import Server
    from .types import ChatModel, Encoder


def load(
    name_or_path: str | Path = "default",
    *,
    device: str | None = None,
    max_memory: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    adapter: str | Path | None = None,
    adapter_alpha: float | None = None,
    adapters: Mapping[str, Path] | None = None,
    family: str | None = None,
    engine: str | None = None,
    server: Server | str | None = None,
) -> ChatModel:
    """Load a chat model; ``"default"`` is the embedded one, fetched on first use.

    The parameters and errors are those of :meth:`Glmkit.load_model`.
    """
    return Glmkit().load_model(
        str(name_or_path),
        device=device,
        max_memory=max_memory,
        dtype=dtype,
        quantize=quantize,
        adapter=adapter,
        adapter_alpha=adapter_alpha,
        adapters=adapters,
        family=family,
        engine=engine,
        server=server,
    )


def load_encoder(name_or_path: str | Path = "default") -> Encoder:
    """Load an encoder; ``"default"`` is the embedded one, fetched on first use."""
    return Glmkit().load_encoder(str(name_or_path))
