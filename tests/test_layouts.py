import json

import pytest
from hypothesis import given, strategies as st

from glmkit.errors import CheckpointError
from glmkit.models.glm import GlmConfig
from glmkit.models.layouts import HUB, LAYOUTS, recognise
from glmkit.models.tiny import tiny_checkpoint


@pytest.fixture
def raw(tmp_path):
    def read(layout):
        return json.loads(
            (tiny_checkpoint(tmp_path / layout, layout=layout) / "config.json").read_text()
        )

    return read


@pytest.mark.parametrize("layout", ["hub", "chatglm2", "chatglm3", "glm4-9b"])
def test_tiny_checkpoints_are_recognised(raw, layout):
    found = recognise(raw(layout))
    assert found is (HUB if layout == "hub" else LAYOUTS[-1])
    config = found.shape(raw(layout))
    assert (config.layers, config.heads, config.kv_heads, config.rotary_dim) == (2, 4, 2, 8)


def test_rope_ratio_multiplies_the_base_or_divides_positions(raw):
    glm4 = recognise(raw("glm4-9b")).shape(raw("glm4-9b"))
    assert (glm4.rope_theta, glm4.position_scale) == (5e6, 1.0)
    long_second = {**raw("chatglm2"), "_name_or_path": "THUDM/chatglm2-6b-32k", "rope_ratio": 16}
    second = recognise(long_second).shape(long_second)
    assert (second.rope_theta, second.position_scale) == (10_000.0, 16.0)
    long_third = {**raw("chatglm3"), "_name_or_path": "THUDM/chatglm3-6b-32k", "rope_ratio": 50}
    assert recognise(long_third).shape(long_third).rope_theta == 500_000.0


def test_rotary_settings_beside_the_table_are_read(raw):
    old = raw("hub")
    old.pop("rope_parameters")
    old |= {"rope_theta": 20_000.0, "partial_rotary_factor": 1.0}
    config = recognise(old).shape(old)
    assert (config.rope_theta, config.rotary_dim) == (20_000.0, 16)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, "'llama' is no layout"),
        ({"vision_config": {}}, "images"),
        ({"inner_hidden_size": 16384}, "lacks max_sequence_length, vocab_size"),
        ({"pre_seq_len": -1}, "pre_seq_len"),
        ({"rmsnorm": False}, "rmsnorm"),
        ({"multi_query_attention": False}, "multi_query_attention"),
        ({"num_layers": None}, "lacks num_layers"),
        ({"rope_ratio": "much"}, "rope_ratio"),
    ],
)
def test_what_cannot_run_is_refused_by_name(raw, change, said):
    changed = {**raw("chatglm3"), **change}
    with pytest.raises(CheckpointError, match=said):
        recognise(changed).shape(changed)


def test_fused_parts_are_found_in_order():
    stems = HUB.sources("transformer.encoder.layers.17.self_attention.query_key_value")
    assert [stem.rsplit(".", 1)[1] for stem in stems] == ["q_proj", "k_proj", "v_proj"]
    assert all(stem.startswith("model.layers.17.") for stem in stems)


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)
HUB_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "rope_theta",
    "partial_rotary_factor",
    "hidden_act",
)
ORIGINAL_FIELDS = (
    "padded_vocab_size",
    "hidden_size",
    "ffn_hidden_size",
    "num_layers",
    "num_attention_heads",
    "kv_channels",
    "seq_length",
    "layernorm_epsilon",
    "rope_ratio",
    "multi_query_group_num",
)


@given(
    st.one_of(
        st.fixed_dictionaries(
            {"model_type": st.just(kind)}, optional=dict.fromkeys(fields, anything)
        )
        for kind, fields in (("glm", HUB_FIELDS), ("chatglm", ORIGINAL_FIELDS))
    )
)
def test_any_config_gives_a_shape_or_one_clear_error(raw_config):
    try:
        shape = recognise(raw_config).shape(raw_config)
    except CheckpointError:
        return
    assert isinstance(shape, GlmConfig)


GOOD = {
    "model_type": "glm",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


@pytest.mark.parametrize("size", [10**400, -(10**400), 10**15, 2**1024])
@pytest.mark.parametrize("field", [name for name, value in GOOD.items() if type(value) is int])
def test_sizes_too_long_for_a_float_are_named(field, size):
    raw = {**GOOD, field: size}
    with pytest.raises(CheckpointError, match="config.json"):
        recognise(raw).shape(raw)


@given(data=st.data())
def test_a_wrong_field_never_gives_a_traceback(data):
    field = data.draw(st.sampled_from(HUB_FIELDS))
    changed = {**GOOD, field: data.draw(anything)}
    try:
        assert isinstance(recognise(changed).shape(changed), GlmConfig)
    except CheckpointError:
        pass
