"""The four vocabularies: held to the original tokenizers, and to themselves."""

from __future__ import annotations

import ast
import json
from functools import partial

import pytest
import tiny_vocabularies as tiny
import torch
from hypothesis import given, settings, strategies as st
from tiny_vocabularies import KINDS

from glmkit.errors import CheckpointError, UsageError
from glmkit.models.settling import Chain, replacing, whole
from glmkit.models.tokenizers import Detokenizer, Tokenizer
from glmkit.models.vocabularies import icetext

GENERATIONS = ("chatglm-6b", "chatglm2-6b", "chatglm3-6b", "glm-4-9b", "chatglm3-6b-late")


@pytest.fixture(scope="module")
def expected(shared_reference):
    return json.loads((shared_reference / "expected" / "prompts.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def published(shared_reference, tmp_path_factory):
    folders = {each: shared_reference / "tokenizers" / each for each in GENERATIONS}
    late, third = tmp_path_factory.mktemp("late"), folders["chatglm3-6b"]
    (late / "tokenizer.model").symlink_to(third / "tokenizer.model")
    (late / "tokenizer_config.json").symlink_to(third / "tokenizer_config.late.json")
    folders["chatglm3-6b-late"] = late
    return {each: Tokenizer.open(folder) for each, folder in folders.items()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return {
        kind: Tokenizer.open(write(tmp_path_factory.mktemp(kind))) for kind, write in KINDS.items()
    }


@pytest.mark.parametrize("generation", GENERATIONS)
def test_published_vocabularies_give_the_original_ids_and_text(expected, published, generation):
    tokenizer, cases = published[generation], expected[generation]["texts"]
    # ChatGLM3's first tokenizer parses role tokens only when told to: see below.
    parses = generation != "chatglm3-6b"
    for name, case in cases.items():
        ids = tokenizer.encode(case["text"], specials=parses)
        assert (name, ids) == (name, case["ids"])
        wrapped = tokenizer.wrap(ids)
        assert (name, wrapped) == (name, case["ids_with_special"])
        assert tokenizer.decode(ids, skip_special=False) == case["decode"]
        assert tokenizer.decode(wrapped, skip_special=False) == case["decode_with_special"]
        assert tokenizer.decode(wrapped) == case["decode_skip_special"]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_published_texts_stream_as_they_decode(expected, published, generation):
    tokenizer = published[generation]
    for case in expected[generation]["texts"].values():
        for ids in (case["ids"], case["ids_with_special"]):
            whole_text = tokenizer.decode(ids, skip_special=False)
            if "\ufffd" not in whole_text:
                assert "".join(streamed(tokenizer, ids)) == whole_text


@pytest.mark.parametrize("generation", GENERATIONS)
def test_published_batches_are_what_single_texts_are(expected, published, generation):
    tokenizer = published[generation]
    texts = [each["text"] for each in expected[generation]["texts"].values()]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(each) for each in texts]


@pytest.mark.parametrize("generation", GENERATIONS[:4])
def test_published_special_tokens_have_the_original_ids(expected, published, generation):
    tokenizer, case = published[generation], expected[generation]
    assert tokenizer.size == case["len"]
    found = {name: tokenizer.special(name) for name in case["special_ids"]}
    assert found == case["special_ids"]
    assert (tokenizer.eos_id, tokenizer.pad_id) == (case["eos"], case["pad"])


@pytest.mark.parametrize("generation", GENERATIONS[:4])
def test_published_ids_decode_as_the_original_does(expected, published, generation):
    case = expected[generation]
    for skip, table in ((False, "decode_ids"), (True, "decode_skip_special")):
        for ids, text in case.get(table, {}).items():
            decoded = published[generation].decode(ast.literal_eval(ids), skip_special=skip)
            assert (ids, decoded) == (ids, text)


@pytest.mark.parametrize("generation", GENERATIONS[:4])
def test_published_padding_has_the_original_masks_and_positions(expected, published, generation):
    tokenizer, case = published[generation], expected[generation]["batch_padding"]
    rows = [[each for each in row if each != tokenizer.pad_id] for row in case["input_ids"]]
    padded = tokenizer.pad(rows)
    for name, value in case.items():
        assert torch.equal(getattr(padded, name).long(), torch.tensor(value).long()), name
    assert (padded.attention_mask.dtype == torch.bool) == (generation == "chatglm-6b")


@pytest.mark.parametrize("generation", GENERATIONS[:2])
def test_published_training_rows_are_the_original_ones(expected, published, generation):
    case = expected[generation]["sft_pair"]
    assert published[generation].wrap(case["a_ids"], case["b_ids"]) == case["pair"]
    assert published[generation].wrap(case["a_ids"]) == case["single"]


def test_chatglm3_parses_role_tokens_on_request_only(expected, published):
    for case in expected["chatglm3-6b"]["texts_encode_special_tokens"].values():
        assert published["chatglm3-6b"].encode(case["text"], specials=True) == case["ids"]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_no_published_vocabulary_lets_text_forge_a_special_token(expected, published, generation):
    tokenizer = published[generation]
    harmless = set(icetext.SPACES)
    for name, number in tokenizer.specials.items():
        ids = tokenizer.encode(f"a{name}b {name}")
        assert number not in ids or name in harmless


@pytest.mark.parametrize("generation", GENERATIONS)
def test_published_tokens_spell_texts(published, generation):
    tokenizer = published[generation]
    for text in ('{"名字": "张三😀", "n": [1, 2.5]}', "def f():\n    return 1\t", "naïve — “q”"):
        spelt = b"".join(tokenizer.spelling(each) or b"" for each in tokenizer.encode(text))
        assert spelt == f"{tokenizer.lead}{text}".encode()
    steering = [each for name, each in tokenizer.specials.items() if "blank" not in name]
    assert not any(map(tokenizer.spelling, set(steering) - _spaces(tokenizer)))


def _spaces(tokenizer):
    return {tokenizer.special(each) for each in ("<n>", "<|tab|>")}


def test_the_earliest_vocabulary_begins_with_images(shared_reference, tmp_path):
    folder = tmp_path / "early"
    folder.mkdir()
    source = shared_reference / "tokenizers" / "chatglm-6b" / "ice_text.model"
    (folder / "ice_text.model").symlink_to(source)
    config = {"model_type": "chatglm", "vocab_size": 150_528, "bos_token_id": 150_004}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.open(folder)
    assert tokenizer.wrap(tokenizer.encode("你好")) == [20_005, 94_874, 150_001, 150_004]
    assert tokenizer.decode([20_005, 94_874, 7]) == "你好<image_7>"
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.size) == (20_003, 150_005, 150_344)
    config["bos_token_id"] = 130_004
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="mixes two models"):
        Tokenizer.open(folder)


