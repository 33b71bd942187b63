"""Rows of every format, written to files."""

import csv
import json
from pathlib import Path

ALPACA = {"instruction": "Add", "input": "1 2", "output": "3"}
SHAREGPT = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}
MESSAGES = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}


def jsonl(path: Path, *rows: object) -> Path:
    """Write JSON lines; a text is written as it is."""
    said = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{each}\n" for each in said), "utf-8")
    return path


def table(path: Path, header: list[str], *rows: list[str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([header, *rows])
    return path


def said(sample) -> list[tuple[str, str]]:
    return [(each.role, each.content) for each in sample.messages]
