"""How much memory it takes to load a checkpoint and answer its first tokens.

Writes checkpoints of random weights, part by part, then loads each in a process of its own and
generates a few tokens. Shown is the most resident memory that the process ever had (VmHWM, so
mapped pages of files count too) less what it had with torch imported, as a ratio to the
checkpoint's bytes. Linux only.

    python benchmarks/memory.py [--gigabytes 2.2] [--folder FOLDER] [--only TEXT] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmkit.models.layouts import recognise
from glmkit.runtime.loading import load_local

PART = 256 << 20
"""Bytes of weights that are in memory at once while a checkpoint is written."""
PROMPT, NEW = 24, 4
"""Tokens of the prompt, and generated."""
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint to load in several ways."""

    generation: int
    kind: str
    dtype: str

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"generation {self.generation}, .{self.kind}, {self.dtype}"

    def ways(self) -> dict[str, dict[str, str]]:
        """Return how it is loaded: name -> arguments."""
        other = next(each for each in DTYPES if each != self.dtype)
        return {
            "kept": {"dtype": self.dtype},
            "other half": {"dtype": other},
            "float32": {"dtype": "float32"},
            "default": {},
            "int8": {"quantize": "int8"},
            "int4": {"quantize": "int4"},
        }


CHECKPOINTS = (
    Checkpoint(1, "bin", "float16"),
    Checkpoint(1, "safetensors", "float16"),
    Checkpoint(3, "safetensors", "float16"),
    Checkpoint(3, "safetensors", "bfloat16"),
    Checkpoint(3, "bin", "bfloat16"),
)


@dataclass(frozen=True)
class Figures:
    """What one load took, in bytes."""

    checkpoint: int
    baseline: int
    peak: int

    @property
    def ratio(self) -> float:
        """Peak over baseline, to the checkpoint's size."""
        return (self.peak - self.baseline) / self.checkpoint


def main() -> None:
    """Write, load, print, clean up."""
    options = arguments()
    if options.measure:
        print(json.dumps(measured(options.measure, json.loads(options.arguments))))
        return
    table = {}
    for checkpoint in CHECKPOINTS:
        if options.only in checkpoint.name:
            table[checkpoint.name] = run(checkpoint, options.gigabytes, options.folder)
    if options.out:
        options.out.write_text(json.dumps(table, indent=2), encoding="utf-8")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.2, help="of a checkpoint")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; temporary")
    parser.add_argument("--only", default="", help="checkpoints whose name holds this")
    parser.add_argument("--out", type=Path, help="write the ratios as JSON")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--arguments", default="{}", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(checkpoint: Checkpoint, gigabytes: float, inside: Path | None = None) -> dict[str, float]:
    """Write one checkpoint, load it in every way, print and return the ratios."""
    ratios = {}
    with tempfile.TemporaryDirectory(dir=inside) as folder:
        free = shutil.disk_usage(folder).free
        if free < 1.5e9 * gigabytes:
            sys.exit(f"{folder}: {free / 1e9:.1f} GB free; need {1.5 * gigabytes:.1f}")
        write(Path(folder), checkpoint, gigabytes)
        for way, how in checkpoint.ways().items():
            figures = load(Path(folder), how)
            ratios[way] = round(figures.ratio, 3)
            print(
                f"{checkpoint.name:36} {way:10} checkpoint {figures.checkpoint / 1e6:6.0f} MB  "
                f"baseline {figures.baseline / 1e6:4.0f} MB  peak {figures.peak / 1e6:6.0f} MB  "
                f"ratio {figures.ratio:.2f}",
                flush=True,
            )
    return ratios


def load(folder: Path, how: dict[str, str]) -> Figures:
    """Load a checkpoint in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(folder), "--arguments", json.dumps(how)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return figures_of(folder, json.loads(done.stdout))


def figures_of(folder: Path, found: dict[str, int]) -> Figures:
    """Return the figures of a checkpoint from what a process measured as it loaded it."""
    size = sum(each.stat().st_size for each in folder.iterdir() if each.suffix != ".json")
    return Figures(size, found["baseline"], found["peak"])


def measured(folder: Path, how: dict[str, Any]) -> dict[str, int]:
    """Load, answer a few tokens, and return the memory before and at most."""
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        matrix = torch.ones(64, 64, dtype=dtype)  # what multiplying needs belongs to torch
        nn.functional.linear(matrix[:2], matrix)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins here
    baseline = resident("VmRSS")
    model = load_local(folder, **how)
    model.generate_ids(prompt(json.loads((folder / "config.json").read_text())), NEW)
    return {"baseline": baseline, "peak": resident("VmHWM")}


def resident(field: str) -> int:
    """Return a field of this process' status, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    if found is None:
        sys.exit(f"this system does not show {field}")
    return int(found[1]) * 1024


