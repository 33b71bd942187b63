"""Measure whether DreamBooth brings pictures nearer to the photographs that it learnt.

    python benchmarks/dreambooth.py PHOTOGRAPHS --thing dog [--model FOLDER] [--out FOLDER] [...]

Draws 16 pictures of "a photo of sks THING" and 16 of "a photo of a THING", teaches the model with
``glmkit finetune dreambooth``, loads the LoRA into plain diffusers and draws both again, from the
same seeds. All options after ``--`` go to the recipe.

How near two pictures are is told by a measure that nothing was trained for: the mean of three
cosine distances, of their colours (a histogram), of the directions of their edges in an 8x8 grid
(a histogram of gradients) and of their layout (a thumbnail of 8x8 pixels), each centred on the
mean of all photographs in the folders beside. Whether the measure can tell subjects apart at all is
tested first: each photograph is compared with those of its own folder and of the others.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from glmkit_drawing.dreambooth.photographs import files_of, opened, squares

COUNT, GRID, TURNS, BINS, SIDE = 16, 8, 9, 6, 64


def main() -> None:
    """Draw, teach, draw again, compare."""
    told, extra = arguments()
    folder = told.photographs
    own = [np.asarray(each) for each in photographs(folder)]
    beside = {
        each.name: [np.asarray(one) for one in photographs(each)]
        for each in sorted(folder.parent.iterdir())
        if each.is_dir() and each != folder
    }
    measure = Measure([*own, *(one for each in beside.values() for one in each)])
    found: dict[str, Any] = {
        "subjects_told_apart": told_apart(measure, {folder.name: own, **beside})
    }
    wishes = {"thing": f"a photo of sks {told.thing}", "class": f"a photo of a {told.thing}"}
    pipeline = opened_model(told.model)
    drawn = {f"{name}, before": draw(pipeline, wish, told) for name, wish in wishes.items()}
    began = time.monotonic()
    if not told.only_draw:
        teach(told, wishes, extra)
    found["minutes"] = round((time.monotonic() - began) / 60, 2)
    pipeline.load_lora_weights(told.out / "run")
    drawn |= {f"{name}, after": draw(pipeline, wish, told) for name, wish in wishes.items()}
    distances = {name: measure.distances(pictures, own) for name, pictures in drawn.items()}
    found["distance"] = {name: round(float(each.mean()), 4) for name, each in distances.items()}
    nearer = distances["thing, before"] - distances["thing, after"]
    found["nearer"] = {"mean": round(float(nearer.mean()), 4), "interval": interval(nearer)}
    found["pictures_nearer"] = int((nearer > 0).sum())
    apart = distances["class, after"] - distances["thing, after"]
    found["nearer_than_class"] = {
        "mean": round(float(apart.mean()), 4),
        "interval": interval(apart),
    }
    found["among_photographs"] = round(measure.within(own), 4)
    (told.out / "nearness.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sheet({"photographs": own, **drawn}).save(told.out / "sheet.png")
    print(json.dumps(found, indent=1))  # noqa: T201


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; what follows ``--`` is the recipe's."""
    given = sys.argv[1:]
    at = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--thing", default="dog")
    parser.add_argument("--model", default="default")
    parser.add_argument("--out", type=Path, default=Path("dreambooth-bench"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only-draw", action="store_true", help="Take the run that is there.")
    told = parser.parse_args(given[:at])
    if told.threads:
        import torch

        torch.set_num_threads(told.threads)
    told.out.mkdir(parents=True, exist_ok=True)
    return told, given[at + 1 :]


def photographs(folder: Path) -> list[Image.Image]:
    """Return photographs as the measure sees them."""
    return [squares(opened(each), SIDE)[0] for each in files_of([str(folder)])]


def opened_model(name: str) -> Any:  # noqa: ANN401
    """Open a picture model with plain diffusers."""
    from diffusers import StableDiffusionPipeline

    from glmkit_drawing import picture_model

    folder = picture_model.folder() if name == "default" else Path(name)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cpu")


def draw(
    pipeline: Any,  # noqa: ANN401
    wish: str,
    told: argparse.Namespace,
) -> list[np.ndarray]:
    """Draw pictures from seeds 0, 1, ..."""
    import torch

    pictures: list[Image.Image] = []
    for start in range(0, COUNT, 4):
        seeds = [torch.Generator().manual_seed(each) for each in range(start, start + 4)]
        said = {"num_inference_steps": told.steps, "guidance_scale": told.guidance}
        pictures += pipeline([wish] * 4, generator=seeds, **said).images
    return [np.asarray(each.convert("RGB").resize((SIDE, SIDE))) for each in pictures]


def teach(told: argparse.Namespace, wishes: dict[str, str], extra: Sequence[str]) -> None:
    """Run the recipe."""
    from glmkit.cli import main as glmkit

    command = ["finetune", "dreambooth", "--data", str(told.photographs), "--model", told.model]
    command += ["--prompt", wishes["thing"], "--class-prompt", wishes["class"]]
    command += ["--prior-preservation", "--overwrite", "--output", str(told.out / "run"), *extra]
    code = glmkit(command)
    if code:
        raise SystemExit(code)


class Measure:
    """Tells how far pictures are apart, from 0 (the same) to 2.

    :param known: pictures whose mean is the middle that directions are taken from.
    """

    def __init__(self, known: Sequence[np.ndarray]) -> None:
        self.middles = [np.mean([kind(each) for each in known], axis=0) for kind in KINDS]

    def distances(self, pictures: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> np.ndarray:
        """Return for each picture its mean distance to others."""
        return self.table(pictures, others).mean(axis=1)

    def within(self, pictures: Sequence[np.ndarray]) -> float:
        """Return the mean distance of pictures to each other."""
        table = self.table(pictures, pictures)
        return float(table.sum() / (len(pictures) * (len(pictures) - 1)))

    def table(self, left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> np.ndarray:
        """Return the distances of all pairs."""
        tables = []
        for kind, middle in zip(KINDS, self.middles, strict=True):
            ours, theirs = (
                np.stack([unit(kind(each) - middle) for each in side]) for side in (left, right)
            )
            tables.append(1 - ours @ theirs.T)
        return np.mean(tables, axis=0)


def unit(vector: np.ndarray) -> np.ndarray:
    """Return a vector of length 1."""
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


def colours(picture: np.ndarray) -> np.ndarray:
    """Return the square roots of the shares of colours, each counted in the bins around it."""
    scaled = picture.reshape(-1, 3) / 255 * (BINS - 1)
    low = np.minimum(scaled.astype(int), BINS - 2)
    part = scaled - low
    counts = np.zeros((BINS,) * 3)
    for corner in np.ndindex(2, 2, 2):
        share = np.prod(np.where(corner, part, 1 - part), axis=1)
        np.add.at(counts, tuple((low + corner).T), share)
    return np.sqrt(counts.ravel() / counts.sum())


def edges(picture: np.ndarray) -> np.ndarray:
    """Return how strong edges of each direction are, in each cell of a grid."""
    grey = picture.astype(float) @ (0.299, 0.587, 0.114)
    down, right = np.gradient(grey)
    strength, turn = np.hypot(down, right), np.arctan2(down, right) % np.pi
    cells = np.zeros((GRID, GRID, TURNS))
    rows, columns = np.indices(grey.shape) * GRID // SIDE
    np.add.at(cells, (rows, columns, (turn / np.pi * TURNS).astype(int) % TURNS), strength)
    return np.sqrt(cells / (cells.sum(axis=2, keepdims=True) + 1e-3 * SIDE)).ravel()


def layout(picture: np.ndarray) -> np.ndarray:
    """Return the picture's colours in a grid."""
    small = Image.fromarray(picture).resize((GRID, GRID), Image.Resampling.BOX)
    return np.asarray(small, dtype=float).ravel() / 255


KINDS = (colours, edges, layout)


def told_apart(measure: Measure, subjects: dict[str, list[np.ndarray]]) -> str:
    """Say how many photographs are nearest to the others of their own subject."""
    right = total = 0
    for name, pictures in subjects.items():
        for at, picture in enumerate(pictures):
            means = {
                other: measure.distances(
                    [picture], [p for i, p in enumerate(those) if other != name or i != at]
                )[0]
                for other, those in subjects.items()
            }
            right += min(means, key=means.__getitem__) == name
            total += 1
    return f"{right} of {total}"


def interval(values: np.ndarray) -> list[float]:
    """Return the 95 % interval of a mean, by the bootstrap."""
    random = np.random.default_rng(0)
    means = values[random.integers(len(values), size=(2000, len(values)))].mean(axis=1)
    return [round(float(each), 4) for each in np.quantile(means, (0.025, 0.975))]


def sheet(rows: dict[str, list[np.ndarray]]) -> Image.Image:
    """Return all pictures, a row for each kind."""
    whole = Image.new("RGB", (COUNT * SIDE, len(rows) * (SIDE + 4)), "white")
    for down, pictures in enumerate(rows.values()):
        for at, picture in enumerate(pictures[:COUNT]):
            whole.paste(Image.fromarray(picture), (at * SIDE, down * (SIDE + 4)))
    return whole


if __name__ == "__main__":
    main()
