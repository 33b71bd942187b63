"""Single-stream decoding of the default model, against transformers' generate.

Both sides run the same weights in one process, turn and turn about, so that whatever else the
machine does hits both; ratios count, not single numbers. transformers gets the weights
dequantised and is measured in float32 and in bfloat16; its faster dtype is the peer.

    python benchmarks/decode.py --model FOLDER [--repeats 5] [--out results.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from glmkit.models.glm import Glm
from glmkit.runtime.decode import Row, columns
from glmkit.runtime.loading import load_local

QUESTION = "Explain in a few sentences why rivers meander, and what happens to their banks."


@dataclass
class Runner:
    """One contender: what it is called, how it decodes, and its measured speeds."""

    name: str
    decode: Callable[[list[int], int], list[int]]
    speeds: list[float] = field(default_factory=list)

    @property
    def speed(self) -> float:
        """Median tokens per second."""
        return statistics.median(self.speeds)


def main() -> None:
    """Measure, print, and write the figures where asked."""
    options = arguments()
    fast = load_local(options.model)
    exact = load_local(options.model, dtype="float32")
    prompt = prompt_ids(fast, QUESTION)
    glmkit = Runner("glmkit", lambda ids, tokens: ours(fast.model, ids, tokens))
    peers = [
        Runner(f"transformers {name}", theirs(exact.model, options.model, dtype))
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    ]
    contenders = [glmkit, *peers]
    for runner in contenders:
        runner.decode(prompt, 4)  # warm up
    for _ in range(options.repeats):
        for runner in contenders:
            runner.speeds.append(measured(runner, prompt, options.tokens))
    report(contenders, prompt, options)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", type=Path, default=None, help="folder; default: the embedded one"
    )
    parser.add_argument("--tokens", type=int, default=128, help="new tokens a run")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each contender")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    options = parser.parse_args()
    options.model = options.model or default_folder()
    return options


def default_folder() -> Path:
    """Return the folder of the embedded default, fetching it if need be."""
    from glmkit import Config
    from glmkit.console import drain
    from glmkit.sources import ensure

    return drain(ensure("default", config=Config.load(), kind="model")).path


def prompt_ids(model: Any, question: str) -> list[int]:  # noqa: ANN401
    """Return the ids of a chat prompt."""
    tokenizer = model.tokenizer
    start, end = tokenizer.special("<|im_start|>"), tokenizer.special("<|im_end|>")
    asked = tokenizer.encode(f"user\n{question}")
    return [start, *asked, end, *tokenizer.encode("\n"), start, *tokenizer.encode("assistant\n")]


def ours(model: Glm, ids: list[int], tokens: int) -> list[int]:
    """Decode greedily; no stop ids, so that every run has the same length."""
    row = Row(ids, tokens)
    for _ in columns(model, [row]):
        pass
    return row.new


def theirs(model: Glm, folder: Path, dtype: torch.dtype) -> Callable[[list[int], int], list[int]]:
    """Return transformers' generate over the same weights, dequantised."""
    from transformers import GlmConfig, GlmForCausalLM

    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    raw.pop("quantization_config", None)
    peer = GlmForCausalLM(GlmConfig(**raw)).eval()
    peer.load_state_dict(hub_tensors(model, raw), strict=False)
    peer.tie_weights()
    peer = peer.to(dtype)

    def decode(ids: list[int], tokens: int) -> list[int]:
        out = peer.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
        )
        return out[0, len(ids) :].tolist()

    return decode


def hub_tensors(model: Glm, raw: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Name the weights as transformers does, the fused projections cut up."""
    from glmkit.models.layouts import recognise

    layout, config = recognise(raw), model.config
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    tensors = {}
    for key, tensor in model.state_dict().items():
        stem, _, leaf = key.rpartition(".")
        stems = layout.sources(stem)
        parts = tensor.split([q, kv, kv]) if len(stems) == 3 else [tensor]
        tensors.update({f"{s}.{leaf}": part for s, part in zip(stems, parts, strict=True)})
    return tensors


def measured(runner: Runner, prompt: list[int], tokens: int) -> float:
    """Return the speed of one run in tokens per second, the prompt included."""
    started = time.perf_counter()
    made = len(runner.decode(prompt, tokens))
    return made / (time.perf_counter() - started)


def report(contenders: list[Runner], prompt: list[int], options: argparse.Namespace) -> None:
    """Print the ratios; write them where asked."""
    glmkit, *peers = contenders
    best = max(peers, key=lambda each: each.speed)
    for runner in contenders:
        print(
            f"{runner.name:24} {runner.speed:7.1f} tokens/s  {[round(s, 1) for s in runner.speeds]}"
        )
    pairs = [own / peer for own, peer in zip(glmkit.speeds, best.speeds, strict=True)]
    ratio = statistics.median(pairs)
    print(f"glmkit / {best.name}: {ratio:.2f}x (runs: {', '.join(f'{p:.2f}' for p in pairs)})")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        figures = {
            "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
            "torch": torch.__version__,
            "prompt_tokens": len(prompt),
            "new_tokens": options.tokens,
            "tokens_per_second": {each.name: each.speeds for each in contenders},
            "peer": best.name,
            "ratio": ratio,
            "ratios": pairs,
        }
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
