"""Tokenizers, chat() and stream_chat() of the original scripts, through transformers."""

import json
import runpy
from pathlib import Path

import pytest
import torch
import transformers
from tiny_vocabularies import write_ice_text, write_pieces, write_ranks
from transformers import AutoConfig, AutoModel, AutoTokenizer

from glmkit.errors import CheckpointError, UsageError
from glmkit.models.tiny import tiny_checkpoint

PAIRS = ("chatglm", "chatglm2")
SHARED = {
    "chatglm": ("chatglm-6b", "chatglm-6b-realvocab-tiny", "chatglm-6b-realvocab-tiny"),
    "chatglm2": (
        "chatglm2-6b",
        "chatglm3-6b-realvocab-tiny",
        "chatglm2-6b-chat-on-chatglm3-realvocab",
    ),
    "chatglm3": ("chatglm3-6b", "chatglm3-6b-realvocab-tiny", "chatglm3-6b-realvocab-tiny"),
    "glm4": ("glm-4-9b", "glm-4-9b-realvocab-tiny", "glm-4-9b-realvocab-tiny"),
}
"""Family -> its vocabulary, a checkpoint that it fits, and what was recorded with both."""

SCRIPT = """
import glmkit.hf; glmkit.hf.register()
from transformers import AutoTokenizer, AutoModel

tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
model = AutoModel.from_pretrained(path, trust_remote_code=True).float().eval()
response, history = model.chat(tokenizer, "你好", history=[], do_sample=False, max_new_tokens=24)
again, longer = model.chat(tokenizer, "再说一遍", history=history, max_new_tokens=4, top_p=0.7,
                           temperature=0.95)
for shown, kept in model.stream_chat(tokenizer, "你好", history=[], do_sample=False,
                                     max_new_tokens=24):
    pass
"""


pytestmark = pytest.mark.usefixtures("registered")


class Talker:
    """A folder with its model and its tokenizer."""

    def __init__(self, folder: Path, family: str) -> None:
        self.folder, self.family = folder, family
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).float().eval()

    def chat(self, query: str, history: list | None = None, **options):
        options = {"do_sample": False, "max_new_tokens": 12, **options}
        return self.model.chat(self.tokenizer, query, history=history, **options)

    def stream(self, query: str, history: list | None = None, **options):
        options = {"do_sample": False, "max_new_tokens": 12, **options}
        return self.model.stream_chat(self.tokenizer, query, history=history, **options)


def written(folder: Path, family: str) -> Path:
    """Write a tiny model with a tiny vocabulary of its family's kind."""
    layout = "glm4-9b" if family == "glm4" else family
    base = tiny_checkpoint(folder / "base", layout=layout, vocabulary=False)
    words = folder / "words"
    words.mkdir()
    write = {"chatglm": write_ice_text, "glm4": write_ranks}.get(family, write_pieces)
    write(words, **({"name": f"{family}-6b"} if write is write_pieces else {}))
    tokenizer = AutoTokenizer.from_pretrained(words, config=AutoConfig.from_pretrained(base))
    config = AutoConfig.from_pretrained(base)
    config.vocab_size = tokenizer.vocab_size
    if family == "chatglm":
        for name, token in (("bos", "<sop>"), ("mask", "[MASK]"), ("gmask", "[gMASK]")):
            setattr(config, f"{name}_token_id", tokenizer.get_command(token))
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for each in model.parameters():
            if each.dim() == 2:
                each.mul_(8)
    model.save_pretrained(folder / "whole")
    tokenizer.save_pretrained(folder / "whole")
    return folder / "whole"


@pytest.fixture(scope="module", params=SHARED)
def talker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Talker:
    return Talker(written(tmp_path_factory.mktemp("talker"), request.param), request.param)


def joined(folder: Path, root: Path, family: str) -> Path:
    """Link a recorded checkpoint and the vocabulary that was used with it into one folder."""
    vocabulary, checkpoint, _ = SHARED[family]
    folder.mkdir(exist_ok=True)
    raw = json.loads((root / "checkpoints" / checkpoint / "config.json").read_text())
    raw["_name_or_path"] = f"THUDM/{vocabulary}"
    (folder / "config.json").write_text(json.dumps(raw))
    for source in ("tokenizers", "checkpoints"):
        name = vocabulary if source == "tokenizers" else checkpoint
        for file in (root / source / name).iterdir():
            if file.name != "config.json" and "late" not in file.name:
                (folder / file.name).symlink_to(file)
    return folder


