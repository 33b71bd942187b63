"""Vocabularies as tokenizer.json: the ids of the originals, through transformers too."""

import base64
import io
import json
import shutil

import pytest
import sentencepiece
import tiktoken
from hypothesis import given, settings, strategies as st

import glmkit
from glmkit.console import drain
from glmkit.errors import CheckpointError
from glmkit.models import fast
from glmkit.models.tiny import tiny_checkpoint
from glmkit.models.tokenizers import Tokenizer
from glmkit.models.vocabularies import Pieces, Ranks
from glmkit.runtime.convert import convert

pytestmark = pytest.mark.usefixtures("one_thread")

ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
TEXTS = st.one_of(
    st.text(),
    st.text(alphabet=" \n\t▁aab=-.0你好é'S"),
    st.lists(st.sampled_from(["  ", "aaaa", "the ", "----", "你好", "\n\n", "'ll"])).map("".join),
)
SAID = (
    "the thermometer in there: ----====---- \n\n    def f(aaaa, aaab): return 12 + 34\n"
    "你好你好，你们好吗？ 我们的 the other thing's there, isn't it? We'll see.    aaaaaaaa\n"
)


def trained(size, path):
    """Train a vocabulary as ChatGLM2's is built: byte pairs, byte fallback, no normalisation."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SAID.splitlines() * 3),
        model_writer=model,
        vocab_size=size,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        pad_id=-1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path


def ranked(path, count=40):
    """Write ranks as GLM-4-9B's are written: bytes, then pairs merged in order."""
    pieces = [bytes([each]) for each in range(256)]
    row = [bytes([each]) for each in SAID.encode()]
    while len(pieces) < 256 + count:
        pairs = [left + right for left, right in zip(row, row[1:], strict=False)]
        best = max(sorted(set(pairs)), key=pairs.count)
        pieces.append(best)
        at = 0
        while at < len(row) - 1:
            if row[at] + row[at + 1] == best:
                row[at : at + 2] = [best]
            at += 1
    lines = (b"%s %d\n" % (base64.b64encode(each), at) for at, each in enumerate(pieces))
    path.write_bytes(b"".join(lines))
    return path


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    file = trained(360, tmp_path_factory.mktemp("pieces") / "tokenizer.model")
    original = sentencepiece.SentencePieceProcessor(model_file=str(file))
    names = {name: 360 + at for at, name in enumerate(("[MASK]", "[gMASK]", "[sMASK]", "sop"))}
    made = fast.from_pieces(file, names)
    made.encode_special_tokens = True
    return original, made


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    file = ranked(tmp_path_factory.mktemp("ranks") / "tokenizer.model", 90)
    table = {
        base64.b64decode(x): int(y) for x, y in map(bytes.split, file.read_bytes().splitlines())
    }
    names = ("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>")
    made = fast.from_ranks(file, {name: len(table) + at for at, name in enumerate(names)})
    made.encode_special_tokens = True
    original = tiktoken.Encoding(
        "glm4", pat_str=fast._WORDS, mergeable_ranks=table, special_tokens={}
    )
    return file, original, made


@settings(deadline=None, max_examples=300)
@given(text=TEXTS)
def test_pieces_encode_and_decode_as_sentencepiece_does(pieces, text):
    original, made = pieces
    ids = original.encode(text)
    assert made.encode(text, add_special_tokens=False).ids == ids
    assert made.decode(ids) == original.decode(ids)


@settings(deadline=None, max_examples=300)
@given(text=TEXTS)
def test_ranks_encode_and_decode_as_tiktoken_does(ranks, text):
    _, original, made = ranks
    ids = original.encode_ordinary(text)
    assert made.encode(text, add_special_tokens=False).ids == ids
    assert made.decode(ids) == original.decode(ids)


def test_the_ranks_come_back_as_they_were(ranks):
    file, _, made = ranks
    assert fast.to_ranks(made) == file.read_bytes()


def test_each_stretch_between_special_tokens_begins_with_its_own_space(pieces):
    original, made = pieces
    made.encode_special_tokens = False
    ids = made.encode("[MASK]the[MASK] there", add_special_tokens=False).ids
    made.encode_special_tokens = True
    mask = made.token_to_id("[MASK]")
    assert ids == [mask, *original.encode("the"), mask, *original.encode(" there")]


def original_folder(folder, layout):
    tiny_checkpoint(folder, layout=layout, vocabulary=False)
    if layout == "glm4-9b":
        ranked(folder / "tokenizer.model")
    else:
        trained(300, folder / "tokenizer.model")
    said = {"tokenizer_class": "ChatGLMTokenizer", "padding_side": "left", "remove_space": False}
    if layout == "glm4-9b":
        said["tokenizer_class"] = "ChatGLM4Tokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def converted(source, target, to):
    return drain(convert(source, target, to=to))


TALK = [
    {"role": "user", "content": "你好 there"},
    {"role": "assistant", "content": " the thing\n"},
    {"role": "user", "content": "We'll see"},
]


