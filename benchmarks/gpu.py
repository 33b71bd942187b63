"""Measure a model of ChatGLM3-6B's shape, with random weights, on one NVIDIA card.

    python benchmarks/gpu.py [--dtype bfloat16] [--no-peer] [--out FILE]

Beside each time per token stands its floor: the bytes of the weights over the bandwidth at which
this card copies memory, measured first. The peer is transformers' generate on the same shape, in
turns with glmkit. Random weights answer nonsense exactly as fast as trained ones. The figures go
into benchmarks/results/<date>-<card>.json. ``--device cpu --shape tiny`` tries the program itself.
"""

from __future__ import annotations

import argparse
import gc
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from memory import write_as
from record import OURS, ROOT, Record, Rounds, machine_name
from sections import take_turns
from torch import nn

PEER = "transformers generate"
ROUNDS = 3


@dataclass(frozen=True)
class Shape:
    """A model's shape, and what it is asked."""

    hidden: int
    layers: int
    ffn: int
    heads: int
    vocabulary: int
    prompt: int
    """Tokens of each prompt."""
    tokens: int
    """New tokens of each row."""
    batches: tuple[int, ...]
    prefill: int
    """Tokens of a long prompt."""
    head_dim: int = 128
    groups: int = 2

    def config(self, dtype: str) -> dict[str, Any]:
        """Return a config.json as ChatGLM3-6B's is."""
        return {
            "_name_or_path": "chatglm3-6b",
            "model_type": "chatglm",
            "hidden_size": self.hidden,
            "num_layers": self.layers,
            "ffn_hidden_size": self.ffn,
            "num_attention_heads": self.heads,
            "padded_vocab_size": self.vocabulary,
            "kv_channels": self.head_dim,
            "multi_query_attention": True,
            "multi_query_group_num": self.groups,
            "seq_length": 8192,
            "layernorm_epsilon": 1e-5,
            "add_qkv_bias": True,
            "rmsnorm": True,
            "post_layer_norm": True,
            "torch_dtype": dtype,
        }


SHAPES = {
    "chatglm3-6b": Shape(4096, 28, 13696, 32, 65024, 64, 128, (8, 64), 2048),
    "tiny": Shape(64, 2, 96, 4, 320, 8, 6, (2, 3), 32, head_dim=16),
}


def main(given: Sequence[str] | None = None) -> Record:
    """Measure, print, write."""
    options = arguments(given)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device is here: this measures one NVIDIA card (see --help)")
    shape = SHAPES[options.shape]
    record = Record(settings=vars(shape) | {"shape": options.shape, "dtype": options.dtype})
    record.versions = {"torch": torch.__version__, "device": name_of(device)}
    if device.type == "cuda":
        record.versions["cuda"] = torch.version.cuda
    bench = Bench(shape, device, options.dtype, record)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        raw = shape.config(options.dtype)
        write_as(Path(folder), raw, "safetensors", getattr(torch, options.dtype))
        bench.plain(Path(folder), peer=not options.no_peer)
        for bits in ("int8", "int4"):
            bench.rounded(Path(folder), bits)
    if options.out or device.type == "cuda":
        written = record.write(options.out, name=slug(name_of(device)))
        print(f"\n{written.relative_to(ROOT) if written.is_relative_to(ROOT) else written}")
    return record


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="chatglm3-6b")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    parser.add_argument("--folder", type=Path, help="for the weights, 12.5 GB; default: temporary")
    parser.add_argument("--out", type=Path, help="write the figures here")
    return parser.parse_args(given)


