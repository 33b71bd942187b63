"""Photographs as they are learnt: found, opened, cut into squares."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from glmkit import DataError

KINDS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def files_of(specs: Sequence[str]) -> list[Path]:
    """Return the files of pictures that folders and files name, in the order of their names.

    :raises DataError: if something is not there, or a folder holds no picture.
    """
    found: list[Path] = []
    for spec in specs:
        place = Path(spec).expanduser()
        if place.is_dir():
            files = pictures_in(place)
            if not files:
                raise DataError(
                    f"{place} holds no picture ({', '.join(KINDS)}); put photographs of the "
                    "thing there, three to twenty of them, or name another folder with --data"
                )
            found += files
        elif place.is_file():
            found.append(place)
        else:
            raise DataError(f"there is no {place}; name a folder of photographs with --data")
    return found


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures that lie in a folder itself, sorted; hidden files are none."""
    return sorted(
        each
        for each in folder.iterdir()
        if each.suffix.lower() in KINDS and not each.name.startswith(".") and each.is_file()
    )


def opened(file: Path) -> Image.Image:
    """Return a picture in RGB, the right way up; what is transparent becomes white.

    :raises DataError: if it is none that can be read.
    """
    try:
        with Image.open(file) as raw:
            turned = ImageOps.exif_transpose(raw).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        said = "no picture" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(
            f"{file} cannot be read as a picture ({said}); take it out of the folder, or save it "
            "again as PNG or JPEG"
        ) from error
    white = Image.new("RGBA", turned.size, "white")
    return Image.alpha_composite(white, turned).convert("RGB")


def squares(
    picture: Image.Image, side: int, *, count: int = 1, flip: bool = False
) -> list[Image.Image]:
    """Return squares of a picture, spread evenly along its longer side.

    :param side: of the squares in pixels; the picture's shorter side is scaled to it.
    :param count: of squares of a picture that is none itself; 1: the middle.
    :param flip: add each as in a mirror.
    """
    scale = side / min(picture.size)
    width, height = (max(side, round(each * scale)) for each in picture.size)
    scaled = picture.resize((width, height), Image.Resampling.LANCZOS)
    spare = max(width, height) - side
    starts = {round(spare * at / (count - 1)) for at in range(count)} if count > 1 else {spare // 2}
    boxes = [(at, 0) if width > height else (0, at) for at in sorted(starts)]
    cut = [scaled.crop((x, y, x + side, y + side)) for x, y in boxes]
    return [*cut, *(ImageOps.mirror(each) for each in cut if flip)]


def numbers(pictures: Iterable[Image.Image]) -> np.ndarray:
    """Return pictures as float32 (N, 3, H, W), from -1 to 1."""
    stacked = np.stack([np.asarray(each, dtype=np.float32) for each in pictures])
    return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)) / 127.5 - 1


def fingerprint(files: Iterable[Path]) -> str:
    """Return what changes when a picture changes."""
    total = hashlib.sha256()
    for file in files:
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()
