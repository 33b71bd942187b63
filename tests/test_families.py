"""Which family a folder belongs to: by its fields, by hints in their order, or as the user says."""

import json
import logging

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save_file

from glmkit import Config, Glmkit
from glmkit.errors import UnknownNameError, UsageError
from glmkit.models.chatglm import ChatGlmConfig
from glmkit.models.families import FAMILIES, HINTS, family_in
from glmkit.models.layouts import LAYOUTS, family_of, identify, recognise
from glmkit.models.shapes import doubts
from glmkit.models.tiny import random_tensors, raw_config, tiny_checkpoint, tiny_config
from glmkit.runtime.loading import load_local

NAMELESS = raw_config(tiny_config("chatglm2"), "chatglm2") | {"_name_or_path": ""}
CODE = "class ChatGLMTokenizer(PreTrainedTokenizer):\n    "


@pytest.fixture
def folder(tmp_path):
    """Return a folder that gives no hint."""
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("THUDM/chatglm2-6b-32k", "chatglm2"),
        ("zai-org/chatglm3-6b-base", "chatglm3"),
        ("/home/me/glm-4-9b-chat-1m", "glm4"),
        ("C:\\models\\ChatGLM3_6B", "chatglm3"),
        ("THUDM/codegeex4-all-9b", "glm4"),
        ("chatglm3-6b/checkpoint-100", "chatglm3"),
        ("chatglm2-to-chatglm3", None),
        ("./output", None),
        (None, None),
        (7, None),
    ],
)
def test_names_tell_families(name, family):
    assert family_in(name) == family


@pytest.mark.parametrize(
    ("files", "change", "family", "certain"),
    [
        ({}, {"_name_or_path": "THUDM/chatglm2-6b"}, "chatglm2", True),
        ({"glmkit.json": {"family": "chatglm2"}}, {}, "chatglm2", True),
        (
            {"glmkit.json": {"family": "chatglm2"}},
            {"_name_or_path": "THUDM/chatglm3-6b"},
            "chatglm2",
            True,
        ),
        ({"glmkit.json": {"family": "chatglm"}}, {"seq_length": 8192}, "chatglm3", False),
        ({}, {"padded_vocab_size": 151_552}, "glm4", True),
        ({}, {"eos_token_id": [151_329, 151_336]}, "glm4", True),
        ({}, {"eos_token_id": [2, 64_795, 64_797], "seq_length": 8192}, "chatglm3", False),
        ({}, {"layernorm_epsilon": 1.5625e-07}, "glm4", True),
        ({"tokenizer_config.json": {"tokenizer_class": "ChatGLM4Tokenizer"}}, {}, "glm4", True),
        ({"tokenizer_config.json": {"name_or_path": "THUDM/chatglm2-6b"}}, {}, "chatglm2", True),
        (
            {"tokenizer_config.json": {"added_tokens_decoder": {"7": "<|assistant|>"}}},
            {},
            "chatglm3",
            True,
        ),
        ({"tokenizer_config.json": {"chat_template": "[Round {{ n }}]"}}, {}, "chatglm2", True),
        ({"tokenizer_config.json": "damaged"}, {"seq_length": 32_768}, "chatglm2", False),
        ({"tokenization_chatglm.py": CODE}, {}, "chatglm2", True),
        ({"tokenization_chatglm.py": CODE + "'<|observation|>'"}, {}, "chatglm3", True),
        ({"tokenization_chatglm.py": "class ChatGLM4Tokenizer:"}, {}, "glm4", True),
        ({}, {"seq_length": 32_768}, "chatglm2", False),
        ({}, {"seq_length": 32_768, "rope_ratio": 50}, "chatglm3", False),
        ({}, {"seq_length": 32_768, "rope_ratio": 16}, "chatglm2", False),
        ({}, {"quantization_bit": 4}, "chatglm2", False),
        ({"model.safetensors": ""}, {}, "chatglm3", False),
        ({"pytorch_model.bin": ""}, {}, "chatglm2", False),
        ({}, {}, "chatglm3", False),
    ],
)
def test_hints_decide_between_generations(folder, files, change, family, certain):
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    found = identify(folder, NAMELESS | change)
    assert (found.family, found.certain) == (family, certain)
    assert found.why in {each.why for each in HINTS} | {"nothing says otherwise"}


