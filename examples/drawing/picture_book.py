"""Words in, a page of pictures out: python picture_book.py book.html "red apple" 猫 火箭"""

from __future__ import annotations

import sys
from base64 import b64encode
from html import escape
from pathlib import Path

from glmkit import DrawOptions, Glmkit, ImageModel, show_progress

PAGE = """<!doctype html><meta charset="utf-8"><title>A picture book</title>
<style>
body {{ display: flex; flex-wrap: wrap; gap: 2em; font: 1.2em sans-serif; margin: 2em }}
figure {{ margin: 0; text-align: center }}
img {{ width: 12em; image-rendering: auto; border-radius: 1em }}
</style>
{figures}
"""


def figure(model: ImageModel, word: str) -> str:
    """Draw a word and return it with its picture, as HTML."""
    (picture,) = show_progress(model.draw(word, DrawOptions(seed=1)))
    data = b64encode(picture.png).decode()
    return (
        f'<figure><img alt="{escape(word)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(word)}</figcaption></figure>"
    )


def write_book(file: Path, words: list[str], model: ImageModel) -> None:
    """Write a page with a picture for each word."""
    figures = "\n".join(figure(model, word) for word in words)
    file.write_text(PAGE.format(figures=figures), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    write_book(Path(sys.argv[1]), sys.argv[2:], Glmkit().load_image_model())
    print(f"wrote {sys.argv[1]}")
