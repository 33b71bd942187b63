"""What a model that stays as it is says of texts, kept on disk: the next run need not ask again.

Folds of a comparison, other learning rates, a run that is resumed: as long as only a head learns,
all of them read the same numbers. One SQLite table holds them, by a digest of the very tokens and
of all that the numbers depend on; several processes may use it side by side.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from glmkit import DataError
from glmkit.disk import make_folder

_WAIT_S = 60.0
_READ = 1 << 20
_SCHEMA = "CREATE TABLE IF NOT EXISTS said (key BLOB PRIMARY KEY, numbers BLOB) WITHOUT ROWID"


class Remembered:
    """Vectors of a model, by what it read.

    :param file: of the table; it and its folder are made.
    :param said_by: all that the numbers depend on but the tokens: the model, its precision, ...
    :raises DataError: if the file is no such table, or cannot be written.
    """

    def __init__(self, file: Path, *said_by: object) -> None:
        self.file = file
        self._said_by = repr((torch.__version__, *said_by)).encode()
        make_folder(file.parent)
        self._do(_SCHEMA)

    def get(self, ids: Tensor, sizes: Sequence[int]) -> Tensor | None:
        """Return what was said of some tokens, float32 (2, H); None: nothing yet.

        :param sizes: how they are parted.
        """
        rows = self._do("SELECT numbers FROM said WHERE key = ?", self._key(ids, sizes))
        if not rows:
            return None
        numbers = np.frombuffer(rows[0][0], np.float32).reshape(2, -1)
        return torch.from_numpy(numbers.copy()).to(ids.device)

    def put(self, ids: Tensor, sizes: Sequence[int], numbers: Tensor) -> None:
        """Keep what was said of both answers of a pair, (2, H)."""
        flat = numbers.detach().float().cpu().contiguous().numpy().tobytes()
        self._do("INSERT OR REPLACE INTO said VALUES (?, ?)", self._key(ids, sizes), flat)

    def _key(self, ids: Tensor, sizes: Sequence[int]) -> bytes:
        whole = hashlib.blake2b(self._said_by, digest_size=16)
        whole.update(repr(tuple(sizes)).encode())
        whole.update(ids.cpu().numpy().tobytes())
        return whole.digest()

    def _do(self, statement: str, *values: bytes) -> list[tuple[bytes, ...]]:
        try:
            with closing(sqlite3.connect(self.file, timeout=_WAIT_S)) as connection, connection:
                return connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise DataError(
                f"{self.file} cannot be used ({error}); delete it: it only saves time"
            ) from error


def bytes_of(files: Iterable[Path]) -> bytes:
    """Return a digest of what files hold, which takes about a second a gigabyte."""
    whole = hashlib.blake2b(digest_size=16)
    for each in files:
        with each.open("rb") as file:
            while block := file.read(_READ):
                whole.update(block)
    return whole.digest()
