"""Whatever stands in a model folder: only glmkit's own errors come out, each in one line."""

import json
import shutil
import struct

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from glmkit import GenerationOptions, Message
from glmkit.errors import CheckpointError, GlmkitError
from glmkit.models.layouts import identify, recognise
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.describe import describe
from glmkit.runtime.loading import load_local

pytestmark = pytest.mark.usefixtures("one_thread")

LAYOUTS = ("hub", "chatglm", "chatglm2", "chatglm3", "glm4-9b")
quick = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
many = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

leaf = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.integers(),
    st.sampled_from([2**31, 2**63, 10**15, 10**400, -1, 0.5]),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(["4", "linear", "silu", "../x", "pytorch_model.bin", "model.safetensors"]),
)
anything = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)
OTHER = (
    "pre_seq_len",
    "prefix_projection",
    "quantization_bit",
    "quantization_config",
    "rope_ratio",
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
    "multi_query_attention",
    "position_encoding_2d",
    "do_sample",
    "temperature",
    "top_k",
    "repetition_penalty",
    "torch_dtype",
    "dtype",
)


@pytest.fixture(scope="module", params=LAYOUTS)
def sound(request, tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp(request.param) / "tiny", layout=request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a maker of folders in which one file is replaced."""
    folders = {
        suffix: tiny_checkpoint(
            tmp_path_factory.mktemp(suffix) / "tiny", layout="chatglm2", files=suffix
        )
        for suffix in ("safetensors", "bin")
    }
    sharded = shutil.copytree(folders["safetensors"], tmp_path_factory.mktemp("index") / "tiny")
    (sharded / "model.safetensors").rename(sharded / "a.safetensors")
    return folders | {"index": sharded}


def survives(act, *args):
    """Run something that may refuse, in one line."""
    try:
        act(*args)
    except GlmkitError as error:
        assert "\n" not in str(error) and len(str(error)) < 1_000


def looked_at(folder):
    for act in (describe, load_local):
        survives(act, folder)


def changed(data, raw):
    """Draw a few changes of a table, values at first, then what lies in its tables."""
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from([*sorted(raw), *OTHER]))
        if isinstance(raw.get(key), dict) and data.draw(st.booleans()):
            raw = raw | {key: changed(data, raw[key])}
        elif data.draw(st.integers(0, 9)):
            raw = raw | {key: data.draw(anything)}
        else:
            raw = {name: value for name, value in raw.items() if name != key}
    return raw


@many
@given(data=st.data())
def test_any_settings_have_a_shape_or_are_refused(sound, data):
    raw = changed(data, json.loads((sound / "config.json").read_text()))
    survives(lambda: recognise(raw).shape(raw, identify(sound, raw).family))


@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf"), -1, True, "1", [1]])
@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "repetition_penalty"])
def test_sampling_settings_are_numbers(small, name, value):
    file = small["bin"] / "generation_config.json"
    file.write_text(json.dumps({"do_sample": True, name: value}))
    with pytest.raises(CheckpointError, match=name):
        load_local(file.parent)
    file.unlink()


@pytest.mark.parametrize(
    "said",
    [
        *({"repetition_penalty": 0}, {"repetition_penalty": 1e-300}, {"repetition_penalty": 1e6}),
        *({"temperature": 101}, {"temperature": -0.1}, {"top_p": 1.01}, {"top_p": -0.1}),
        *({"top_k": -1}, {"top_k": 0.5}, {"top_k": 10**9}),
    ],
    ids=lambda said: "=".join(map(str, *said.items())),
)
def test_sampling_settings_have_their_ranges(small, said):
    file = small["bin"] / "generation_config.json"
    file.write_text(json.dumps({"do_sample": True, **said}))
    with pytest.raises(CheckpointError, match=f"{next(iter(said))} is .*expected .* from"):
        load_local(file.parent)
    file.unlink()


@pytest.mark.parametrize(
    "said",
    [
        *({"temperature": 0}, {"temperature": 1e-2}, {"temperature": 1e-300}, {"temperature": 100}),
        *({"top_p": 1.0}, {"top_p": 0}, {"top_k": 0}, {"top_k": 50.0}, {"top_k": None}),
        *({"repetition_penalty": 0.01}, {"repetition_penalty": 100}),
    ],
    ids=lambda said: "=".join(map(str, *said.items())),
)
def test_sampling_settings_of_real_files_can_be_sampled_with(small, said):
    file = small["bin"] / "generation_config.json"
    file.write_text(json.dumps({"do_sample": True, **said}))
    model = load_local(file.parent)
    options = GenerationOptions(max_tokens=4, seed=1)
    assert model.reply([Message("user", "hello")], options).usage.completion_tokens <= 4
    file.unlink()


@quick
@given(data=st.data())
def test_any_settings_load_or_are_refused(sound, data):
    file = sound / "config.json"
    kept = file.read_text()
    try:
        file.write_text(json.dumps(changed(data, json.loads(kept))))
        looked_at(sound)
    finally:
        file.write_text(kept)


@pytest.mark.parametrize("name", ["glmkit.json", "generation_config.json", "tokenizer_config.json"])
@quick
@given(
    table=st.one_of(
        anything,
        st.dictionaries(
            st.sampled_from(
                [
                    *("family", "languages", "chat_format", "system", "chat_template"),
                    *("temperature", "top_p", "top_k", "do_sample", "eos_token_id"),
                    *("added_tokens_decoder", "tokenizer_class", "name_or_path"),
                ]
            ),
            anything,
        ),
    )
)
def test_any_files_beside_it_are_read_or_refused(small, name, table):
    file = small["safetensors"] / name
    file.write_text(json.dumps(table))
    try:
        looked_at(file.parent)
    finally:
        file.unlink()


def spoilt(data, content, region):
    """Draw flipped, removed or cut bytes within a region of a file."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, min(region, len(content)) - 1)))
        how = data.draw(st.sampled_from(["flip", "byte", "cut", "remove", "insert"]))
        if how == "cut":
            return bytes(content[:at])
        if how == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif how == "remove":
            del content[at : at + data.draw(st.integers(1, 9))]
        elif at < len(content):
            new = content[at] ^ (1 << data.draw(st.integers(0, 7)))
            content[at] = new if how == "flip" else data.draw(st.integers(0, 255))
    return bytes(content)


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@many
@given(data=st.data())
def test_any_bytes_in_weights_are_read_or_refused(small, suffix, end, data):
    file = next(small[suffix].glob(f"*.{suffix}"))
    kept = file.read_bytes()
    region = 4_000 if suffix == "bin" else 8 + struct.unpack("<Q", kept[:8])[0]
    try:
        if end:  # the directory of a zip file, the numbers of the other
            file.write_bytes(spoilt(data, kept[::-1], region)[::-1])
        else:
            file.write_bytes(spoilt(data, kept, region))
        looked_at(small[suffix])
    finally:
        file.write_bytes(kept)


names = st.one_of(
    anything, st.sampled_from(["a.safetensors", "b.safetensors", "../a.safetensors", "a\0b", ""])
)


@quick
@given(
    index=st.one_of(
        anything,
        st.fixed_dictionaries(
            {"weight_map": st.one_of(anything, st.dictionaries(st.text(max_size=5), names))}
        ),
    ),
)
def test_any_index_is_followed_or_refused(small, index):
    (small["index"] / "model.safetensors.index.json").write_text(json.dumps(index))
    looked_at(small["index"])