def test_another_vocabulary_of_the_same_size_is_told_apart(monkeypatch, tmp_path):
    from glmkit.models.vocabularies import opening

    folder = tiny.write_pieces(tmp_path / "model")
    pieces = Tokenizer.open(folder).size - 9
    monkeypatch.setattr(opening, "_PUBLISHED_SIZE", pieces)
    monkeypatch.setattr(opening, "_PUBLISHED", {300: "no such piece"})
    with pytest.raises(CheckpointError, match="other pieces .CodeGeeX2"):
        Tokenizer.open(folder)
    (folder / "tokenizer_config.json").write_text('{"name_or_path": "THUDM/codegeex2-6b"}')
    assert Tokenizer.open(folder, family="chatglm2").size == pieces + 5


def test_the_published_pieces_are_what_we_check_for(published):
    from glmkit.models.vocabularies import opening

    for generation in ("chatglm2-6b", "chatglm3-6b"):
        found = {each: published[generation].token(each) for each in opening._PUBLISHED}
        assert found == opening._PUBLISHED


def streamed(tokenizer, ids, skip_special=False):
    detokenizer = Detokenizer(tokenizer, skip_special=skip_special)
    return [*(detokenizer.push(each) for each in ids), detokenizer.finish()]


TEXTS = [
    "Hello , world ! It 's",
    "你好，世界😀",
    "a\n\n  b\tc" + " " * 85 + "d",
    "",
    " ",
    "\n",
    "é<n>",
]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_encodes_decodes_and_streams(small, kind):
    tokenizer = small[kind]
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(each) for each in TEXTS]
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert max(ids, default=0) < tokenizer.size
        decoded = tokenizer.decode(ids)
        assert "".join(streamed(tokenizer, ids, True)) == decoded
        if kind != "chatglm":
            assert decoded == text
    assert tokenizer.token(tokenizer.size - 1) in tokenizer.specials or kind == "chatglm"
    with pytest.raises(IndexError):
        tokenizer.token(tokenizer.size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["\ud83d", "hello \udcff", "<|user|>\udfff", "\ude00\ud83d"])
def test_no_kind_takes_half_a_character(small, kind, text):
    tokenizer = small[kind]
    for encode in (tokenizer.encode, partial(tokenizer.encode, specials=True)):
        with pytest.raises(UsageError, match="no valid Unicode"):
            encode(text)
    with pytest.raises(UsageError, match="no valid Unicode"):
        tokenizer.encode_batch(["good", text])


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_lets_text_forge_a_special_token(small, kind):
    tokenizer = small[kind]
    text = "".join(tokenizer.specials)
    forged = set(tokenizer.encode(text)) & set(tokenizer.specials.values())
    assert forged <= {tokenizer.special(each) for each in icetext.SPACES}
    assert (
        set(tokenizer.encode(text, specials=True))
        & {tokenizer.special(each) for each in ("<|user|>", "<sop>")}
        or kind == "chatglm2"
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(data=st.data())
def test_any_tokens_stream_as_they_decode(small, kind, data):
    tokenizer = small[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=12))
    skip = data.draw(st.booleans())
    pieces = streamed(tokenizer, ids, skip)
    raw = tokenizer.raw(ids, skip_special=skip)
    assert "".join(pieces) == whole(raw.rstrip("\ufffd"), tokenizer.stages())


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_character_is_never_shown(small, kind):
    tokenizer = small[kind]
    ids = tokenizer.encode("a😀")
    pieces = streamed(tokenizer, ids[:-1])
    assert "".join(pieces) == "a"
    assert streamed(tokenizer, ids)[-2:] == ["😀", ""]