class Bench:
    """The measurements, all on one device."""

    def __init__(self, shape: Shape, device: torch.device, dtype: str, record: Record) -> None:
        self.shape, self.device, self.dtype, self.record = shape, device, dtype, record
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(
            10, shape.vocabulary - 10, (max(shape.batches), shape.prefill), generator=generator
        )
        self.bandwidth = bandwidth(device)
        """Bytes read or written each second as memory is copied."""
        record.settings["copied GB/s"] = self.bandwidth / 1e9
        print(f"{name_of(device)}: copies at {self.bandwidth / 1e9:.0f} GB/s")

    def plain(self, folder: Path, *, peer: bool) -> None:
        """Measure the model as it is stored, and transformers beside it."""
        with self._loaded(folder, self.dtype) as model:
            self._single(model, self.dtype)
            ways = {OURS: lambda rows: self._batch(model, rows)}
            if peer:
                theirs = self._peer()
                ways[PEER] = lambda rows: self._generate(theirs, rows)
            for rows in (1, *self.shape.batches):
                for way in ways.values():
                    way(rows)  # warm up
                runs = {name: lambda way=way, rows=rows: way(rows) for name, way in ways.items()}
                self.record.add(
                    f"{rows} rows", take_turns(runs, ROUNDS, self.record.absent), "tokens/s"
                )
            self._prefill(model)

    def rounded(self, folder: Path, bits: str) -> None:
        """Measure the model in integers, a single row and the largest batch."""
        with self._loaded(folder, bits, quantize=bits) as model:
            self._single(model, bits)
            rows = max(self.shape.batches)
            self._batch(model, rows)
            found = {OURS: [self._batch(model, rows) for _ in range(ROUNDS)]}
            self.record.add(f"{rows} rows, {bits}", found, "tokens/s")

    @contextmanager
    def _loaded(self, folder: Path, name: str, **how: str) -> Iterator[nn.Module]:
        from glmkit.runtime.loading import load_local

        started = time.perf_counter()
        local = load_local(folder, device=str(self.device), dtype=self.dtype, **how)
        self._wait()
        seconds = {OURS: [time.perf_counter() - started]}
        self.record.add(f"loading, {name}", seconds, "s until ready")
        yield local.model
        if self.device.type == "cuda":
            most = torch.cuda.max_memory_allocated(self.device) / 1e6
            self.record.add(f"memory, {name}", {"allocated": [most]}, "MB at most")
        del local
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def _single(self, model: nn.Module, name: str) -> None:
        """Time the steps of one row, against what reading its weights takes at the least."""
        floor = numbers_read(self.shape.config(self.dtype)) * _BYTES[name] / self.bandwidth
        self._steps(model)
        found: Rounds = {OURS: [self._steps(model) for _ in range(ROUNDS)]}
        found["floor"] = [floor] * ROUNDS
        self.record.add(f"one row, {name}", found, "s for each token", over="floor")
        share = floor / statistics.median(found[OURS])
        print(f"  {share:.0%} of the bandwidth floor")
        self.record.settings[f"share of the floor, {name}"] = share

    def _steps(self, model: nn.Module) -> float:
        """Return the median seconds of a step of one row."""
        times = [time.perf_counter() for _ in self._columns(model, 1, self.shape.tokens)]
        return statistics.median(
            after - before for before, after in zip(times[1:], times[2:], strict=False)
        )

    def _columns(self, model: nn.Module, rows: int, tokens: int) -> Iterator[object]:
        from glmkit.runtime.decode import Row, columns

        prompts = self.ids[:rows, : self.shape.prompt].tolist()
        return columns(model, [Row(ids, tokens) for ids in prompts], slots=rows)

    def _batch(self, model: nn.Module, rows: int) -> float:
        return self._speed(rows, lambda: list(self._columns(model, rows, self.shape.tokens)))

    def _speed(self, rows: int, act: Callable[[], object]) -> float:
        """Return new tokens per second."""
        self._wait()
        started = time.perf_counter()
        act()
        self._wait()
        return rows * self.shape.tokens / (time.perf_counter() - started)

    def _prefill(self, model: nn.Module) -> None:
        from glmkit.runtime.decode import Row, columns

        ids, found = self.ids[0].tolist(), []
        for round_ in range(ROUNDS + 1):
            self._wait()
            started = time.perf_counter()
            for _ in columns(model, [Row([round_, *ids[1:]], 1)]):
                pass
            found.append(len(ids) / (time.perf_counter() - started))
        self.record.add(f"a prompt of {len(ids)}", {OURS: found[1:]}, "prompt tokens/s")

    def _peer(self) -> nn.Module:
        from transformers import GlmConfig, GlmForCausalLM

        shape = self.shape
        config = GlmConfig(
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            intermediate_size=shape.ffn,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.groups,
            head_dim=shape.head_dim,
            vocab_size=shape.vocabulary,
            attention_bias=True,
            eos_token_id=None,
            pad_token_id=0,
            dtype=self.dtype,
        )
        with torch.device(self.device):
            model = GlmForCausalLM._from_config(config, dtype=getattr(torch, self.dtype))
        model.generation_config.eos_token_id = None
        return model.eval()

    def _generate(self, model: Any, rows: int) -> float:  # noqa: ANN401
        ids = self.ids[:rows, : self.shape.prompt].to(self.device)
        given = {"max_new_tokens": self.shape.tokens, "do_sample": False}
        mask = torch.ones_like(ids)
        return self._speed(rows, lambda: model.generate(ids, attention_mask=mask, **given))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "int4": 0.625}
"""Of each weight; in 4 bits, 32 share a scale and a least value of 16 bits each."""


def numbers_read(raw: dict[str, Any]) -> int:
    """Return how many weights a step reads: all but the table of tokens."""
    from glmkit.models.layouts import recognise

    layout = recognise(raw)
    with torch.device("meta"):
        model = layout.model(layout.shape(raw))
    table = model.get_submodule(model.EMBEDDING)
    return sum(each.numel() for each in model.parameters()) - table.weight.numel()


def bandwidth(device: torch.device) -> float:
    """Return how many bytes a second are read and written as memory is copied."""
    size = 1 << (30 if device.type == "cuda" else 26)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * size / (time.perf_counter() - started))
    return best


def name_of(device: torch.device) -> str:
    """Return what the card is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else machine_name()


def slug(name: str) -> str:
    """Return a name for files."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    main()
