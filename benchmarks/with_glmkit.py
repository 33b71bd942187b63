"""The contender glmkit; see worker.py."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from worker import serve


class Contender:
    """The model of a folder in this process.

    :param folder: a checkpoint that glmkit loads.
    """

    def __init__(self, folder: str) -> None:
        from glmkit.runtime.loading import load_local

        self.model = load_local(Path(folder))

    def prompt(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """Return the prompt of a conversation, as token ids and as text with its special tokens."""
        from glmkit.types import Message

        turns = [Message.of(each) for each in messages]
        ids = list(self.model._renderer.render(turns, room=self.model.context_length).ids)
        return {"ids": ids, "text": self.model.tokenizer.decode(ids, skip_special=False)}

    def decode(self, prompts: list[list[int]], tokens: int) -> dict[str, float]:
        """Decode greedily, all prompts side by side; no stop ids, so that all runs are as long."""
        from glmkit.runtime.decode import Row, columns

        rows = [Row(ids, tokens) for ids in prompts]
        started, first = time.perf_counter(), 0.0
        for _ in columns(self.model.model, rows, slots=len(rows)):
            first = first or time.perf_counter() - started
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "tokens": sum(len(each.new) for each in rows), "first": first}

    def turn(self, messages: list[dict[str, str]], tokens: int) -> dict[str, Any]:
        """Answer a conversation; say when the first token came."""
        from glmkit.types import GenerationOptions

        options = GenerationOptions(max_tokens=1, temperature=0)
        started = time.perf_counter()
        reply = self.model.reply(messages, options)
        first = time.perf_counter() - started
        if tokens > 1:
            options = GenerationOptions(max_tokens=tokens, temperature=0)
            reply = self.model.reply(messages, options)
        return {"first": first, "text": reply.text, "prompt": reply.usage.prompt_tokens}

    def plugins(self, rounds: int, tokens: int, question: str) -> list[list[float]]:
        """Return seconds of answers (without plugins, with the installed ones), in turns."""
        from glmkit import Config, Glmkit
        from glmkit.testing import make_app
        from glmkit.types import GenerationOptions

        options = GenerationOptions(max_tokens=tokens, temperature=0)
        with tempfile.TemporaryDirectory() as home:
            config = Config(home=Path(home), offline=True)
            apps = [make_app(Path(home)), Glmkit(config)]
            return [
                [self._chatted(app, options, question) for app in apps] for _ in range(rounds + 1)
            ][1:]

    def _chatted(self, app: Any, options: Any, question: str) -> float:  # noqa: ANN401
        chat = app.chat(self.model, options=options)
        started = time.perf_counter()
        made = chat.reply(question).usage.completion_tokens
        return (time.perf_counter() - started) / made

    def about(self) -> dict[str, Any]:
        """Return versions and settings."""
        import torch

        import glmkit
        from glmkit.plugins import Plugins

        return {
            "glmkit": glmkit.__version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "plugins": [each.name for each in Plugins.discover().infos()],
        }


if __name__ == "__main__":
    serve(Contender)