def test_the_folders_name_is_a_hint(tmp_path):
    assert family_of(tmp_path / "chatglm2-6b", NAMELESS) == "chatglm2"
    cached = tmp_path / "models--THUDM--chatglm2-6b" / "snapshots" / "8fd7fba"
    assert family_of(cached, NAMELESS) == "chatglm2"


def test_hugging_face_layouts_have_families_too(folder):
    raw = raw_config(tiny_config("hub"), "hub")
    assert family_of(folder, raw) == "glm" and identify(folder, raw).certain
    assert family_of(folder, raw | {"vocab_size": 151_552}) == "glm4"
    assert family_of(folder, raw | {"model_type": "glm4"}) == "glm4-0414"
    whole = raw | {"rope_parameters": raw["rope_parameters"] | {"partial_rotary_factor": 1.0}}
    assert family_of(folder, whole) == "llama"
    assert family_of(folder, raw | {"_name_or_path": "THUDM/chatglm3-6b"}) == "chatglm3"


def test_the_user_has_the_last_word(folder):
    named = NAMELESS | {"_name_or_path": "THUDM/chatglm3-6b"}
    assert family_of(folder, named, "chatglm2") == "chatglm2"
    assert identify(folder, named, "chatglm2").why == "as you said"
    with pytest.raises(
        UsageError, match="of a glm4, chatglm2 or chatglm3 model; --family chatglm does not"
    ):
        family_of(folder, named, "chatglm")
    with pytest.raises(UnknownNameError, match="did you mean 'chatglm3'"):
        family_of(folder, named, "chatglm-3")


def test_every_family_has_a_layout():
    assert {family for each in LAYOUTS for family in each.families} == set(FAMILIES)


@given(
    st.dictionaries(
        st.sampled_from(sorted(NAMELESS)),
        st.one_of(st.none(), st.integers(), st.text(max_size=9), st.lists(st.integers())),
    )
)
def test_any_config_of_a_known_kind_has_a_family(change):
    raw = NAMELESS | change | {"model_type": "chatglm"}
    assert identify(None, raw).family in recognise(raw).families


def test_family_settles_what_rope_ratio_means(tmp_path):
    folder = tiny_checkpoint(tmp_path / "tiny", layout="chatglm2")
    raw = json.loads((folder / "config.json").read_text()) | {"rope_ratio": 4, "_name_or_path": ""}
    (folder / "config.json").write_text(json.dumps(raw))
    second = load_local(folder, family="chatglm2")
    third = load_local(folder, family="chatglm3")
    assert (second.family, second.config.position_scale) == ("chatglm2", 4.0)
    assert (third.config.position_scale, third.config.rope_theta) == (1.0, 40_000.0)
    ids = torch.tensor([[5, 60, 7, 80, 9]])
    assert not torch.allclose(second.logits(ids), third.logits(ids))


def test_a_guess_is_said(tmp_path, caplog):
    folder = tiny_checkpoint(tmp_path / "tiny", layout="chatglm3")
    with caplog.at_level(logging.WARNING):
        load_local(folder)
        assert caplog.text == ""
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | {"_name_or_path": ""}))
        load_local(folder)
    assert "taken for chatglm3" in caplog.text and "--family" in caplog.text


def test_configuration_names_the_family_of_its_model(tmp_path):
    folder = tiny_checkpoint(tmp_path / "tiny", layout="chatglm3")
    other = tiny_checkpoint(tmp_path / "other", layout="chatglm3")
    config = Config.load(
        environment={"GLMKIT_FAMILY": "chatglm2", "GLMKIT_MODEL": str(folder), "HOME": "/"}
    )
    app = Glmkit(config)
    assert app.load_model().family == "chatglm2"
    assert app.load_model(family="chatglm3").family == "chatglm3"
    assert app.load_model(str(other)).family == "chatglm3"


