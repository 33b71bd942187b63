"""What an application loads once, and models with adapters beside each other."""

import threading
import time

import numpy as np
import pytest

from glmkit import Adapter, GenerationOptions, LowRank, Spec, UsageError, hookimpl
from glmkit.sharing import Lazy, OneByOne
from glmkit.testing import EchoModel, HashEncoder, make_app


class Watched(HashEncoder):
    """Counts how many were made, and how many threads were inside at once."""

    made = 0
    inside = most = 0

    def __init__(self):
        super().__init__(16)
        type(self).made += 1
        time.sleep(0.01)  # so that others come while it is made

    def encode(self, texts, *, kind):
        kinds = type(self)
        kinds.inside += 1
        kinds.most = max(kinds.most, kinds.inside)
        time.sleep(0.001)
        kinds.inside -= 1
        return super().encode(texts, kind=kind)


def load_watched(name, app):
    return Watched()


class Plugin:
    @hookimpl
    def register_encoders(self, register):
        register(Spec("watched", "counts", f"{__name__}:load_watched"))

    @hookimpl
    def load_adapter(self, path, model, alpha):
        import torch

        strength = (alpha or 1.0) * (1 if path.name == "up" else -1)
        parts = {
            f"transformer.encoder.layers.{layer}.mlp.dense_4h_to_h": LowRank(
                torch.full((1, 96), strength), torch.ones(64, 1), 1.0
            )
            for layer in range(2)
        }
        return Adapter(path.name, "lora", "mine", parts)


def test_threads_share_one_encoder_and_ask_it_in_turn(tmp_path):
    app, seen = make_app(tmp_path, mine=Plugin()), []

    def ask():
        encoder = app.shared_encoder("watched")
        seen.append((encoder, encoder.encode(["a river"], kind="query")))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len({id(encoder) for encoder, _ in seen}) == 1
    assert (Watched.made, Watched.most) == (1, 1)
    wanted = HashEncoder(16).encode(["a river"], kind="query")
    assert all(np.array_equal(found, wanted) for _, found in seen)
    assert app.load_encoder("watched") is not app.load_encoder("watched")


def test_a_shared_encoder_counts_tokens_as_its_own_does():
    class Counting(HashEncoder):
        def token_ids(self, text):
            return list(range(2 * len(text)))

    assert OneByOne(Counting()).token_ids("abc") == list(range(6))
    assert not hasattr(OneByOne(HashEncoder()), "token_ids")


def test_what_could_not_be_made_is_made_again():
    tries = iter([ValueError("not yet"), 7])

    def make():
        found = next(tries)
        if isinstance(found, Exception):
            raise found
        return found

    lazy = Lazy(make)
    with pytest.raises(ValueError, match="not yet"):
        lazy.get()
    assert lazy.get() == lazy.get() == 7


def test_adapters_lie_beside_each_other(tmp_path):
    """Each by its name; who names none is answered by the model alone."""
    from glmkit.models.tiny import tiny_checkpoint

    folder = tiny_checkpoint(tmp_path / "base")
    app = make_app(tmp_path / "home", mine=Plugin())
    options = GenerationOptions(temperature=0, max_tokens=12)
    plain = app.load_model(str(folder))
    alone = {
        name: app.load_model(str(folder), adapter=tmp_path / name, adapter_alpha=3)
        for name in ("up", "down")
    }
    both = app.load_model(
        str(folder), adapters={name: tmp_path / name for name in alone}, adapter_alpha=3
    )
    asked = [{"role": "user", "content": "river"}]
    said = both.reply(asked, options).text
    assert said == plain.reply(asked, options).text
    for name, model in alone.items():
        text = both.reply(asked, GenerationOptions(temperature=0, max_tokens=12, adapter=name)).text
        assert text == model.reply(asked, options).text != said


def test_what_takes_no_adapters_says_so(tmp_path):
    class Parrots:
        @hookimpl
        def register_models(self, register):
            register(Spec("parrot", "repeats", f"{__name__}:load_echo"))

    app = make_app(tmp_path, mine=Parrots())
    with pytest.raises(UsageError, match="'parrot' comes from a plugin, which takes no device"):
        app.load_model("parrot", device="cpu")
    with pytest.raises(UsageError, match="the engine 'ray' takes one adapter"):
        app.load_model("echo", engine="ray", adapters={"poet": tmp_path})
    with pytest.raises(UsageError, match="'echo' takes no adapters; leave 'poet' out"):
        app.load_model("parrot", adapters={"poet": tmp_path})


def load_echo(name, app):
    return EchoModel()
