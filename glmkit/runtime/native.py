"""The encoder's layers in C, where the processor has AVX2 and the extension was built.

The extension is one C file without dependencies, compiled when glmkit is installed and a compiler
is there; everything works without it, only slower. A call works on one thread and without the
interpreter's lock. Shapes: T tokens of all texts one after the other, D hidden, N outputs and K
inputs of a matrix.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.e5 import BLOCK, E5Config

_ABI = 1
_HEAD, _LANES, _LINE = 32, 8, 64
_MATRICES = ("qkv", "attention_output", "intermediate", "output")
_NORMS = ("attention_norm", "output_norm")

Floats = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Return the compiled extension, or None where it is missing or the processor too old."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_encoder" + suffix)
        if path.is_file():
            return open_library(path)
    return None


def open_library(path: Path) -> ctypes.CDLL | None:
    """Open one compiled extension; None if it cannot run here."""
    try:
        found = ctypes.CDLL(str(path))
    except OSError:  # built for another machine
        return None
    if found.glmkit_encoder_abi() != _ABI or not found.glmkit_encoder_supported():
        return None
    pointer, whole = ctypes.c_void_p, ctypes.c_int
    found.glmkit_encoder_run.argtypes = [
        *(pointer, whole, whole, whole),
        *(ctypes.c_float, pointer, pointer, whole),
    ]
    return found


def fits(config: E5Config) -> bool:
    """Say whether the extension knows these sizes."""
    return config.hidden_size == _HEAD * config.num_attention_heads


class NativeLayers:
    """All layers of one encoder.

    :param found: the extension.
    :param tensors: the checkpoint's tensors by name.
    """

    def __init__(self, found: ctypes.CDLL, config: E5Config, tensors: Arrays) -> None:
        self._run = found.glmkit_encoder_run
        self._config = config
        self._kept: list[NDArray[Any]] = []  # what the table points into
        for index in range(config.num_hidden_layers):
            for part in _MATRICES:
                self._kept += _pack(tensors, f"layers.{index}.{part}")
            for part in _NORMS:
                names = (f"layers.{index}.{part}.weight", f"layers.{index}.{part}.bias")
                self._kept += [np.ascontiguousarray(tensors[name], np.float32) for name in names]
        addresses = [each.ctypes.data for each in self._kept]
        self._table = (ctypes.c_void_p * len(addresses))(*addresses)

    def run(self, x: Floats, ends: NDArray[np.int32]) -> None:
        """Put the hidden states (T, D) through all layers, in place.

        :param ends: (B,) where each text ends; the last is T.
        :raises MemoryError: if there is no room for T tokens.
        """
        sizes = self._config
        failed = self._run(
            ctypes.addressof(self._table),
            *(sizes.num_hidden_layers, sizes.hidden_size, sizes.intermediate_size),
            sizes.layer_norm_eps,
            *(x.ctypes.data, ends.ctypes.data, len(ends)),
        )
        if failed:
            raise MemoryError(f"no room to encode {len(x)} tokens at once")


def _pack(tensors: Arrays, name: str) -> list[NDArray[Any]]:
    """Return weights, scales, correction and bias of one matrix, laid out as the C file says."""
    integers = levels(tensors[f"{name}.nibbles"])  # (N, K)
    scales = tensors[f"{name}.scales"].astype(np.float32)  # (N, K / 32)
    outputs, inputs = integers.shape
    sums = integers.reshape(outputs, -1, BLOCK).sum(-1, dtype=np.int32)
    weights = integers.reshape(outputs // _LANES, _LANES, inputs // 4, 4).swapaxes(1, 2)
    laid_out = scales.reshape(outputs // _LANES, _LANES, -1).swapaxes(1, 2)
    return [
        _aligned(weights),
        _aligned(laid_out),
        np.ascontiguousarray(128 * (sums * scales).sum(-1), np.float32),
        np.ascontiguousarray(tensors[f"{name}.bias"], np.float32),
    ]


def _aligned(array: NDArray[Any]) -> NDArray[Any]:
    """Return a contiguous copy that begins at a cache line: reads across two lines cost double."""
    room = np.empty(array.nbytes + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def levels(nibbles: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Return the integers -8..7 (..., n) of packed rows (..., n / 2)."""
    blocks = nibbles.reshape(*nibbles.shape[:-1], -1, BLOCK // 2)
    both = np.concatenate((blocks & 15, blocks >> 4), axis=-1).view(np.int8) - np.int8(8)
    return both.reshape(*nibbles.shape[:-1], -1)
