"""Encoders made with sentence-transformers, on a tiny generated model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from glmkit import CheckpointError, Config, Encoder, Glmkit, MissingExtraError, UsageError
from glmkit_knowledge.encoders import is_sentence_transformer, load_sentence_transformer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", "passage", ":", "river", "long"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as parts
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    bert = tmp_path_factory.mktemp("bert")
    (bert / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(bert / "vocab.txt")).save_pretrained(bert)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(WORDS), intermediate_size=32, **sizes)
    BertModel(config).save_pretrained(bert)
    words = parts.Transformer(str(bert))
    model = SentenceTransformer(modules=[words, parts.Pooling(32)], device="cpu")
    model.prompts = {"query": "query: ", "document": "passage: "}
    out = tmp_path_factory.mktemp("models") / "tiny"
    model.save(str(out))
    return out


@pytest.fixture(scope="module")
def encoder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    home = tmp_path_factory.mktemp("home")
    return load_sentence_transformer(str(folder), Glmkit(Config(home=home, offline=True)))


def test_vectors_are_unit_and_float32(encoder: Encoder):
    vectors = encoder.encode(["river", "", "long river"], kind="passage")
    assert vectors.shape == (3, encoder.dimensions) == (3, 32)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert isinstance(encoder, Encoder)


def test_query_and_passage_use_the_models_prompts(encoder: Encoder):
    query, passage = (encoder.encode(["river"], kind=kind) for kind in ("query", "passage"))
    assert not np.allclose(query, passage, atol=1e-4)


def test_no_texts_no_vectors(encoder: Encoder):
    assert encoder.encode([], kind="query").shape == (0, 32)


def test_an_unknown_kind_is_refused(encoder: Encoder):
    with pytest.raises(UsageError, match="'document'"):
        encoder.encode(["river"], kind="document")  # type: ignore[arg-type]


def test_loading_prints_nothing_and_restores_progress_bars(folder: Path, app: Glmkit, capfd):
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    load_sentence_transformer(str(folder), app)
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled() == before


def test_the_name_follows_the_weights(folder: Path, app: Glmkit, tmp_path: Path):
    import shutil

    from safetensors.numpy import load_file, save_file

    other = tmp_path / "tiny"
    shutil.copytree(folder, other)
    weights = next(other.rglob("model.safetensors"))
    tensors = {name: array + 0.5 for name, array in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    names = [load_sentence_transformer(str(each), app).name for each in (folder, folder, other)]
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("tiny@")


def test_a_folder_is_recognised(folder: Path, tmp_path: Path):
    assert is_sentence_transformer(folder)
    assert not is_sentence_transformer(tmp_path)


def test_a_folder_without_a_model_is_one_clear_line(app: Glmkit, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-thing"}))
    with pytest.raises(CheckpointError, match="cannot be loaded as a sentence-transformers"):
        load_sentence_transformer(str(tmp_path), app)


def test_pickled_weights_are_refused(folder: Path, app: Glmkit, tmp_path: Path):
    import shutil

    import torch
    from safetensors.torch import load_file

    other = tmp_path / "pickled"
    shutil.copytree(folder, other)
    weights = next(other.rglob("model.safetensors"))
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(CheckpointError):
        load_sentence_transformer(str(other), app)


def test_offline_asks_no_network(tmp_path: Path):
    offline = Glmkit(Config(home=tmp_path, offline=True))
    with pytest.raises(CheckpointError, match="nobody/nothing"):  # sockets are blocked here
        load_sentence_transformer("nobody/nothing", offline)


def test_a_missing_package_names_the_extra(app: Glmkit, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"glmkit\[knowledge\]"):
        load_sentence_transformer("any/model", app)