def test_a_lost_rope_ratio_is_doubted(tmp_path):
    raw = raw_config(tiny_config("hub"), "hub") | {"vocab_size": 151_552}
    raw |= {"max_position_embeddings": 131_072, "rope_theta": 10_000.0}
    raw.pop("rope_parameters")
    assert "5000000.0" in doubts(raw)[0]
    assert not doubts(raw | {"rope_theta": 5e6})
    assert not doubts(raw | {"max_position_embeddings": 8192}), "the base model is trained so"


# -------------------------------------------------------------- the first ChatGLM-6B checkpoints

FIRST = ChatGlmConfig(130_528, 16, 32, 2, 2, 64)


@pytest.fixture(scope="module")
def early(tmp_path_factory):
    """Return a model, and the same one behind 20,000 image tokens, as first published."""
    now, then = tmp_path_factory.mktemp("now"), tmp_path_factory.mktemp("then")
    tensors = random_tensors(FIRST)
    raw = raw_config(FIRST, "chatglm")
    save_file(tensors, now / "model.safetensors")
    (now / "config.json").write_text(json.dumps(raw))
    table = tensors["transformer.word_embeddings.weight"]
    tensors["transformer.word_embeddings.weight"] = torch.cat((torch.ones(20_000, 16), table))
    save_file(tensors, then / "model.safetensors")
    for name in ("mask_token_id", "gmask_token_id"):  # their code knew these by heart
        raw.pop(name)
    raw |= {"vocab_size": 150_528, "bos_token_id": 150_004, "eos_token_id": 150_005}
    (then / "config.json").write_text(json.dumps(raw))
    return load_local(now), load_local(then)


def test_image_tokens_only_shift_the_ids(early):
    now, then = early
    prompt = [5, 65, 70_000, 130_001, 130_004]
    shifted = [each + 20_000 for each in prompt]
    assert torch.equal(
        now.logits(torch.tensor([prompt])), then.logits(torch.tensor([shifted]))[..., 20_000:]
    )
    config = then.config
    assert (config.mask, config.gmask, config.bos) == (150_000, 150_001, 150_004)


def test_image_tokens_without_any_ids_in_the_config():
    raw = raw_config(FIRST, "chatglm") | {"vocab_size": 150_528}
    ids = ("bos_token_id", "mask_token_id", "gmask_token_id")
    bare = {key: value for key, value in raw.items() if key not in ids}
    config = recognise(bare).shape(bare)
    assert (config.mask, config.gmask, config.bos) == (150_000, 150_001, 150_004)


# ---------------------------------------------------------------------------------- GLM-4-0414


@pytest.mark.parametrize(("tied", "bias"), [(False, True), (True, False)])
def test_glm_4_0414_gives_the_logits_of_transformers(tmp_path, tied, bias):
    from transformers import Glm4Config, Glm4ForCausalLM

    torch.manual_seed(0)
    reference = Glm4ForCausalLM(
        Glm4Config(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=512,
            attention_bias=bias,
            tie_word_embeddings=tied,
            initializer_range=0.2,
            pad_token_id=0,
            eos_token_id=[2],
        )
    ).eval()
    for name, parameter in reference.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    reference.save_pretrained(tmp_path)
    model = load_local(tmp_path)
    assert model.family == "glm4-0414" and model.config.sandwich
    ids = torch.randint(3, 256, (2, 40))
    with torch.inference_mode():
        want = reference(ids).logits
    assert (model.logits(ids) - want).abs().max() <= 1e-4
    whole = [*ids[0].tolist(), *model.generate_ids(ids[0].tolist(), 8)]
    with torch.inference_mode():
        assert reference(torch.tensor([whole])).logits[0, 39:-1].argmax(-1).tolist() == whole[40:]
