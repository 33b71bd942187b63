"""The transformers engine: other people's models behind the same ChatModel."""

import json
import pickle
import sys

import pytest
import torch
from click.testing import CliRunner

import glmkit
from glmkit import GenerationOptions, Message
from glmkit.cli import cli
from glmkit.console import drain
from glmkit.errors import (
    CheckpointError,
    MissingExtraError,
    OutOfMemoryError,
    UnknownNameError,
    UsageError,
)
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.convert import convert
from glmkit.runtime.engines.transformers import TransformersModel
from glmkit.types import Ask, InspectableModel, Passage, ToolCall

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SIZES = {"vocab_size": 262, "initializer_range": 0.4}
KINDS = ("llama", "qwen2", "gpt2")


pytestmark = pytest.mark.usefixtures("one_thread")


def tokenizer(template=TEMPLATE):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE({name: at for at, name in enumerate(names)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    made.chat_template = template
    return made


def config(kind):
    import transformers

    if kind == "gpt2":
        return transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, n_positions=512, eos_token_id=2, **SIZES
        )
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    made = transformers.LlamaConfig if kind == "llama" else transformers.Qwen2Config
    return made(**shape, **heads, **SIZES, eos_token_id=2, bos_token_id=0)


def checkpoint(folder, kind="llama", *, template=TEMPLATE):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config(kind)).save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: checkpoint(tmp_path_factory.mktemp(kind) / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module", params=KINDS)
def model(request, folders):
    return glmkit.load(folders[request.param])


@pytest.fixture(scope="module")
def llama(folders):
    return glmkit.load(folders["llama"])


def ask(text):
    return [{"role": "user", "content": text}]


GREEDY = GenerationOptions(max_tokens=12, temperature=0)
TALKS = [ask("hello"), ask("你好，a longer question, so that rows differ"), ask("x")] * 3


def test_what_glmkit_does_not_know_runs_through_transformers(model, folders):
    assert isinstance(model, TransformersModel) and isinstance(model, InspectableModel)
    assert model.name in KINDS and model.context_length == 512


def test_greedy_ids_are_those_of_generate(model):
    ids = model.tokenizer.encode("Once upon a time")
    given = torch.tensor([ids])
    wanted = model.model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=20, do_sample=False
    )[0, len(ids) :].tolist()
    if 2 in wanted:
        wanted = wanted[: wanted.index(2)]
    assert model.generate_ids(ids, 20) == wanted


def test_the_prompt_is_the_template(llama):
    answer = llama._answer(ask("hello"), GREEDY)
    inner = llama.tokenizer.inner
    wanted = inner.apply_chat_template(ask("hello"), add_generation_prompt=True)["input_ids"]
    assert list(answer.row.prompt) == wanted
    assert wanted.count(1) == 2


def test_a_batch_answers_as_each_alone(model):
    alone = [model.reply(each, GREEDY) for each in TALKS]
    assert list(model.batch(TALKS, GREEDY)) == alone
    assert {each.finish_reason for each in alone} <= {"length", "stop"}
    assert all(each.usage.completion_tokens <= 12 for each in alone)
    assert len({each.text for each in alone}) > 1


def test_rows_of_a_batch_may_end_at_different_times(model):
    limits = [GenerationOptions(max_tokens=1 + at % 5, temperature=0) for at in range(len(TALKS))]
    got = list(model.batch(TALKS, limits))
    assert [model.reply(*each) for each in zip(TALKS, limits, strict=True)] == got


def test_conversations_are_drawn_as_room_comes_free(llama):
    drawn = []

    def talks():
        for at in range(40):
            drawn.append(at)
            yield ask(f"question {at}")

    replies = llama.batch(talks(), GREEDY)
    next(replies)
    assert len(drawn) <= 8
    replies.close()


def short_of_memory(model, monkeypatch, room):
    """Let a model have no memory for more than ``room``: rows, times tokens that are kept."""
    forward, asked = model.model.forward, []

    def bounded(*, attention_mask, **given):
        asked.append(tuple(attention_mask.shape))
        if attention_mask.numel() > room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")
        return forward(attention_mask=attention_mask, **given)

    monkeypatch.setattr(model.model, "forward", bounded)
    return asked


def test_fewer_rows_run_where_memory_ends_on_the_way(llama, monkeypatch, caplog):
    wanted = list(llama.batch(TALKS, GREEDY))
    longest = max(each.usage.prompt_tokens for each in wanted)
    asked = short_of_memory(llama, monkeypatch, 8 * (longest + 5))
    assert list(llama.batch(TALKS, GREEDY)) == wanted
    assert {rows for rows, _ in asked} >= {8, 4}
    assert sum(each == (8, longest + 6) for each in asked) == 1  # it is tried once
    assert caplog.messages == ["memory ran out; 4 rows run side by side from now on"]