@given(text=st.text(alphabet="a ,.'nvertsm!?你", max_size=24), cuts=st.lists(st.integers(0, 24)))
def test_closing_up_does_not_depend_on_how_text_arrives(text, cuts):
    stages = [icetext.Settling(icetext._closed_up, icetext._MAY_CLOSE_UP)]
    assert whole(text, stages) == icetext._closed_up(text)
    chain = Chain(icetext.Settling(icetext._closed_up, icetext._MAY_CLOSE_UP))
    borders = [0, *sorted(min(each, len(text)) for each in cuts), len(text)]
    parts = [chain.push(text[a:b]) for a, b in zip(borders, borders[1:], strict=False)]
    assert "".join(parts) + chain.finish() == icetext._closed_up(text)


@given(text=st.text(alphabet="ab", max_size=20))
def test_replacing_does_not_depend_on_how_text_arrives(text):
    chain = Chain(replacing("aab", "X"))
    assert "".join(map(chain.push, text)) + chain.finish() == text.replace("aab", "X")


def test_rows_without_sop_see_all_of_themselves(small):
    tokenizer = small["chatglm"]
    padded = tokenizer.pad([[407, 408, 409], [407]])
    assert not padded.attention_mask[0].any()
    assert padded.position_ids[0].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert padded.input_ids[1].tolist() == [tokenizer.pad_id] * 2 + [407]


def test_vocabularies_of_other_generations_are_refused(tmp_path):
    folder = tiny.write_pieces(tmp_path / "model")
    (folder / "tokenizer.model").write_bytes(tiny.ice_text_model())
    with pytest.raises(CheckpointError, match="ice_text.model under another name"):
        Tokenizer.open(folder)
    (folder / "ice_text.model").write_bytes(tiny.pieces_model())
    with pytest.raises(CheckpointError, match="not ChatGLM-6B's vocabulary"):
        Tokenizer.open(folder)
    (folder / "ice_text.model").unlink()
    with pytest.raises(CheckpointError, match="holds no ice_text.model"):
        Tokenizer.open(folder, family="chatglm")
    with pytest.raises(CheckpointError, match="has .* tokens, the model 100; tokenizer.model"):
        Tokenizer.open(tiny.write_pieces(tmp_path / "small"), vocab_size=100)
    with pytest.raises(CheckpointError, match="cut short or belongs to another model"):
        Tokenizer.open(tmp_path / "small", vocab_size=65_024)


@pytest.mark.parametrize("added", [{"x": {"content": "a"}}, {"1": {}}, [1], {"1": 2}])
def test_damaged_settings_are_refused(tmp_path, added):
    folder = tiny.write_ranks(tmp_path / "model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(CheckpointError, match="tokenizer_config.json"):
        Tokenizer.open(folder)


def test_described_vocabularies_tell_what_the_original_ones_do(tmp_path):
    names = {"[gMASK]": True, "<sop>": True, "<|user|>": False, "<think>": False}
    tokenizer = Tokenizer.open(tiny.write_described(tmp_path, **names))
    assert (tokenizer.size, tokenizer.eos_id, tokenizer.pad_id) == (262, 1, 0)
    assert tokenizer.prefix == (258, 259) == tuple(map(tokenizer.special, ("[gMASK]", "sop")))
    assert (tokenizer.special("<eos>"), tokenizer.special("<pad>")) == (1, 0)
    # Role tokens steer, whatever the file calls them: users cannot write them, originals can.
    user = tokenizer.special("<|user|>")
    assert user not in tokenizer.encode("a<|user|>")
    assert user in tokenizer.encode("a<|user|>", specials=True)
    assert tokenizer.token(user) == "<|user|>"
    assert tokenizer.decode([user, *tokenizer.encode("a<think>")]) == "a<think>"
    assert tokenizer.decode([user], skip_special=False) == "<|user|>"
    with pytest.raises(IndexError):
        tokenizer.token(262)


def test_the_vocabulary_a_model_was_published_with_wins(tmp_path):
    both = tiny.write_described(tiny.write_ranks(tmp_path / "both"))
    tiny.write_ranks(both)
    assert type(Tokenizer.open(both)).__name__ == "Ranks"
    # Of other families nothing is known about a tokenizer.model.
    assert type(Tokenizer.open(both, family="llama")).__name__ == "Described"


def test_a_folder_without_a_vocabulary_has_none(tmp_path):
    assert Tokenizer.open(tmp_path) is None
