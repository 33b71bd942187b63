"""``dataset_info.json``, in which LLaMA-Factory's users list their data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..tables.files import parsed_json, plain_errors
from .columns import ColumnNames, Tags
from .samples import Kind

FILE_NAME = "dataset_info.json"
_HUBS = ("hf_hub_url", "ms_hub_url", "om_hub_url")
_MEDIA = ("images", "videos", "audios")
_PREFERENCE = ("chosen", "rejected", "kto_tag")
_NAMES = (
    *("prompt", "query", "response", "history", "system", "messages", "tools"),
    *("chosen", "rejected", "kto_tag"),
)
_OURS = {"kto_tag": "label"}
"""What a column is called here, where that is something else."""
_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user"}
_TAGS |= {"assistant_tag": "assistant", "observation_tag": "observation"}
_TAGS |= {"function_tag": "function", "system_tag": "system"}


@dataclass(frozen=True)
class Entry:
    """A data set that is listed."""

    name: str
    path: Path
    names: ColumnNames = ColumnNames()
    """The columns that are said; the others are detected."""
    take: int | None = None


@dataclass(frozen=True)
class Listing:
    """A ``dataset_info.json``, or none."""

    folder: Path | None = None
    """Where it lies."""
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path | None) -> Listing:
        """Read the listing of a folder; None looks into ``data``, as LLaMA-Factory does.

        :raises DataError: if a folder is named that has none, or the file is damaged.
        """
        path = Path(folder or "data").expanduser() / FILE_NAME
        with plain_errors(path):
            if not path.is_file():
                if folder is None:
                    return cls()
                if not path.parent.is_dir():
                    raise DataError(f"the folder of data sets {path.parent} does not exist")
                return cls(path.parent)
            text = path.read_bytes()
        return cls(path.parent, _objects(text, path))

    def entry(self, name: str, wanted: Kind | None = "answers") -> Entry:
        """Return a data set by its name.

        :param wanted: what it is read for; None: anything.
        :raises DataError: if it is none of that kind, or not at hand.
        """
        told = self.entries[name]
        columns = told.get("columns") or {}
        _refuse(name, told, columns, wanted)
        file = (self.folder or Path()) / str(told["file_name"])
        if not file.exists():
            raise DataError(f"the data set {name!r} is listed as {file}, which does not exist")
        tags = {
            _TAGS[key]: str(value)
            for key, value in (told.get("tags") or {}).items()
            if key in _TAGS
        }
        names = {_OURS.get(key, key): str(columns[key]) for key in _NAMES if columns.get(key)}
        if names and told.get("formatting", "alpaca") == "sharegpt":
            names.setdefault("messages", "conversations")
        samples = told.get("num_samples")
        return Entry(name, file, ColumnNames(**names, tags=Tags(**tags)), samples)


def _objects(text: bytes, path: Path) -> Mapping[str, Mapping[str, Any]]:
    try:
        value = parsed_json(text.decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error})") from error
    if not isinstance(value, dict) or not all(isinstance(each, dict) for each in value.values()):
        raise DataError(f"{path} must hold an object of objects: {{name: {{'file_name': ...}}}}")
    return value


def _refuse(
    name: str, told: Mapping[str, Any], columns: Mapping[str, Any], wanted: Kind | None
) -> None:
    """Refuse what is no file of that kind."""
    ranks = told.get("ranking") or any(each in columns for each in _PREFERENCE)
    if ranks and wanted == "answers":
        raise DataError(
            f"the data set {name!r} is preference data, and answers to learn are wanted here"
        )
    if wanted == "preferences" and not told.get("ranking"):
        raise DataError(
            f"the data set {name!r} is listed without ranking: true, and preferences are wanted "
            "here: name one that has it, or the file itself"
        )
    if wanted == "verdicts" and not told.get("ranking") and "kto_tag" not in columns:
        raise DataError(
            f"the data set {name!r} is listed without a column kto_tag, and answers with a verdict "
            "are wanted here: name one that has it, or ranking: true, or the file itself"
        )
    media = next((each for each in _MEDIA if each in columns), None)
    if media is not None:
        raise DataError(f"the data set {name!r} has {media}, and only text can be learnt here")
    if not told.get("file_name"):
        hub = next((str(told[each]) for each in _HUBS if told.get(each)), "elsewhere")
        raise DataError(
            f"the data set {name!r} lies at {hub}, and only files are read: download it and "
            "name the file"
        )