@pytest.mark.parametrize("layout", ["chatglm2", "chatglm3", "glm4-9b"])
def test_transformers_reads_what_the_original_encodes(tmp_path, layout):
    from transformers import AutoTokenizer

    source = original_folder(tmp_path / "source", layout)
    hub = converted(source, tmp_path / "hub", "hf")
    original = Tokenizer.open(source)
    assert isinstance(original, Ranks if layout == "glm4-9b" else Pieces)
    tokenizer = AutoTokenizer.from_pretrained(hub.path)
    text = "the other  thing\n\t你好 👩‍👩‍👧"
    assert tokenizer(text)["input_ids"] == [*original.prefix, *original.encode(text)]
    assert tokenizer.decode(original.encode(text)) == text
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (original.pad_id, original.eos_id)
    padded = tokenizer([text, "the"], padding=True)
    assert padded["attention_mask"][1][0] == 0 and tokenizer.padding_side == "left"
    assert bool(hub.notes) == (layout != "glm4-9b")
    ids = tokenizer.apply_chat_template(TALK, add_generation_prompt=True)["input_ids"]
    assert ids[:2] == list(original.prefix)
    if layout != "chatglm2":
        wanted = list(original.prefix)
        for each in TALK:
            wanted.append(original.special(f"<|{each['role']}|>"))
            body = (
                original.encode("\n" + each["content"])
                if layout == "glm4-9b"
                else [*original.encode("\n"), *original.encode(each["content"])]
            )
            wanted += body
        assert ids == [*wanted, original.special("<|assistant|>")]
    back = converted(hub.path, tmp_path / "back", "original").path
    for file in ("tokenizer.model", "tokenizer_config.json", "config.json"):
        assert (back / file).read_bytes() == (source / file).read_bytes()
    assert not (back / "tokenizer.json").exists()


@pytest.mark.parametrize("layout", ["chatglm3", "glm4-9b"])
def test_tools_are_written_alike_by_both_engines(tmp_path, layout):
    hub = converted(original_folder(tmp_path / "source", layout), tmp_path / "hub", "hf").path
    native, foreign = glmkit.load(hub), glmkit.load(hub, engine="transformers")
    tool = {"name": "look", "description": "看 in", "parameters": {"type": "object"}}
    talk = [
        glmkit.Message("system", "", tools=({"type": "function", "function": tool},)),
        glmkit.Message("user", "How deep?"),
        glmkit.Message(
            "assistant",
            "Let me see.",
            tool_calls=(glmkit.ToolCall("look", {"at": "lake", "n": 2}),),
        ),
        glmkit.Message("observation", "9 m"),
        glmkit.Message("user", "And there?"),
    ]
    options = glmkit.GenerationOptions(max_tokens=1)
    short = [talk[1], *talk[3:]]
    for each in (short, talk):
        # The tiny context drops the oldest turns of both alike, or refuses both.
        wanted = native._renderer.render(each, room=10_000).ids
        assert foreign._renderer.render(each, room=10_000).ids == wanted
    assert native._answer(short, options).row.prompt == foreign._answer(short, options).row.prompt


def test_ranks_are_rebuilt_from_a_foreign_tokenizer_json(tmp_path):
    source = original_folder(tmp_path / "source", "glm4-9b")
    hub = converted(source, tmp_path / "hub", "hf").path
    shutil.rmtree(hub / "original")
    (hub / "tokenizer.model").unlink()
    back = converted(hub, tmp_path / "back", "original")
    assert not back.notes
    wanted = (source / "tokenizer.model").read_bytes()
    assert (back.path / "tokenizer.model").read_bytes() == wanted
    assert Tokenizer.open(back.path).specials == Tokenizer.open(source).specials


@pytest.mark.parametrize("layout", ["chatglm2", "chatglm3", "glm4-9b"])
def test_glmkit_encodes_alike_from_both_folders(tmp_path, layout):
    source = original_folder(tmp_path / "source", layout)
    hub = converted(source, tmp_path / "hub", "hf").path
    text = "the other  thing\n\t你好<|user|>"
    wanted = Tokenizer.open(source).encode(text)
    assert Tokenizer.open(hub).encode(text) == wanted
    assert glmkit.load(hub).tokenizer.encode(text) == wanted


@pytest.mark.parametrize("layout", ["chatglm2", "chatglm3", "glm4-9b"])
def test_what_transformers_saves_again_still_chats_alike(tmp_path, layout):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hub = converted(original_folder(tmp_path / "source", layout), tmp_path / "hub", "hf").path
    saved = tmp_path / f"{layout}-again"
    AutoModelForCausalLM.from_pretrained(hub).save_pretrained(saved)
    AutoTokenizer.from_pretrained(hub).save_pretrained(saved)
    assert not (saved / "tokenizer.model").exists()
    family = {"glm4-9b": "glm4"}.get(layout, layout)
    native, again = glmkit.load(hub), glmkit.load(saved, family=family)
    talk = [glmkit.Message(each["role"], each["content"]) for each in TALK]
    wanted = native._renderer.render(talk, room=10_000).ids
    assert again._renderer.render(talk, room=10_000).ids == wanted
    assert again.settings.stop_ids == native.settings.stop_ids