def prompt(raw: dict[str, Any]) -> list[int]:
    """Return a prompt that the model of a config.json takes."""
    ids = list(range(10, 10 + PROMPT))
    if "gmask_token_id" in raw:
        ids[-2:] = [raw["gmask_token_id"], raw["bos_token_id"]]
    return ids


# ---- writing checkpoints ----


def write(folder: Path, checkpoint: Checkpoint, gigabytes: float) -> None:
    """Write a checkpoint of about this size, with little of it in memory."""
    raw = configuration(checkpoint, gigabytes)
    write_as(folder, raw, checkpoint.kind, DTYPES[checkpoint.dtype])


def write_as(folder: Path, raw: dict[str, Any], kind: str, dtype: torch.dtype) -> None:
    """Write random weights of the shape that a config.json says.

    :param kind: ``safetensors`` or ``bin``.
    """
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    layout = recognise(raw)
    with torch.device("meta"):
        model = layout.model(layout.shape(raw))
    if kind == "safetensors":
        write_safetensors(folder / "model.safetensors", model, dtype)
    else:
        write_shards(folder, model, dtype)


def configuration(checkpoint: Checkpoint, gigabytes: float) -> dict[str, Any]:
    """Return a config.json in the proportions of the published models."""
    hidden, vocabulary = (2048, 40_000) if gigabytes >= 1 else (512, 8_000)
    numbers = gigabytes * 1e9 / 2 - 2 * hidden * vocabulary
    shared = {
        "model_type": "chatglm",
        "hidden_size": hidden,
        "num_attention_heads": hidden // 128,
        "layernorm_epsilon": 1e-5,
        "torch_dtype": checkpoint.dtype,
    }
    if checkpoint.generation == 1:
        return shared | {
            "vocab_size": vocabulary,
            "inner_hidden_size": 4 * hidden,
            "num_layers": max(1, round(numbers / (12 * hidden**2))),
            "max_sequence_length": 2048,
            "position_encoding_2d": True,
            "bos_token_id": 4,
            "eos_token_id": 5,
            "mask_token_id": 6,
            "gmask_token_id": 7,
            "pad_token_id": 3,
        }
    ffn = 3 * hidden + 256
    block = hidden * (2 * hidden + 4 * 128 + 3 * ffn)
    return shared | {
        "_name_or_path": "chatglm3-6b",
        "padded_vocab_size": vocabulary,
        "ffn_hidden_size": ffn,
        "num_layers": max(1, round(numbers / block)),
        "kv_channels": 128,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "seq_length": 8192,
        "add_qkv_bias": True,
        "rmsnorm": True,
        "post_layer_norm": True,
    }


def random(model: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield random weights by name, one tensor at a time; the same numbers come again and again."""
    drawn = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)).to(dtype)
    for key, meta in model.named_parameters():
        if meta.dim() == 1:
            yield key, torch.full(meta.shape, 0.0 if key.endswith("bias") else 1.0, dtype=dtype)
            continue
        times = -(-meta.numel() // drawn.numel())
        scaled = drawn * meta.shape[1] ** -0.5
        yield key, scaled.repeat(times)[: meta.numel()].view(meta.shape).contiguous()


def write_safetensors(file: Path, model: nn.Module, dtype: torch.dtype) -> None:
    """Write one file: the header, then tensor after tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, meta in model.named_parameters():
        start, end = end, end + meta.numel() * dtype.itemsize
        header[key] = {
            "dtype": NAMES[dtype],
            "shape": list(meta.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in random(model, dtype):
            out.write(memoryview(tensor.flatten().view(torch.uint8).numpy()))


def write_shards(folder: Path, model: nn.Module, dtype: torch.dtype) -> None:
    """Write `.bin` shards of some hundred megabytes and their index."""
    table: dict[str, str] = {}
    part: dict[str, Tensor] = {}
    for key, tensor in random(model, dtype):
        part[key] = tensor
        if sum(each.nbytes for each in part.values()) >= PART:
            _write_shard(folder, part, table)
    _write_shard(folder, part, table)
    index = {"metadata": {}, "weight_map": table}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


def _write_shard(folder: Path, part: dict[str, Tensor], table: dict[str, str]) -> None:
    if not part:
        return
    name = f"pytorch_model-{len(set(table.values())) + 1:05}.bin"
    torch.save(part, folder / name)
    table.update(dict.fromkeys(part, name))
    part.clear()


if __name__ == "__main__":
    main()
