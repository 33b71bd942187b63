"""The table of terms."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from glmkit import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = Path(__file__).parent / "terms.toml"


@dataclass(frozen=True)
class Glossary:
    """Terms and what they mean."""

    meanings: Mapping[str, str]

    @classmethod
    def read(cls, file: str | None = None) -> Glossary:
        """Read a TOML table ``term = "meaning"``.

        :raises ConfigError: if the file is not there or not such a table.
        """
        path = Path(file) if file else SHIPPED
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read the glossary {str(path)!r}: {error}") from error
        if not all(isinstance(meaning, str) for meaning in table.values()):
            raise ConfigError(f'the glossary {str(path)!r} must hold lines like term = "meaning"')
        return cls(table)

    def used_in(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield the terms that ``text`` uses, whatever their case, with their meanings."""
        for term, meaning in self.meanings.items():
            # \b knows no word ends between Chinese and Latin characters, so spell them out.
            if re.search(rf"(?<![A-Za-z0-9]){re.escape(term)}(?![A-Za-z0-9])", text, re.IGNORECASE):
                yield term, meaning
