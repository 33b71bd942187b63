"""The FAISS index: a copy of the vectors in SQLite, for searching; never the only copy.

The file is a header (magic, generation, checksum) and FAISS's own serialisation. A file that is
missing, damaged or of another generation is built anew.
"""

from __future__ import annotations

import glob
import os
import sys
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmkit import DataError

if TYPE_CHECKING:
    import numpy as np

HALF_FROM = 200_000
"""From this many vectors on they are kept as float16: half the memory, the same order."""
_MAGIC = b"glmkit-faiss-1\n\0"
_HEADER_BYTES = len(_MAGIC) + 32 + 4
_MOST_THREADS = 4


@dataclass(frozen=True)
class DenseIndex:
    """Vectors (N, D) that can be searched for the nearest by inner product."""

    generation: str
    """The state of the store that this is a copy of."""
    _faiss: Any

    @classmethod
    def build(cls, generation: str, ids: np.ndarray, vectors: np.ndarray) -> DenseIndex:
        """Index vectors (N, D), float32, under ids (N,), int64."""
        faiss = _load_faiss()
        count, dimensions = vectors.shape
        if count < HALF_FROM:
            flat = faiss.IndexFlatIP(dimensions)
        else:
            kind = faiss.ScalarQuantizer.QT_fp16
            flat = faiss.IndexScalarQuantizer(dimensions, kind, faiss.METRIC_INNER_PRODUCT)
        index = faiss.IndexIDMap(flat)
        index.add_with_ids(vectors, ids)
        return cls(generation, index)

    @classmethod
    def load(cls, path: Path, generation: str) -> DenseIndex | None:
        """Read the index from its file; None if it isn't of this generation, or is damaged."""
        if generation_of(path) != generation:
            return None
        import numpy as np

        try:
            data = path.read_bytes()
        except OSError:
            return None
        payload = memoryview(data)[_HEADER_BYTES:]
        # FAISS trusts what it reads; the checksum keeps damaged bytes away from it.
        if zlib.crc32(payload) != int.from_bytes(data[_HEADER_BYTES - 4 : _HEADER_BYTES], "little"):
            return None
        faiss = _load_faiss()
        return cls(generation, faiss.deserialize_index(np.frombuffer(payload, dtype=np.uint8)))

    def save(self, path: Path) -> None:
        """Write the index in place of the file at ``path``, at once or not at all.

        :raises DataError: if it cannot be written.
        """
        payload = memoryview(_load_faiss().serialize_index(self._faiss))
        check = zlib.crc32(payload).to_bytes(4, "little")
        try:
            _write(path, [_MAGIC, self.generation.encode("ascii"), check, payload])
        except OSError as error:
            raise DataError(
                f"cannot write the index {path}: {error.strerror or error}; free some space or name"
                " another home"
            ) from error

    def search(self, vector: np.ndarray, k: int) -> list[tuple[int, float]]:
        """Return (id, inner product) of the ``k`` nearest, best first."""
        import numpy as np

        if k < 1 or self._faiss.ntotal == 0:
            return []
        query = np.ascontiguousarray(vector, dtype=np.float32).reshape(1, -1)
        scores, ids = self._faiss.search(query, min(k, self._faiss.ntotal))
        return [(int(each), float(score)) for each, score in zip(ids[0], scores[0], strict=True)]

    def __len__(self) -> int:
        return int(self._faiss.ntotal)


def generation_of(path: Path) -> str:
    """Return the generation that the index file at ``path`` claims; "" if it is none."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except OSError:
        return ""
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        return ""
    return header[len(_MAGIC) : -4].decode("ascii", "replace")


def remove_unfinished(path: Path) -> None:
    """Delete what a process that was killed while saving left beside ``path``."""
    for name in path.parent.glob(f".{glob.escape(path.name)}.*"):
        with suppress(OSError):
            name.unlink()


def _write(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _load_faiss() -> Any:  # noqa: ANN401
    import faiss

    # Two OpenMP runtimes in one process (torch brings its own) hang or crash on macOS.
    most = 1 if sys.platform == "darwin" else min(_MOST_THREADS, os.cpu_count() or 1)
    if faiss.omp_get_max_threads() > most:
        faiss.omp_set_num_threads(most)
    return faiss