def test_a_folder_without_vocabulary_is_converted_and_says_so(tmp_path):
    source = tiny_checkpoint(tmp_path / "source", layout="chatglm3", vocabulary=False)
    hub = converted(source, tmp_path / "hub", "hf")
    assert "no vocabulary" in hub.notes[0]
    assert "no vocabulary" in converted(hub.path, tmp_path / "back", "original").notes[0]


def test_a_vocabulary_in_hugging_faces_format_goes_along(tmp_path):
    source = tiny_checkpoint(tmp_path / "source", layout="chatglm3")
    hub = converted(source, tmp_path / "hub", "hf").path
    back = converted(hub, tmp_path / "back", "original")
    wanted = (source / "tokenizer.json").read_bytes()
    assert (hub / "tokenizer.json").read_bytes() == wanted
    assert (back.path / "tokenizer.json").read_bytes() == wanted
    assert "no tokenizer.model" in back.notes[0]


def test_a_damaged_vocabulary_is_one_clear_line_and_leaves_nothing(tmp_path):
    source = tiny_checkpoint(tmp_path / "source", layout="chatglm3", vocabulary=False)
    (source / "tokenizer.model").write_bytes(b"\x00\x01not a model")
    with pytest.raises(CheckpointError, match="tokenizer.model"):
        converted(source, tmp_path / "hub", "hf")
    assert [each.name for each in tmp_path.iterdir()] == ["source"]


REFERENCE = (
    ("chatglm2-6b", "chatglm3-6b-realvocab-tiny"),
    ("chatglm3-6b", "chatglm3-6b-realvocab-tiny"),
    ("glm-4-9b", "glm-4-9b-realvocab-tiny"),
)


@pytest.fixture(scope="module", params=REFERENCE, ids=lambda each: each[0])
def published(request, tmp_path_factory, shared_reference):
    """Return a converted folder with a published vocabulary, and what the original gives."""
    from transformers import AutoTokenizer

    name, checkpoint = request.param
    source = tmp_path_factory.mktemp(name) / name
    shutil.copytree(shared_reference / "checkpoints" / checkpoint, source)
    source.chmod(0o755)
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(shared_reference / "tokenizers" / name / file, source / file)
    raw = json.loads((source / "config.json").read_text()) | {"_name_or_path": f"THUDM/{name}"}
    (source / "config.json").chmod(0o644)
    (source / "config.json").write_text(json.dumps(raw))
    hub = converted(source, source.with_name("hub"), "hf").path
    cases = json.loads((shared_reference / "expected" / "prompts.json").read_text())[name]
    return name, source, AutoTokenizer.from_pretrained(hub), cases


def test_every_text_gets_the_ids_of_the_original(published):
    name, _, tokenizer, cases = published
    for label, case in cases["texts"].items():
        if name != "glm-4-9b" and label.startswith("special"):
            # These name special tokens, which the original takes for text.
            ids = tokenizer(case["text"], add_special_tokens=False, split_special_tokens=True)
            assert ids["input_ids"] == case["ids"], label
        else:
            assert tokenizer(case["text"])["input_ids"] == case["ids_with_special"], label
        if not label.startswith("special"):
            assert tokenizer.decode(case["ids"]) == case["decode"], label


def test_every_chat_gets_the_ids_of_the_original(published):
    name, _, tokenizer, cases = published
    for label, case in cases["chat"].items():
        messages = case.get("messages") or [
            *(
                {"role": role, "content": text}
                for turn in case["history"]
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ),
            {"role": "user", "content": case["query"]},
        ]
        if name == "chatglm3-6b" and label == "special_in_text":
            continue  # the original takes them for text, a template cannot
        got = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        if "prompt_transformers_5_23" in case:
            wanted = tokenizer(case["prompt_transformers_5_23"], add_special_tokens=False)
            assert got == wanted["input_ids"], label
        else:
            assert got == case["input_ids"][0], label


def test_the_published_vocabularies_hold_on_any_text(published):
    _, source, tokenizer, _ = published
    original = Tokenizer.open(source)
    inner = tokenizer.backend_tokenizer

    @settings(deadline=None, max_examples=200, database=None)
    @given(text=TEXTS)
    def holds(text):
        inner.encode_special_tokens = True
        assert inner.encode(text, add_special_tokens=False).ids == original.encode(text)

    holds()


def test_both_engines_answer_alike_from_the_converted_folder(published):
    _, source, _, _ = published
    hub = source.with_name("hub")
    native = glmkit.load(hub, dtype="float32")
    foreign = glmkit.load(hub, dtype="float32", engine="transformers")
    options = glmkit.GenerationOptions(max_tokens=16, temperature=0)
    talk = [{"role": "user", "content": "你好"}]
    asked = [
        talk,
        [*talk, {"role": "assistant", "content": "你好！"}, {"role": "user", "content": "1 + 1?"}],
    ]
    wanted = list(native.batch(asked, options))
    assert list(foreign.batch(asked, options)) == wanted
    assert native.reply(talk, options) == glmkit.load(source, dtype="float32").reply(talk, options)
