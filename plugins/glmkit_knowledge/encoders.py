"""Encoders made with sentence-transformers, by folder or hub id."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glmkit import CheckpointError, Encoder, Glmkit, MissingExtraError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from sentence_transformers import SentenceTransformer

_E5 = frozenset(
    f"{family}-{size}{version}"
    for family, version in (("multilingual-e5", ""), ("e5", "-v2"))
    for size in ("small", "base", "large")
)
"""Models trained with prefixes that their files forget to name."""
_SAMPLED = 64


class SentenceTransformerEncoder:
    """Adapt one sentence-transformers model to glmkit's ``Encoder``."""

    def __init__(self, model: SentenceTransformer, *, name: str) -> None:
        self._model = model
        self.name = name
        self.dimensions = int(model.encode(["?"], show_progress_bar=False).shape[1])

    def encode(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> np.ndarray:
        """Return unit vectors, float32 (N, D), with the model's own prompt for ``kind``."""
        import numpy as np

        if kind not in ("query", "passage"):
            raise UsageError(f"kind must be 'query' or 'passage', got {kind!r}")
        if not texts:
            return np.empty((0, self.dimensions), np.float32)
        vectors = self._method(kind)(
            list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32)

    def _method(self, kind: str) -> Callable[..., Any]:
        # Version 5 knows which prompt belongs to a query and which to a document.
        name = "encode_query" if kind == "query" else "encode_document"
        found: Callable[..., Any] = getattr(self._model, name, self._model.encode)
        return found


def is_sentence_transformer(path: Path) -> bool:
    """Say whether a folder holds a sentence-transformers model or a plain Hugging Face encoder."""
    return (path / "modules.json").is_file()


def load_sentence_transformer(name: str, app: object) -> Encoder:
    """Load a sentence-transformers model; safetensors only, no code from the model's repository.

    :param name: a folder, or a hub id (fetched from the hub's cache only, when offline).
    :param app: the application, for device and offline switch.
    :raises MissingExtraError: if sentence-transformers is not installed.
    :raises CheckpointError: if it is not a model, or has no safetensors weights.
    """
    if not isinstance(app, Glmkit):
        raise UsageError(f"an encoder is loaded for an application, got {type(app).__name__}")
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError(
            f"encoder {name!r}", "sentence-transformers", "knowledge"
        ) from error
    try:
        with _no_progress_bars():
            model = SentenceTransformer(
                name,
                device=app.config.first_device or "cpu",
                local_files_only=app.config.offline or Path(name).exists(),
                model_kwargs={"use_safetensors": True},
            )
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{name!r} cannot be loaded as a sentence-transformers model: {first}"
        ) from error
    _set_prompts(model, Path(name).name)
    return SentenceTransformerEncoder(model, name=f"{Path(name).name}@{_fingerprint(model)}")


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing on the terminal while it loads; put its setting back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _set_prompts(model: SentenceTransformer, name: str) -> None:
    if name in _E5 and not any(model.prompts.values()):
        model.prompts = {"query": "query: ", "document": "passage: "}


def _fingerprint(model: SentenceTransformer) -> str:
    """Name the weights by a sample of each tensor, so that a retrained model is another space."""
    digest = hashlib.sha256(repr(sorted(model.prompts.items())).encode())
    for name, tensor in sorted(model.state_dict().items()):
        sample = tensor.flatten()[:_SAMPLED].float().cpu().numpy()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()[:12]
