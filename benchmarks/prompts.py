"""What contenders are asked: alpaca instructions where they are at hand, else some of our own."""

from __future__ import annotations

import json
from itertools import islice, product
from pathlib import Path

ALPACA = Path("shared/data/llama-factory/alpaca_en_demo.json")
"""Beside the project; public data that is no part of it."""

QUESTION = "Explain in a few sentences why rivers meander, and what happens to their banks."

CHAT = (
    "What should I see in a river valley on a day's walk?",
    "How long would that take me?",
    "Which of these would children like best, and why?",
    "I have no car. How do I get there?",
    "What should I pack if it may rain?",
    "Name three birds that live near water there.",
    "How do I tell them apart?",
    "Write two sentences about the place for a postcard.",
)
"""The turns of a conversation between its first and its last."""

_ASKED = (
    "Explain {} to a child in a few sentences.",
    "List five facts about {}.",
    "Write a short poem about {}.",
    "What are the advantages and the disadvantages of {}?",
    "Give me a plan for a lesson about {}.\nIt lasts one hour, and there are thirty pupils.",
    "Summarise in one paragraph how people thought about {} a hundred years ago, and what they "
    "think about it today.",
    "Compare {} with something that looks alike.",
    "Write a polite letter to a newspaper that got {} wrong.",
)
_SUBJECTS = (
    *("rivers", "lighthouses", "volcanoes", "tides", "glaciers", "deserts", "coral reefs"),
    *("bicycles", "sailing ships", "steam engines", "bridges", "clocks", "printing", "maps"),
    *(
        "bees",
        "owls",
        "whales",
        "mushrooms",
        "oak trees",
        "potatoes",
        "salt",
        "bread",
        "tea",
        "snow",
    ),
    *("chess", "violins", "choirs", "museums", "libraries", "elections", "money", "taxes"),
)


def prompts(count: int, root: Path) -> tuple[list[str], str]:
    """Return so many questions, and where they are from.

    :param root: the project; alpaca data may lie beside it.
    """
    file = root.parent / ALPACA
    if file.is_file():
        rows = json.loads(file.read_text(encoding="utf-8"))
        texts = ["\n".join(filter(None, (row["instruction"], row["input"]))) for row in rows]
        short = [each for each in texts if len(each) <= 400]
        return short[:count], "alpaca, instructions of at most 400 characters"
    made = (asked.format(subject) for subject, asked in product(_SUBJECTS, _ASKED))
    return list(islice(made, count)), "own"
