"""What the tests of sources share."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from stand_in import Server

from glmkit import Config, sources, store
from glmkit.console import drain

loopback = [pytest.mark.network, pytest.mark.allow_hosts(["127.0.0.1"])]
NEEDED = ["MODEL_LICENSE", "config.json", "model-00001.safetensors", "tokenizer.model"]
ID = "someone/chatglm-test"
WEIGHTS = "model-00001.safetensors"


def hf(config: Config, server: Server) -> Config:
    return replace(config, hf_endpoint=server.url)


def pull(name: str, config: Config, **how: object) -> Path:
    return drain(sources.pull(name, config=config, **how))


def make_model(folder: Path, **more: bytes) -> Path:
    for name, content in {"config.json": b"{}", "model.safetensors": b"w", **more}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def in_store(config: Config) -> list[str]:
    return [each.manifest.name for each in store.pulled(config)]


def run(script: str, *args: object, **environment: str) -> subprocess.Popen[str]:
    """Start a script in a Python of its own."""
    path = os.pathsep.join(sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
