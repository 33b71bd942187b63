"""Helpers for the tests of plugins: small, deterministic, no download.

from glmkit.testing import EchoModel, HashEncoder, make_app

def test_my_plugin(tmp_path):
    app = make_app(tmp_path, my_plugin=my_plugin)
    chat = app.chat(EchoModel())
    assert chat.reply("hello").text == "hello"
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .app import Glmkit
from .config import Config
from .plugins import Plugins
from .types import Chunk, GenerationOptions, Message, MessageLike, StreamedModel, Usage

if TYPE_CHECKING:
    import numpy as np

    from .runtime.engines.local import LocalModel

__all__ = ["EchoModel", "HashEncoder", "make_app", "tiny_glm"]


class EchoModel(StreamedModel):
    """A chat model that repeats the question, or says what it was told to.

    :param answer: what to answer instead of the question.
    """

    languages: frozenset[str] | None = frozenset({"en", "zh"})

    def __init__(self, answer: str | None = None, *, name: str = "echo") -> None:
        self.name = name
        self.answer = answer
        self.seen: list[tuple[Message, ...]] = []
        """The conversations it was asked, for assertions."""

    def stream(
        self, messages: Sequence[MessageLike], options: GenerationOptions | None = None
    ) -> Iterator[Chunk]:
        """Yield the answer word by word, ``max_tokens`` words at most."""
        conversation = tuple(Message.of(each) for each in messages)
        self.seen.append(conversation)
        limit = (options or GenerationOptions()).max_tokens
        text = conversation[-1].content if self.answer is None else self.answer
        words = re.findall(r"\S+\s*", text)
        for word in words[:limit]:
            yield Chunk(word)
        prompt = sum(len(message.content.split()) for message in conversation)
        reason: Literal["length", "stop"] = "length" if len(words) > limit else "stop"
        yield Chunk("", reason, Usage(prompt, min(len(words), limit)))


class HashEncoder:
    """An encoder without a model: texts that share words or characters get close vectors.

    Each lower-case word and each pair of Chinese characters adds to one of ``dimensions`` buckets,
    chosen and signed by a hash.
    """

    def __init__(self, dimensions: int = 256) -> None:
        self.dimensions = dimensions
        self.name = f"hash-{dimensions}"

    def encode(
        self, texts: Sequence[str], *, kind: Literal["query", "passage"] = "passage"
    ) -> np.ndarray:
        """Return unit vectors, float32 (N, D); a text without a letter gets a fixed one."""
        import numpy as np

        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, text in enumerate(texts):
            for feature in _features(text) or [""]:
                digest = hashlib.blake2b(feature.encode(), digest_size=8).digest()
                bucket = int.from_bytes(digest[:4], "little") % self.dimensions
                vectors[row, bucket] += 1.0 if digest[4] % 2 else -1.0
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors[norms[:, 0] == 0, 0] = 1.0
        unit: np.ndarray = vectors / np.where(norms == 0, 1.0, norms)
        return unit


def _features(text: str) -> list[str]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    runs = re.findall(r"[\u3400-\u9fff]+", text)
    return words + [run[at : at + 2] for run in runs for at in range(max(len(run) - 1, 1))]


def tiny_glm(folder: Path, *, seed: int = 0) -> LocalModel:
    """Write a tiny random GLM checkpoint with a vocabulary into ``folder`` and load it.

    It answers nonsense through exactly the code that runs a real model.
    """
    from .models.tiny import tiny_checkpoint
    from .runtime.loading import load_local

    return load_local(tiny_checkpoint(folder, seed=seed))


def make_app(home: Path, config: dict[str, Any] | None = None, **plugins: object) -> Glmkit:
    """Return an application in a folder of its own, offline, with just these plugins.

    :param home: where its models and indexes live, usually pytest's ``tmp_path``.
    :param config: more configuration, for example ``{"plugins": {"mine": {"key": 1}}}``.
    :param plugins: plugin objects by name.
    """
    found = Plugins()
    for name, plugin in plugins.items():
        found.register(plugin, name=name)
    return Glmkit(Config(home=home, **{"offline": True, **(config or {})}), plugins=found)
