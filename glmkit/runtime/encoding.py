"""The embedded encoder: texts to unit vectors, in length-sorted batches.

Shapes: N texts, B texts of one batch, T tokens of its longest, D dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError, UsageError
from ..models.e5 import E5Config, E5Model, dequantize
from ..models.e5s1 import CONFIG, MODEL_TYPE, NORMALIZATION, PIECES, WEIGHTS
from ..models.unigram import Unigram

Kind = Literal["query", "passage"]

_BATCH_TOKENS = 1024
_WINDOW = 512
"""Texts that are sorted by length together, and handed on together."""


class LocalEncoder:
    """An encoder that runs in this process.

    :param model: the network, ready to run.
    :param tokenizer: text to ids, without marks.
    :param config: the checkpoint's ``config.json``.
    :param name: names the vector space.
    """

    def __init__(
        self, model: E5Model, tokenizer: Unigram, config: Mapping[str, Any], *, name: str
    ) -> None:
        self.name = name
        self.dimensions = model.config.hidden_size
        self._model = model
        self._tokenizer = tokenizer
        self._prefixes: dict[str, str] = config["prefixes"]
        self._marks: dict[str, int] = config["marks"]
        self._device = model.embeddings.LayerNorm.weight.device

    def encode(self, texts: Sequence[str], *, kind: Kind) -> np.ndarray:
        """Return unit vectors, float32 (N, D); what exceeds the position limit is cut off.

        :raises UsageError: if ``kind`` is neither query nor passage, or ``texts`` is one string.
        """
        parts = [vectors for _, vectors in self.encode_stream(texts, kind=kind)]
        return np.concatenate(parts) if parts else np.empty((0, self.dimensions), np.float32)

    def encode_stream(
        self, texts: Iterable[str], *, kind: Kind
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield vectors in the order of ``texts``, which are drawn a few hundred at a time.

        Each item is the index of its first text and float32 (n, D): a unit to store and to report.

        :raises UsageError: if ``kind`` is neither query nor passage, or ``texts`` is one string.
        """
        if kind not in self._prefixes or isinstance(texts, str):
            allowed = " or ".join(map(repr, self._prefixes))
            raise UsageError(f"encode wants a list of texts and kind {allowed}, got kind {kind!r}")
        return self._windows(iter(texts), self._prefixes[kind])

    def _windows(self, texts: Iterator[str], prefix: str) -> Iterator[tuple[int, np.ndarray]]:
        start = 0
        while window := list(islice(texts, _WINDOW)):
            yield start, self._encode_window([self.token_ids(prefix + text) for text in window])
            start += len(window)

    def token_ids(self, text: str) -> list[int]:
        """Return the ids that the network sees for ``text``: marks added, cut to the limit."""
        limit = self._model.config.max_position_embeddings - 2
        return [self._marks["bos"], *self._tokenizer.encode(text)[:limit], self._marks["eos"]]

    def _encode_window(self, rows: Sequence[list[int]]) -> np.ndarray:
        vectors = np.empty((len(rows), self.dimensions), np.float32)
        with torch.inference_mode():
            for batch in batches([len(row) for row in rows], _BATCH_TOKENS):
                vectors[batch] = self._encode_batch([rows[index] for index in batch])
        return vectors

    def _encode_batch(self, rows: Sequence[list[int]]) -> np.ndarray:
        lengths = torch.tensor([len(row) for row in rows])
        longest, pad = int(lengths.max()), self._marks["pad"]
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        found: Tensor = self._model(ids.to(self._device), lengths.to(self._device))
        array: np.ndarray = found.cpu().numpy()
        return array


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Yield groups of indexes, similar lengths together, at most ``tokens`` padded tokens each.

    A single longer text is a group of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda each: (lengths[each], each)):
        if batch and (len(batch) + 1) * lengths[index] > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def load_encoder(path: Path, *, device: str | None = None, name: str | None = None) -> LocalEncoder:
    """Load a converted encoder.

    :param path: the folder written by :func:`glmkit.models.e5s1.convert_e5`.
    :param device: a torch device; None is the CPU.
    :param name: what to call its vector space, the folder's name if None; a fingerprint of the
        weights is added.
    :raises CheckpointError: if files are missing, broken or do not fit together.
    """
    config = _read_json(path / CONFIG)
    if config.get("model_type") != MODEL_TYPE:
        got = config.get("model_type")
        raise CheckpointError(
            f"{path.name} is a {got!r} checkpoint, not {MODEL_TYPE!r}; pull it again"
        )
    try:
        state = load_file(path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path / WEIGHTS} cannot be read: {error}; pull it again") from None
    tokenizer = _load_tokenizer(path, state, config)
    model = _build(E5Config.of(config), state).to(device or "cpu")
    space = f"{name or path.name}@{config['fingerprint']}"
    return LocalEncoder(model, tokenizer, config, name=space)


def _build(config: E5Config, state: dict[str, Tensor]) -> E5Model:
    """Return the network; its matrices are expanded, its word table stays 4-bit."""
    for key in [each for each in state if each.startswith("layers.") and each.endswith(".nibbles")]:
        base = key.removesuffix(".nibbles")
        state[f"{base}.weight"] = dequantize(state.pop(key), state.pop(f"{base}.scales"))
    with torch.device("meta"):
        model = E5Model(config)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit the configuration: {error}") from None
    return model.eval().requires_grad_(False)


def _load_tokenizer(path: Path, state: dict[str, Tensor], config: Mapping[str, Any]) -> Unigram:
    scores = state.pop("vocabulary.scores", torch.empty(0))
    try:
        pieces = (path / PIECES).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path / PIECES} cannot be read: {error}; pull it again") from None
    table = {int(point): text for point, text in _read_json(path / NORMALIZATION).items()}
    return Unigram(pieces, scores.tolist(), table, unknown=config["marks"]["unknown"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; pull it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected an object")
    return value
