"""The embedded encoder: texts to unit vectors, in length-sorted batches.

Two networks give the same vectors: plain torch runs everywhere, the C extension is some three
times faster where it was built and the processor has AVX2.
Shapes: N texts, B texts of one batch, T tokens, D dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError, UsageError
from ..models.e5 import E5Config, E5Model, dequantize, expected_shapes
from ..models.e5s1 import CONFIG, MODEL_TYPE, NORMALIZATION, PIECES, WEIGHTS
from ..models.unigram import Unigram
from . import native

Kind = Literal["query", "passage"]
Vectors = NDArray[np.float32]

_WINDOW = 512
"""Texts that are sorted by length together, and handed on together."""


class Network(Protocol):
    """Token ids to unit vectors."""

    batch_tokens: int
    """How many tokens to hand over at once, at most."""
    threads: int
    """How many batches may run at the same time."""

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Return unit vectors (B, D)."""
        ...


class TorchNetwork:
    """The network in plain torch, on any device; torch spreads each batch over its threads."""

    batch_tokens = 1024
    threads = 1

    def __init__(self, model: E5Model) -> None:
        self._model = model
        self._device = model.embeddings.LayerNorm.weight.device

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Return unit vectors (B, D)."""
        lengths = torch.tensor([len(row) for row in rows])
        longest = int(lengths.max())
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        with torch.inference_mode():
            found: Tensor = self._model(ids.to(self._device), lengths.to(self._device))
        array: Vectors = found.cpu().numpy()
        return array


class NativeNetwork:
    """The network with its layers in C; a batch runs on one thread, without padding."""

    batch_tokens = 256

    def __init__(
        self, config: E5Config, tensors: native.Arrays, layers: native.NativeLayers
    ) -> None:
        self.threads = torch.get_num_threads()
        self._eps = config.layer_norm_eps
        self._layers = layers
        words = "embeddings.word_embeddings"
        self._nibbles, self._scales = tensors[f"{words}.nibbles"], tensors[f"{words}.scales"]
        kind = tensors["embeddings.token_type_embeddings.weight"][0]
        self._places: Vectors = tensors["embeddings.position_embeddings.weight"] + kind
        self._weight = tensors["embeddings.LayerNorm.weight"]
        self._bias = tensors["embeddings.LayerNorm.bias"]

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Return unit vectors (B, D)."""
        lengths = np.array([len(row) for row in rows])
        x = self._look_up(np.fromiter(chain.from_iterable(rows), np.int64), lengths)
        ends = lengths.cumsum(dtype=np.int32)
        self._layers.run(x, ends)
        total = np.add.reduceat(x, ends - lengths, axis=0)
        norms = np.linalg.norm(total, axis=1, keepdims=True)
        vectors: Vectors = total / np.maximum(norms, 1e-12)
        return vectors

    def _look_up(self, ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> Vectors:
        """Return the normalised sum of word, position and type vectors (T, D)."""
        integers = native.levels(self._nibbles[ids]).astype(np.float32)
        scales = self._scales[ids].astype(np.float32)
        words = integers.reshape(*scales.shape, -1) * scales[..., None]
        x = words.reshape(len(ids), -1) + np.concatenate([self._places[:size] for size in lengths])
        x -= x.mean(axis=1, keepdims=True)
        x /= np.sqrt(np.square(x).mean(axis=1, keepdims=True) + self._eps)
        return np.ascontiguousarray(x * self._weight + self._bias, np.float32)


class LocalEncoder:
    """An encoder that runs in this process.

    :param network: ids to vectors.
    :param tokenizer: text to ids, without marks.
    :param config: the checkpoint's ``config.json``.
    :param name: names the vector space.
    """

    def __init__(
        self, network: Network, tokenizer: Unigram, config: Mapping[str, Any], *, name: str
    ) -> None:
        self.name = name
        self.dimensions: int = config["hidden_size"]
        self._network = network
        self._tokenizer = tokenizer
        self._prefixes: dict[str, str] = config["prefixes"]
        self._limit: int = config["max_position_embeddings"] - 2
        self._bos, self._eos = config["marks"]["bos"], config["marks"]["eos"]

    def encode(self, texts: Sequence[str], *, kind: Kind) -> Vectors:
        """Return unit vectors, float32 (N, D); what exceeds the position limit is cut off.

        :raises UsageError: if ``kind`` is neither query nor passage, or ``texts`` is one string.
        """
        parts = [vectors for _, vectors in self.encode_stream(texts, kind=kind)]
        return np.concatenate(parts) if parts else np.empty((0, self.dimensions), np.float32)

    def encode_stream(self, texts: Iterable[str], *, kind: Kind) -> Iterator[tuple[int, Vectors]]:
        """Yield vectors in the order of ``texts``, which are drawn a few hundred at a time.

        Each item is the index of its first text and float32 (n, D): a unit to store and to report.

        :raises UsageError: if ``kind`` is neither query nor passage, or ``texts`` is one string.
        """
        if kind not in self._prefixes or isinstance(texts, str):
            allowed = " or ".join(map(repr, self._prefixes))
            raise UsageError(f"encode wants a list of texts and kind {allowed}, got kind {kind!r}")
        return self._windows(iter(texts), self._prefixes[kind])

    def token_ids(self, text: str) -> list[int]:
        """Return the ids that the network sees for ``text``: marks added, cut to the limit."""
        return [self._bos, *self._tokenizer.encode(text)[: self._limit], self._eos]

    def _windows(self, texts: Iterator[str], prefix: str) -> Iterator[tuple[int, Vectors]]:
        start = 0
        while window := list(islice(texts, _WINDOW)):
            yield start, self._encode_window([self.token_ids(prefix + text) for text in window])
            start += len(window)

    def _encode_window(self, rows: Sequence[list[int]]) -> Vectors:
        vectors = np.empty((len(rows), self.dimensions), np.float32)
        order = list(batches([len(row) for row in rows], self._network.batch_tokens))
        order.reverse()  # the longest first, so that no thread is left alone with one at the end
        pending = ([rows[index] for index in batch] for batch in order)
        for batch, found in zip(order, self._embed_all(pending, len(order)), strict=True):
            vectors[batch] = found
        return vectors

    def _embed_all(self, pending: Iterable[list[list[int]]], count: int) -> Iterator[Vectors]:
        threads = min(self._network.threads, count)
        if threads < 2:
            yield from map(self._network.embed, pending)
            return
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(self._network.embed, pending)


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


def load_encoder(
    path: Path,
    *,
    device: str | None = None,
    name: str | None = None,
    use_native: bool | None = None,
) -> LocalEncoder:
    """Load a converted encoder.

    :param path: the folder written by :func:`glmkit.models.e5s1.convert_e5`.
    :param device: a torch device; None is the CPU.
    :param name: what to call its vector space, the folder's name if None; a fingerprint of the
        weights is added.
    :param use_native: True insists on the C extension, False on torch; None takes what is best.
    :raises CheckpointError: if files are missing, broken or do not fit together.
    :raises UsageError: if the C extension is asked for and cannot run here.
    """
    config = _read_config(path)
    try:
        state = load_file(path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path / WEIGHTS} cannot be read: {error}; pull it again") from None
    tokenizer = _load_tokenizer(path, state, config)
    network = _build(E5Config.of(config), state, torch.device(device or "cpu"), use_native)
    space = f"{name or path.name}@{config['fingerprint']}"
    return LocalEncoder(network, tokenizer, config, name=space)


def _build(
    config: E5Config, state: dict[str, Tensor], device: torch.device, use_native: bool | None
) -> Network:
    _check_shapes(config, state)
    found = native.library() if device.type == "cpu" and native.fits(config) else None
    if use_native and found is None:
        raise UsageError("the C extension of the encoder was not built or does not run here")
    if found is None or use_native is False:
        return TorchNetwork(_build_torch(config, state).to(device))
    tensors = {name: tensor.numpy() for name, tensor in state.items()}
    return NativeNetwork(config, tensors, native.NativeLayers(found, config, tensors))


def _check_shapes(config: E5Config, state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are missing, left over or of another shape than the sizes ask for."""
    wanted = expected_shapes(config)
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    wrong = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        got, want = found.get(name, "nothing"), wanted.get(name, "nothing")
        raise CheckpointError(
            f"{len(wrong)} tensors do not fit the configuration, such as {name}: "
            f"got {got}, expected {want}; pull it again"
        )


def _build_torch(config: E5Config, state: dict[str, Tensor]) -> E5Model:
    """Return the network; its matrices are expanded, its word table stays 4-bit."""
    for key in [each for each in state if each.startswith("layers.") and each.endswith(".nibbles")]:
        base = key.removesuffix(".nibbles")
        state[f"{base}.weight"] = dequantize(state.pop(key), state.pop(f"{base}.scales"))
    model = E5Model(config)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


_CONFIG_KINDS = {"fingerprint": str, "prefixes": dict, "marks": dict}


def _read_config(path: Path) -> dict[str, Any]:
    config = _read_json(path / CONFIG)
    got = config.get("model_type")
    if got != MODEL_TYPE:
        raise CheckpointError(f"{path.name} is a {got!r} model, not {MODEL_TYPE!r}; pull it again")
    for key, kind in _CONFIG_KINDS.items():
        if not isinstance(config.get(key), kind):
            raise CheckpointError(f"{path / CONFIG} has no usable {key!r}; pull it again")
    marks = config["marks"]
    if not all(isinstance(marks.get(each), int) for each in ("bos", "eos", "unknown")):
        raise CheckpointError(f"{path / CONFIG} names no marks bos, eos, unknown; pull it again")
    return config


def _load_tokenizer(path: Path, state: dict[str, Tensor], config: Mapping[str, Any]) -> Unigram:
    scores = state.pop("vocabulary.scores", torch.empty(0))
    try:
        pieces = (path / PIECES).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path / PIECES} cannot be read: {error}; pull it again") from None
    table = {int(point): text for point, text in _read_json(path / NORMALIZATION).items()}
    if len(pieces) > config["vocab_size"]:
        raise CheckpointError(f"{path / PIECES} has more pieces than the network; pull it again")
    return Unigram(pieces, scores.tolist(), table, unknown=config["marks"]["unknown"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; pull it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected an object")
    return value