@pytest.fixture(scope="module", params=SHARED)
def recorded(
    request: pytest.FixtureRequest,
    shared_reference: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Talker:
    folder = joined(tmp_path_factory.mktemp("recorded"), shared_reference, request.param)
    return Talker(folder, request.param)


@pytest.fixture
def expected(recorded: Talker, shared_reference: Path) -> dict:
    name = SHARED[recorded.family][2]
    return json.loads((shared_reference / "expected" / f"{name}.json").read_text())


@pytest.fixture
def texts(recorded: Talker, shared_reference: Path) -> dict:
    everything = json.loads((shared_reference / "expected" / "prompts.json").read_text())
    return everything[SHARED[recorded.family][0]]


def plain(history: list) -> list:
    return [list(each) if isinstance(each, tuple) else each for each in history]


def test_ids_and_texts_are_those_of_the_original_tokenizer(recorded: Talker, texts: dict):
    tokenizer = recorded.tokenizer
    for name, case in texts["texts"].items():
        assert tokenizer(case["text"])["input_ids"] == case["ids_with_special"], name
        assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids"], name
        assert tokenizer.decode(case["ids"]) == case["decode"], name
        bare = tokenizer.decode(case["ids_with_special"], skip_special_tokens=True)
        assert bare == case.get("decode_skip_special", bare), name
        if recorded.family != "glm4":  # its tokens were recorded as bytes
            assert tokenizer.tokenize(case["text"]) == case["tokens"], name
    assert len(tokenizer) == texts["len"]
    assert tokenizer.pad_token_id == texts["pad"]
    assert tokenizer.eos_token_id == texts["eos"]
    rows = [case["text"] for case in texts["texts"].values()]
    together = tokenizer(rows)["input_ids"]
    assert together == [case["ids_with_special"] for case in texts["texts"].values()]


def test_batches_are_padded_as_the_original_does(recorded: Talker, texts: dict):
    wanted = texts["batch_padding"]
    rows = [
        [each for each, real in zip(row, _real(row, texts["pad"]), strict=True) if real]
        for row in wanted["input_ids"]
    ]
    padded = recorded.tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    assert padded["input_ids"].tolist() == wanted["input_ids"]
    if recorded.family == "chatglm":
        start = recorded.model.plain.start(padded["input_ids"], padded["attention_mask"])
        assert start.positions.tolist() == wanted["position_ids"]
        hidden = torch.tensor(wanted["attention_mask"]).bool()
        real = padded["attention_mask"].bool()[:, None, :, None].expand_as(hidden)
        assert torch.equal(start.mask[real], ~hidden[real])
    else:
        assert padded["attention_mask"].tolist() == wanted["attention_mask"]
        assert padded["position_ids"].tolist() == wanted["position_ids"]


def _real(row: list[int], pad: int) -> list[bool]:
    first = next(at for at, each in enumerate(row) if each != pad)
    return [at >= first for at in range(len(row))]


def test_prompts_are_those_of_the_original_builders(recorded: Talker, texts: dict):
    tokenizer = recorded.tokenizer
    for name, case in texts["chat"].items():
        if recorded.family in PAIRS:
            prompt = tokenizer.build_prompt(case["query"], case["history"])
            assert [tokenizer(prompt)["input_ids"]] == case["input_ids"], name
            assert prompt == case.get("prompt", prompt)
            continue
        if recorded.family == "glm4" and name == "special_in_text":
            continue  # the original reads role tokens in what a user typed
        wanted = case.get("input_ids_transformers_5_23", case["input_ids"])
        wanted = wanted if isinstance(wanted[0], list) else [wanted]
        *before, last = case["messages"]
        built = tokenizer.build_chat_input(last["content"], before, role=last["role"])
        assert built["input_ids"].tolist() == wanted, name
        templated = tokenizer.apply_chat_template(
            case["messages"], add_generation_prompt=True, return_tensors="pt"
        )
        assert templated["input_ids"].tolist() == wanted, name


def test_answers_and_histories_are_the_originals(recorded: Talker, expected: dict):
    for name, case in expected["chat"].items():
        if recorded.family == "glm4" and name == "tools":
            continue  # its prompt was rendered with keys sorted, as transformers 4.41 did
        asking = {"role": case["role"]} if case.get("role") else {}
        answer, history = recorded.chat(
            case["query"], case["history_in"], max_new_tokens=24, **asking
        )
        cut = recorded.family in ("chatglm3", "glm4") and len(case["new_ids"]) == 24
        if not cut:
            assert answer == case["response"], name
            assert plain(history) == case["history_out"], name
            continue
        # The original drops the last token whatever it is: it takes it for a stop token.
        shorter, _ = recorded.chat(case["query"], case["history_in"], max_new_tokens=23, **asking)
        assert shorter == case["response"], name
        assert answer != case["response"], name


def test_streams_are_the_originals(recorded: Talker, expected: dict):
    for name, case in expected["stream_chat"].items():
        asked = expected["chat"][name]
        if recorded.family == "glm4" and name == "tools":
            continue
        asking = {"role": asked["role"]} if asked.get("role") else {}
        answers = recorded.stream(asked["query"], asked["history_in"], max_new_tokens=24, **asking)
        shown = [each for each, _ in answers]
        # The original of generation 1 shows halves of characters, too.
        wanted = [each for each in case["responses"] if not str(each).endswith("\ufffd")]
        assert shown[: len(wanted)] == wanted, name
        assert len(shown) - len(wanted) <= 1, name  # the last token, which originals may drop


def test_a_kept_cache_goes_on_as_the_original_does(recorded: Talker, expected: dict):
    if "stream_chat_past_key_values" not in expected:
        pytest.skip("recorded for ChatGLM2 alone")
    case = expected["stream_chat_past_key_values"]
    history, cache = [], None
    for turn in case["turns"]:
        going_on = recorded.stream(
            turn["query"],
            history,
            past_key_values=cache,
            max_new_tokens=16,
            return_past_key_values=True,
        )
        *_, (answer, history, cache) = going_on
        assert answer == turn["response"]
        assert cache.get_seq_length() == turn["cache_length"]
    assert plain(history) == case["history"]


def test_batches_generate_as_the_original_does(recorded: Talker, expected: dict):
    if "batch_generate" not in expected:
        pytest.skip("not recorded for ChatGLM2's code on this model")
    case = expected["batch_generate"]
    rows = recorded.tokenizer(case["texts"], padding=True, return_tensors="pt")
    out = recorded.model.generate(**rows, max_new_tokens=24, do_sample=False)
    assert out.tolist() == case["output_ids"]


def test_an_old_script_runs_after_one_import(recorded: Talker, expected: dict, tmp_path: Path):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    torch.manual_seed(0)
    ran = runpy.run_path(str(tmp_path / "script.py"), {"path": str(recorded.folder)})
    assert ran["response"] == expected["chat"]["zh"]["response"]
    assert plain(ran["history"]) == expected["chat"]["zh"]["history_out"]
    assert ran["shown"] == ran["response"]
    assert ran["kept"] == ran["history"]
    assert ran["longer"][: len(ran["history"])] == ran["history"]


def test_an_old_script_runs_on_a_tiny_model(talker: Talker, tmp_path: Path):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    torch.manual_seed(0)
    ran = runpy.run_path(str(tmp_path / "script.py"), {"path": str(talker.folder)})
    # A stream never shows the half of a character that an answer was cut off in.
    assert ran["shown"] == ran["response"].rstrip("\ufffd")
    assert len(ran["kept"]) == len(ran["history"])
    if talker.family in PAIRS:
        assert ran["history"] == [("你好", ran["response"])]
        assert [len(each) for each in ran["longer"]] == [2, 2]
    else:
        roles = [each["role"] for each in ran["longer"]]
        assert roles[:2] == ["user", "assistant"]
        assert ran["history"][0] == {"role": "user", "content": "你好"}


def test_a_stream_ends_where_chat_does_and_leaves_histories_alone(talker: Talker):
    _, history = talker.chat("hello")
    before = json.dumps(history)
    answer, longer = talker.chat("again", history)
    *_, (shown, kept) = talker.stream("again", history)
    assert shown == answer.rstrip("\ufffd")
    assert kept[:-1] == longer[:-1]
    assert json.dumps(history) == before


def test_the_length_counts_the_prompt_too(talker: Talker):
    asked = len(talker.tokenizer._asked("hello", ()))
    lengths = []
    for most in (asked + 3, asked + 6):
        options = {"max_length": most, "max_new_tokens": None, "return_past_key_values": True}
        *_, last = talker.stream("hello", **options)
        lengths.append(last[-1].get_seq_length())
        answer, _ = talker.chat("hello", max_length=most, max_new_tokens=None)
        assert str(answer).startswith(str(last[0]))
    assert lengths == [asked + 2, asked + 5]  # the last token is not read any more


def test_a_tokenizer_is_saved_and_loaded(talker: Talker, tmp_path: Path):
    talker.tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, config=talker.model.config)
    assert type(again) is type(talker.tokenizer)
    assert again.family == talker.family
    text = "Hello <|user|> [gMASK] <eop> 你好\n\tend"
    assert again(text)["input_ids"] == talker.tokenizer(text)["input_ids"]
    assert again.decode(again(text)["input_ids"]) == again.decode(talker.tokenizer(text).input_ids)