def test_a_row_too_long_for_the_memory_fails_alone(llama, monkeypatch):
    talks = [ask("short"), ask("long " * 40), ask("also short")]
    wanted = [llama.reply(each, GREEDY) for each in talks]
    short_of_memory(llama, monkeypatch, wanted[1].usage.prompt_tokens + 5)
    asked = (Ask(at, each, GREEDY) for at, each in enumerate(talks))
    found = dict(llama.answers(asked))
    assert [found[0], found[2]] == [wanted[0], wanted[2]]
    assert isinstance(found[1], OutOfMemoryError) and "running alone" in str(found[1])
    monkeypatch.setattr(llama.model, "forward", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        llama.reply(talks[0], GREEDY)


def test_the_seed_decides_each_row_and_temperature_matters(llama):
    def options(seed, temperature=2.0):
        return GenerationOptions(max_tokens=16, temperature=temperature, seed=seed)

    one, again, other = (llama.reply(ask("hi"), options(seed)).text for seed in (1, 1, 2))
    assert one == again != other
    mixed = [options(1), options(2), options(1)]
    assert [each.text for each in llama.batch([ask("hi")] * 3, mixed)] == [one, other, one]
    cold = GenerationOptions(max_tokens=12, temperature=0, seed=5)
    assert llama.reply(ask("hi"), GREEDY) == llama.reply(ask("hi"), cold)


def test_the_stream_joins_to_the_reply_and_closing_it_ends_it(llama):
    options = GenerationOptions(max_tokens=40, temperature=1.5, seed=11)
    chunks = list(llama.stream(ask("hi"), options))
    reply = llama.reply(ask("hi"), options)
    assert "".join(each.text for each in chunks) == reply.text
    assert all("\ufffd" not in each.text or "\ufffd" in reply.text for each in chunks[:-1])
    assert chunks[-1].usage == reply.usage and chunks[-1].finish_reason
    stream = llama.stream(ask("hi"), options)
    next(stream)
    stream.close()


def test_stop_strings_end_an_answer(llama):
    whole = llama.reply(ask("hello"), GREEDY).text
    stop = whole[3:5]
    cut = llama.reply(ask("hello"), GenerationOptions(max_tokens=12, temperature=0, stop=(stop,)))
    assert cut.text == whole[: whole.index(stop)] and cut.finish_reason == "stop"


def test_stop_tokens_end_an_answer(tmp_path):
    folder = checkpoint(tmp_path / "model")
    first = glmkit.load(folder).generate_ids([5, 6, 7], 1)[0]
    said = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(said | {"eos_token_id": [first]}))
    assert glmkit.load(folder).generate_ids([5, 6, 7], 5) == []


def test_logits_do_not_see_padding(model):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 259, (size,), generator=generator) for size in (4, 9)]
    ids = torch.zeros(2, 9, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, -len(row) :], mask[at, -len(row) :] = row, 1
    padded = model.logits(ids, mask)
    for at, row in enumerate(rows):
        alone = model.logits(row[None])[0]
        assert (padded[at, -len(row) :] - alone).abs().max() <= 1e-4


def test_passages_and_tools_reach_the_template(llama):
    passages = (Passage("The Nile is long.", "rivers.md"),)
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    talk = [
        Message("system", "Be brief.", tools=(tool,)),
        Message("assistant", "", tool_calls=(ToolCall("look", {"at": "river"}),)),
        Message("observation", "wet"),
        Message("user", "How long?", passages=passages),
    ]
    answer = llama._answer(talk, GREEDY)
    text = llama.tokenizer.inner.decode(answer.row.prompt)
    for said in ('"name": "look"', '"at": "river"', "<|im_start|>tool\nwet", "The Nile is long."):
        assert said in text
    assert answer.sources == passages


@pytest.mark.parametrize(
    ("ids", "said"), [([], "rows, tokens"), ([400], "0 to 261"), ([5] * 512, "do not fit")]
)
def test_rows_that_do_not_fit_are_refused(llama, ids, said):
    with pytest.raises(UsageError, match=said):
        llama.generate_ids(ids, 4)


