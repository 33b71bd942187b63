"""Preferences that a tiny model can learn."""

import json

ROWS = [
    {"prompt": f"Is {at} even?", "chosen": f"yes, {at} is", "rejected": "no" + "!" * (at % 3)}
    for at in range(20)
]


def write_pairs(folder, rows=ROWS):
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file
