"""Training data: files in the formats that people have, read as one kind of sample."""

from .columns import ColumnNames, Tags
from .data import Data, open_data, opening
from .samples import BadRow, Preference, Sample, Verdict

__all__ = [
    "BadRow",
    "ColumnNames",
    "Data",
    "Preference",
    "Sample",
    "Tags",
    "Verdict",
    "open_data",
    "opening",
]