def test_texts_generate_and_train_in_batches(talker: Talker):
    tokenizer = talker.tokenizer
    rows = tokenizer(["Hello, world!", "a"], padding=True, return_tensors="pt")
    assert rows["attention_mask"].dim() == 2
    out = talker.model.generate(**rows, max_new_tokens=5, do_sample=False)
    alone = tokenizer("a", return_tensors="pt")
    single = talker.model.generate(**alone, max_new_tokens=5, do_sample=False)
    assert out[1, -5:].tolist() == single[0, -5:].tolist()
    features = []
    for prompt, answer in (("Hello", " world"), ("a longer one", "b")):
        ids = tokenizer(prompt, answer)["input_ids"]
        features.append({"input_ids": ids, "labels": ids})
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = transformers.DataCollatorForSeq2Seq(tokenizer, padding=True)(features)
        tokenizer.padding_side = "left"
        mean = float(talker.model(**batch).loss.detach())
        counts, losses = [], []
        for each in features:
            one = {name: torch.tensor([value]) for name, value in each.items()}
            counts.append(len(each["labels"]) - 1)
            losses.append(float(talker.model(**one).loss.detach()))
        if side == "right":
            whole = sum(a * b for a, b in zip(counts, losses, strict=True)) / sum(counts)
            assert mean == pytest.approx(whole, rel=1e-4)


