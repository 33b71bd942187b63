"""What a picture's file says of how it was drawn: enough to draw it again."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmkit import DataError

if TYPE_CHECKING:
    from numpy import ndarray

KEY = "glmkit"
"""Of the text chunk with the record, as JSON."""
PARAMETERS = "parameters"
"""Of the text chunk with the same for a person, in the form that many viewers show."""


@dataclass(frozen=True)
class WornLora:
    """A LoRA that a picture was drawn with."""

    path: str
    """As it was given."""
    weight: float
    sha256: str


@dataclass(frozen=True)
class Record:
    """How one picture was drawn."""

    wish: str
    """The person's own words."""
    prompt: str
    """What the picture model was told."""
    model: str
    """As it was given: a name, hub id or folder."""
    seed: int
    size: tuple[int, int]
    steps: int
    guidance: float | None = None
    negative: str = ""
    fingerprint: str = ""
    pipeline: str = ""
    scheduler: str = ""
    loras: tuple[WornLora, ...] = ()
    dtype: str = ""
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Record:
        """Read a record from JSON.

        :raises TypeError: if something is missing or of another kind.
        """
        wrong = [name for name, kind in _KINDS.items() if not isinstance(said.get(name), kind)]
        if wrong:
            raise TypeError(f"it lacks {', '.join(wrong)}, or has them in another form")
        known = {each.name for each in fields(cls)}
        given = {name: value for name, value in said.items() if name in known}
        width, height = given["size"]
        given["size"] = (int(width), int(height))
        given["loras"] = tuple(WornLora(**each) for each in given.get("loras", ()))
        return cls(**given)

    def line(self) -> str:
        """Return the record for a person."""
        facts = {
            "Steps": self.steps,
            "Sampler": self.scheduler.removesuffix("Scheduler"),
            "CFG scale": self.guidance,
            "Seed": self.seed,
            "Size": f"{self.size[0]}x{self.size[1]}",
            "Model hash": self.fingerprint,
            "Model": self.model,
        }
        loras = ", ".join(f"{Path(each.path).stem}: {each.weight:g}" for each in self.loras)
        facts |= {"Lora": f'"{loras}"'} if loras else {}
        told = ", ".join(
            f"{name}: {each}" for name, each in facts.items() if each not in ("", None)
        )
        negative = f"Negative prompt: {self.negative}\n" if self.negative else ""
        return f"{self.prompt}\n{negative}{told}"


_KINDS: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("wish", "prompt", "model", "negative", "fingerprint"), str),
    **dict.fromkeys(("seed", "steps"), int),
    "guidance": (int, float, type(None)),
}


def versions() -> dict[str, str]:
    """Return the versions that a picture's pixels may depend on."""
    from importlib.metadata import version

    return {
        name: version(name) for name in ("glmkit", "diffusers", "peft", "torch", "transformers")
    }


def png_of(pixels: ndarray, record: Record) -> bytes:
    """Return a PNG file of pixels (H, W, 3), 0 to 1, with the record in it."""
    import numpy as np
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(PARAMETERS, record.line())
    info.add_text(KEY, json.dumps(asdict(record), ensure_ascii=False))
    file = io.BytesIO()
    Image.fromarray((pixels * 255).round().astype(np.uint8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def read_record(png: Path | bytes) -> Record:
    """Read how a picture was drawn from its file.

    :raises DataError: if it is no picture, or none that glmkit drew.
    """
    from PIL import Image, UnidentifiedImageError

    name = "the picture" if isinstance(png, bytes) else str(png)
    try:
        with Image.open(io.BytesIO(png) if isinstance(png, bytes) else png) as picture:
            said = picture.info.get(KEY)
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise DataError(f"{name} cannot be read as a picture: {error}") from error
    if not isinstance(said, str):
        raise DataError(
            f"{name} does not say how it was drawn: glmkit did not draw it, or a program that "
            "saved it since has left that out"
        )
    try:
        return Record.of(json.loads(said))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{name} says damaged things of how it was drawn: {error}") from error


def sheet_of(pictures: list[bytes], labels: list[str]) -> bytes:
    """Return several pictures as one PNG file, in rows, each with its label below."""
    from PIL import Image, ImageDraw, ImageFont

    tiles = [Image.open(io.BytesIO(each)).convert("RGB") for each in pictures]
    font = ImageFont.load_default(12)
    gap, below = 8, 18
    # Small pictures are shown larger, pixel by pixel, so that a label fits below.
    zoom = max(1, -(-96 // tiles[0].width))
    tiles = [each.resize((each.width * zoom, each.height * zoom), 0) for each in tiles]
    columns = max(1, round(len(tiles) ** 0.5 + 0.49))
    wide, high = (max(each.size[side] for each in tiles) for side in (0, 1))
    rows = -(-len(tiles) // columns)
    size = (gap + columns * (wide + gap), gap + rows * (high + below + gap))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for number, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
        row, column = divmod(number, columns)
        left, top = gap + column * (wide + gap), gap + row * (high + below + gap)
        sheet.paste(tile, (left, top))
        pen.text((left, top + high + 2), label, fill="black", font=font)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