def test_long_conversations_lose_their_oldest_turns(llama):
    talk = [*ask("x" * 400), {"role": "assistant", "content": "y" * 100}, *ask("last")]
    answer = llama._answer(talk, GREEDY)
    text = llama.tokenizer.inner.decode(answer.row.prompt)
    assert "last" in text and "xxx" not in text
    with pytest.raises(UsageError, match="takes"):
        llama.reply(ask("z" * 600), GREEDY)


def test_without_a_template_or_a_vocabulary_it_does_not_chat(tmp_path):
    bare = glmkit.load(checkpoint(tmp_path / "bare", template=None))
    with pytest.raises(CheckpointError, match="no chat template"):
        bare.reply(ask("hi"))
    folder = checkpoint(tmp_path / "none")
    for each in folder.glob("tokenizer*"):
        each.unlink()
    none = glmkit.load(folder)
    assert none.tokenizer is None and len(none.generate_ids([4], 3)) <= 3
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        none.reply(ask("hi"))


def test_a_template_that_refuses_is_a_usage_error(tmp_path):
    refusing = "{{ raise_exception('no system, please') }}"
    model = glmkit.load(checkpoint(tmp_path / "model", template=refusing))
    with pytest.raises(UsageError, match="no system, please"):
        model.reply(ask("hi"))


@pytest.mark.parametrize(
    "given", [{"quantize": "int4"}, {"adapter": "somewhere"}, {"family": "glm4"}]
)
def test_options_of_the_local_engine_are_refused(folders, given):
    with pytest.raises(UsageError, match=next(iter(given))):
        glmkit.load(folders["llama"], **given)


def test_adapters_in_options_are_refused(llama):
    with pytest.raises(UsageError, match="adapter"):
        llama.reply(ask("hi"), GenerationOptions(adapter="mine"))


def test_weights_that_only_glmkit_reads_are_refused_in_one_line(tmp_path):
    raw = {"model_type": "glm", "quantization_config": {"quant_method": "glmkit", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="glmkit's own int4 layout.*leave --engine out"):
        glmkit.load(tmp_path, engine="transformers")


def test_code_in_a_folder_is_never_run(tmp_path):
    folder = checkpoint(tmp_path / "model")
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran')")
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"model_type": "evil", "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="own code"):
        glmkit.load(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(CheckpointError, match="unheard-of"):
        glmkit.load(folder)


def test_a_pickle_with_code_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    folder = checkpoint(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Evil()}, folder / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(CheckpointError):
        glmkit.load(folder)
    assert not (tmp_path / "ran").exists()


def test_weights_are_never_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = checkpoint(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="layers.1.mlp.up_proj"):
        glmkit.load(folder)


@pytest.mark.parametrize("damage", ["model.safetensors", "tokenizer.json", "config.json"])
def test_damaged_files_are_one_line(tmp_path, damage):
    folder = checkpoint(tmp_path / "model")
    (folder / damage).write_bytes((folder / damage).read_bytes()[:200])
    with pytest.raises(CheckpointError) as caught:
        glmkit.load(folder)
    assert "\n" not in str(caught.value)


def test_the_engine_can_be_named(folders, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'transformers'"):
        glmkit.load(folders["llama"], engine="transformer")
    with pytest.raises(CheckpointError, match="'llama' is no layout"):
        glmkit.load(folders["llama"], engine="local")
    original = tiny_checkpoint(tmp_path / "original", layout="chatglm3")
    with pytest.raises(CheckpointError, match="glmkit convert"):
        glmkit.load(original, engine="transformers")


def test_without_transformers_the_extra_is_named(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"glmkit\[hf\]"):
        glmkit.load(folders["llama"])


@pytest.mark.parametrize("layout", ["chatglm2", "chatglm3", "glm4-9b"])
def test_a_converted_glm_answers_as_it_does_natively(tmp_path, layout):
    source = tiny_checkpoint(tmp_path / "source", layout=layout)
    hub = drain(convert(source, tmp_path / "hub", to="hf")).path
    native, foreign = glmkit.load(hub), glmkit.load(hub, engine="transformers")
    ids = native.tokenizer.encode("hello there")
    assert (
        native.logits(torch.tensor([ids])) - foreign.logits(torch.tensor([ids]))
    ).abs().max() <= (1e-4)
    assert native.generate_ids(ids, 16) == foreign.generate_ids(ids, 16)


def test_the_chat_command_takes_an_engine(folders):
    given = ["run", "chat", "--model", str(folders["llama"]), "--ask", "hi", "--max-tokens", "3"]
    assert CliRunner().invoke(cli, given).exit_code == 0
    wrong = CliRunner().invoke(cli, [*given, "--engine", "local"])
    assert isinstance(wrong.exception, CheckpointError)
