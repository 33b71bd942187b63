"""The helpers that plugin authors get."""

import numpy as np

from glmkit import ChatModel, Encoder, GenerationOptions, InspectableModel
from glmkit.testing import EchoModel, HashEncoder, make_app, tiny_glm

HELLO = [{"role": "user", "content": "one two three"}]


def test_echo_is_a_chat_model_that_counts_and_cuts():
    model = EchoModel()
    assert isinstance(model, ChatModel)
    reply = model.reply(HELLO, GenerationOptions(max_tokens=2))
    assert (reply.text, reply.finish_reason) == ("one two ", "length")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 2)
    assert [each.text for each in model.batch([HELLO, HELLO])] == ["one two three"] * 2


def test_hash_encoder_brings_texts_that_share_words_together():
    encoder = HashEncoder()
    assert isinstance(encoder, Encoder)
    texts = ["the longest river", "a river, the longest", "红苹果", "红苹果树", ""]
    vectors = encoder.encode(texts)
    assert vectors.shape == (5, encoder.dimensions)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert vectors[0] @ vectors[1] > 0.7 > 0.3 > abs(vectors[0] @ vectors[2])
    assert vectors[2] @ vectors[3] > 0.6
    assert np.array_equal(vectors, HashEncoder().encode(texts))


def test_tiny_glm_runs_the_real_code(tmp_path):
    model = tiny_glm(tmp_path / "tiny")
    assert isinstance(model, InspectableModel)
    reply = model.reply(HELLO, GenerationOptions(max_tokens=4, temperature=0))
    assert 0 < reply.usage.completion_tokens <= 4
    assert model.generate_ids([1, 2, 3], 4) == model.generate_ids([1, 2, 3], 4)


def test_apps_are_offline_and_alone(tmp_path):
    app = make_app(tmp_path)
    assert app.config.offline
    assert app.config.home == tmp_path
    assert app.plugins.infos() == []
