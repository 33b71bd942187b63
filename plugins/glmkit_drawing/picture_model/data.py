"""The emoji that the embedded picture model learns: pictures, English and Chinese names.

Both come from npm packages at fixed versions: the pictures from emoji-datasource-google (Noto,
Apache-2.0), names and keywords from emojibase-data (MIT). They are fetched with npm, compared
with a checksum and read from the archive; nothing of them lies in this repository.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmkit import DataError, SourceError

from .colours import main_colour

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pictures = npt.NDArray[np.uint8]

Entry = dict[str, Any]
"""One object of a JSON file."""

SIZE = 64
"""Height and width of a picture, in pixels."""


@dataclass(frozen=True)
class Package:
    """One npm package at a fixed version."""

    name: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        """Return the file name that ``npm pack`` gives it."""
        return f"{self.name}-{self.version}.tgz"


PICTURES = Package(
    "emoji-datasource-google",
    "16.0.0",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
)
NAMES = Package(
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)


@dataclass(frozen=True)
class Emoji:
    """One emoji: what it is called, where the standard files it, and its picture."""

    code: str
    """Code points in hexadecimal, without variation selectors: ``"1F34E"``."""
    names: tuple[str, str]
    """English and Chinese name: ``("red apple", "红苹果")``."""
    tags: tuple[tuple[str, ...], tuple[str, ...]]
    """English and Chinese keywords."""
    group: str
    subgroup: str
    picture: Pictures
    """Red, green, blue on white, ``(64, 64, 3)``."""
    skin: bool = False
    """Whether it is another emoji in another colour of skin."""

    @cached_property
    def colour(self) -> str | None:
        """Name the colour that most of the picture has, if it has one."""
        return main_colour(self.picture)


def fetch(package: Package, folder: Path) -> Path:
    """Return the package's archive below ``folder``, asking npm for it unless it is there.

    :raises SourceError: if npm is missing or fails, or the checksum is wrong.
    """
    path = folder / package.file
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _pack(package, folder)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise SourceError(
            f"{path} has sha256 {found}, expected {package.sha256}; delete it and try again"
        )
    return path


def _pack(package: Package, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError("npm fetches the emoji and is not installed; install Node.js with npm")
    asked = f"{package.name}@{package.version}"
    done = subprocess.run([npm, "pack", "--silent", asked], cwd=folder, capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise SourceError(f"npm pack {asked} failed: {said[-1] if said else 'without a word'}")


def load(folder: Path) -> list[Emoji]:
    """Return every emoji that has a picture and a name, colours of skin after their emoji.

    :raises SourceError: if a package cannot be fetched.
    :raises DataError: if an archive is not laid out as expected.
    """
    return read(fetch(PICTURES, folder), fetch(NAMES, folder))


def read(pictures: Path, names: Path) -> list[Emoji]:
    """Return the emoji of two archives laid out as the packages are.

    :raises DataError: if a file that is needed is not in them.
    """
    with tarfile.open(names) as archive:
        languages = [_json(archive, f"package/{language}/data.json") for language in ("en", "zh")]
        kinds = _json(archive, "package/en/messages.json")
    by_code = {entry["hexcode"]: entry for entry in languages[1]}
    pairs = [(entry, by_code.get(entry["hexcode"], entry)) for entry in languages[0]]
    found = _read_pictures(pictures)
    return [emoji for english, chinese in pairs for emoji in _emoji(english, chinese, kinds, found)]


def _json(archive: tarfile.TarFile, name: str) -> Any:  # noqa: ANN401
    try:
        file = archive.extractfile(name)
    except KeyError as error:
        raise DataError(f"{archive.name!r} holds no {name}; is it another version?") from error
    if file is None:
        raise DataError(f"{name} in {archive.name!r} is no file")
    return json.loads(file.read())


def _read_pictures(path: Path) -> dict[str, Pictures]:
    pictures = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name.startswith("package/img/google/64/") and member.name.endswith(".png"):
                file = archive.extractfile(member)
                if file is not None:
                    pictures[plain_code(Path(member.name).stem)] = on_white(file.read())
    if not pictures:
        raise DataError(f"{path} holds no pictures below package/img/google/64")
    return pictures


def plain_code(code: str) -> str:
    """Return code points in capitals and without variation selectors: ``"2600"``."""
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def on_white(png: bytes) -> Pictures:
    """Return a picture as red, green, blue on white, ``(64, 64, 3)``."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        seen = image.convert("RGBA")
    ground = Image.new("RGBA", seen.size, "white")
    flat = Image.alpha_composite(ground, seen).convert("RGB")
    if flat.size != (SIZE, SIZE):
        flat = flat.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(flat)


def _emoji(
    english: Entry,
    chinese: Entry,
    kinds: dict[str, list[Entry]],
    pictures: dict[str, Pictures],
) -> list[Emoji]:
    code = plain_code(english["hexcode"])
    if code not in pictures or "group" not in english:
        return []
    emoji = Emoji(
        code,
        (english["label"], chinese["label"]),
        (tuple(english.get("tags", ())), tuple(chinese.get("tags", ()))),
        _kind(kinds["groups"], english["group"]),
        _kind(kinds["subgroups"], english["subgroup"]),
        pictures[code],
    )
    skins = (plain_code(skin["hexcode"]) for skin in english.get("skins", ()))
    return [emoji] + [
        replace(emoji, code=skin, picture=pictures[skin], skin=True)
        for skin in skins
        if skin in pictures
    ]


def _kind(kinds: Sequence[Entry], order: int) -> str:
    return next((str(kind["key"]) for kind in kinds if kind["order"] == order), "")
