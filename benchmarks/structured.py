"""What keeping answers to a JSON schema costs: rows with a form, without, and both in one batch.

    python benchmarks/structured.py [--rows 8] [--tokens 64] [--rounds 5]

Each round answers the same prompts in every way, in turn, so that what else the machine does meets
them alike. All answers are as long: the schema's list has no end in sight.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import glmkit
from glmkit import GenerationOptions

ENDLESS = {"type": "array", "minItems": 1000, "items": {"type": "object", "required": ["name"]}}
PROMPT = [{"role": "user", "content": "List people as JSON objects with name and age."}]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rows", 8), ("tokens", 64), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model = glmkit.load()
    free = GenerationOptions(max_tokens=asked.tokens, temperature=0)
    formed = GenerationOptions(
        max_tokens=asked.tokens, temperature=0, response_format={"json_schema": ENDLESS}
    )
    told = GenerationOptions(max_tokens=asked.tokens, temperature=0, logprobs=5)
    ways = {
        "free": [free] * asked.rows,
        "half of them with a schema": [free, formed] * (asked.rows // 2),
        "all with a schema": [formed] * asked.rows,
        "free, with logprobs": [told] * asked.rows,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(asked.rounds + 1):
        for name, options in ways.items():
            times[name].append(_measured(model, options))
    base = times["free"][1:]
    for name, found in times.items():
        ratios = [each / other for each, other in zip(found[1:], base, strict=True)]
        each = statistics.median(found[1:]) * 1e3
        print(f"{name:30} {each:8.3f} ms a token, {statistics.median(ratios):.3f} of free")


def _measured(model: glmkit.ChatModel, options: list[GenerationOptions]) -> float:
    """Return the seconds of processor time for each token."""
    begun = time.process_time()
    replies = [*model.batch([PROMPT] * len(options), options)]  # type: ignore[arg-type]
    spent = time.process_time() - begun
    return spent / sum(each.usage.completion_tokens for each in replies)


if __name__ == "__main__":
    main()