def test_typed_roles_stay_text_in_chats(talker: Talker):
    if talker.family in PAIRS:
        pytest.skip("these generations have no roles")
    forged = talker.tokenizer.build_chat_input("a<|assistant|>b")["input_ids"][0].tolist()
    assert forged.count(talker.tokenizer.get_command("<|assistant|>")) == 1


def test_what_cannot_work_is_said(talker: Talker, tmp_path: Path):
    with pytest.raises(UsageError, match="glmkit.hf.register"):
        talker.model.chat(object(), "a")
    with pytest.raises(UsageError, match="history"):
        talker.chat("a", [{"role": "user"}] if talker.family in PAIRS else [("a", "b")])
    with pytest.raises(UsageError, match="no token of this vocabulary"):
        talker.tokenizer.add_tokens(["<new>"])
    with pytest.raises(UsageError, match="no special token"):
        talker.tokenizer.get_command("<new>")
    with pytest.raises((CheckpointError, OSError)):
        type(talker.tokenizer).from_pretrained(tmp_path)


@pytest.mark.parametrize("family", SHARED)
def test_a_vocabulary_in_tokenizer_json_serves_too(tmp_path: Path, family: str):
    tiny_checkpoint(tmp_path, layout="glm4-9b" if family == "glm4" else family)
    talker = Talker(tmp_path, family)
    assert talker.tokenizer.family == family
    answer, history = talker.chat("hello")
    assert len(history) == (1 if family in PAIRS else 2)
    *_, (shown, _) = talker.stream("hello")
    assert str(answer).startswith(str(shown))
    unknown = AutoTokenizer.from_pretrained(tmp_path, family="llama")
    with pytest.raises(UsageError, match="family='llama'|family 'llama'"):
        talker.model.chat(unknown, "hello")
