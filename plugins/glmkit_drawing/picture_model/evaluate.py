"""Ask a picture model for plain wishes, and count how often the right emoji comes out.

    python -m glmkit_drawing.picture_model.evaluate MODEL --folder WORK

The wishes and their right answers were written down before the model was trained
(``wishes.jsonl``); the judge is trained on the emoji alone and is kept below ``--folder``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmkit import show_progress

if TYPE_CHECKING:
    import numpy as np

    from .data import Emoji
    from .judge import Judge

WISHES = Path(__file__).with_name("wishes.jsonl")


@dataclass(frozen=True)
class Wish:
    """What is asked for, and the code points of the emoji that are right."""

    language: str
    wish: str
    right: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What came of one wish."""

    wish: Wish
    seed: int
    nearest: str
    """Code points of the emoji that the picture is nearest to."""

    @property
    def right(self) -> bool:
        """Whether the nearest emoji is a right one."""
        return self.nearest in self.wish.right


def read_wishes(path: Path = WISHES) -> list[Wish]:
    """Return the wishes of a JSON-lines file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Wish(row["language"], row["wish"], tuple(row["right"])) for row in rows]


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a share by Wilson's formula, in [0, 1]."""
    share = right / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return (centre - half) / (1 + z * z / total), (centre + half) / (1 + z * z / total)


def trained_judge(emoji: Sequence[Emoji], folder: Path, steps: int) -> Judge:
    """Return the judge kept below ``folder``, after training it if it isn't there yet."""
    from .judge import judge_loss, new_judge, pictures_of
    from .loop import Plan, learn

    judge = new_judge(len(emoji))
    plan = Plan(steps=steps, lr=2e-3, ema=0.99, cooldown=0.5)
    loss = judge_loss(judge, pictures_of(emoji), batch=96)
    show_progress(learn(judge, loss, plan, folder / "judge.pt", stage="training the judge"))
    return judge.eval()


def judged(
    model: Path,
    judge: Judge,
    emoji: Sequence[Emoji],
    wishes: Sequence[Wish],
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> Iterator[Verdict]:
    """Draw every wish with every seed and find the nearest emoji."""
    from .judge import nearest, pictures_of
    from .vae import as_tensor

    pipeline, pictures = loaded(model), pictures_of(emoji)
    for seed in seeds:
        texts = [wish.wish for wish in wishes]
        drawn = draw(pipeline, texts, seed=seed, steps=steps, guidance=guidance)
        found = nearest(judge, as_tensor(drawn), pictures).tolist()
        for wish, row in zip(wishes, found, strict=True):
            yield Verdict(wish, seed, emoji[row].code)


def loaded(model: Path) -> Any:  # noqa: ANN401
    """Return a folder's model as diffusers loads it, in single precision."""
    from ..opening import open_pipeline

    pipeline = open_pipeline(model, "cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: Any,  # noqa: ANN401
    texts: Sequence[str],
    *,
    seed: int,
    steps: int,
    guidance: float,
) -> np.ndarray:
    """Draw a picture for each text, every one from the same seed; bytes ``(N, H, W, 3)``."""
    import torch

    pictures = pipeline(
        list(texts),
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for _ in texts],
        output_type="np",
    ).images
    rounded: np.ndarray = (pictures * 255).round().astype("uint8")
    return rounded


@click.command(help=__doc__.split("\n")[0])
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Work folder.")
@click.option("--steps", default=20, show_default=True)
@click.option("--guidance", default=2.0, show_default=True)
@click.option("--seed", "seeds", multiple=True, type=int, default=(0,), show_default=True)
@click.option("--judge-steps", default=800, show_default=True)
def main(
    model: Path, folder: Path, steps: int, guidance: float, seeds: tuple[int, ...], judge_steps: int
) -> None:
    """Print the share of wishes drawn right, for each language, with its interval."""
    from .data import load

    emoji = [each for each in load(folder) if not each.skin]
    judge = trained_judge(emoji, folder, judge_steps)
    names = {each.code: each.names[0] for each in emoji}
    start = time.perf_counter()
    verdicts = list(
        judged(model, judge, emoji, read_wishes(), seeds=seeds, steps=steps, guidance=guidance)
    )
    spent = time.perf_counter() - start
    for verdict in verdicts:
        sign = "right" if verdict.right else "wrong"
        click.echo(f"{sign}  {verdict.wish.wish}: {names[verdict.nearest]}")
    for language in ("en", "zh"):
        rows = [each.right for each in verdicts if each.wish.language == language]
        low, high = wilson(sum(rows), len(rows))
        click.echo(
            f"{language}: {sum(rows)} of {len(rows)} right: {sum(rows) / len(rows):.0%} "
            f"(95 % interval {low:.0%} to {high:.0%})"
        )
    click.echo(f"{spent / len(verdicts):.2f} s a picture")


if __name__ == "__main__":
    main()
