"""Answers that are kept to a form: JSON, expressions, choices and calls, in every vocabulary."""

from __future__ import annotations

import json
import re
import sys
from itertools import product
from typing import get_args

import jsonschema
import pytest
import tiny_vocabularies as tiny
import torch
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from roomy import loading

from glmkit import Chat, GenerationOptions, MissingExtraError, Reply, ResponseFormat, UsageError
from glmkit.models.formats import hermes
from glmkit.models.tiny import TinyLayout
from glmkit.models.tokenizers import Tokenizer
from glmkit.runtime.guidance import Guidance
from glmkit.testing import EchoModel
from glmkit.types import Message, ToolCall

pytestmark = pytest.mark.usefixtures("one_thread")

HELLO = [Message("user", "hi")]
LAYOUTS = get_args(TinyLayout)
VOCABULARIES = {
    "chatglm": tiny.write_ice_text,
    "chatglm2": lambda folder: tiny.write_pieces(folder, "chatglm2-6b"),
    "chatglm3": tiny.write_pieces,
    "glm4": tiny.write_ranks,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return what loads the tiny model of a layout, with room for tools."""
    return loading(tmp_path_factory)


# -- what tokens are in bytes ------------------------------------------------------------------


@pytest.mark.parametrize("family", VOCABULARIES)
def test_what_tokens_add_makes_the_text(tmp_path, family):
    VOCABULARIES[family](tmp_path)
    vocabulary = Tokenizer.open(tmp_path)
    for text in ('{"a": [1, 2]}', "Hello, world! 你好\n\tx  y   z", "😀 \u0301é"):
        spelt = b"".join(vocabulary.spelling(each) or b"" for each in vocabulary.encode(text))
        assert spelt == f"{vocabulary.lead}{text}".encode()
    assert vocabulary.spelling(vocabulary.eos_id) is None
    assert vocabulary.spelling(vocabulary.size + 5) is None


# -- what may be asked -------------------------------------------------------------------------


def test_formats_are_said_in_several_ways():
    schema = {"type": "object"}
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert ResponseFormat.of(named) == ResponseFormat(json_schema=schema)
    assert ResponseFormat.of({"type": "json_object"}).any_object
    assert ResponseFormat.of({"type": "text"}) is None
    assert GenerationOptions(response_format={"choice": ["a", "b"]}).response_format == (
        ResponseFormat(choice=("a", "b"))
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"regex": "a", "choice": ["a"]},
        {"regex": 3},
        {"choice": "a"},
        {"choice": ["\ud800"]},
        {"json_schema": True},
        {"json_schema": {"a": {1, 2}}},
        {"json_schema": {"enum": ["x" * 300_000]}},
        {"type": "xml"},
        {"type": "json_schema"},
        "json",
    ],
)
def test_what_is_no_format_is_refused(wrong):
    with pytest.raises(UsageError):
        GenerationOptions(response_format=wrong)


@pytest.mark.parametrize("wrong", [{"tool_choice": "any"}, {"logprobs": 21}, {"logprobs": True}])
def test_other_options_have_ranges(wrong):
    with pytest.raises(UsageError):
        GenerationOptions(**wrong)


def test_who_knows_no_formats_refuses_them():
    for given_ in ({"response_format": {"regex": "a"}}, {"logprobs": 1}):
        with pytest.raises(UsageError, match="echo knows no"):
            Chat(EchoModel(), options=GenerationOptions(**given_)).reply("hi")


def test_what_cannot_be_compiled_says_why(models):
    for form, why in (
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json_schema": {"$ref": "http://example.com/x"}}, "does not fetch"),
        ({"regex": "(a"}, "unclosed group"),
    ):
        with pytest.raises(UsageError, match=why) as refused:
            models("hub").reply(HELLO, GenerationOptions(response_format=form))
        assert "\n" not in str(refused.value) and "no_forcing" not in str(refused.value)


def test_the_library_is_asked_for_where_it_is_missing(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    model = models("hub").anew()
    assert model.reply(HELLO, GenerationOptions(max_tokens=2)).usage.completion_tokens == 2
    with pytest.raises(MissingExtraError, match=r"glmkit\[structured\]"):
        model.reply(HELLO, GenerationOptions(response_format={"type": "json_object"}))


# -- what is answered --------------------------------------------------------------------------


def _objects(values):
    def closed(properties):
        names = [*properties]
        shut = {"required": names[: len(names) // 2 + 1], "additionalProperties": False}
        return {"type": "object", "properties": properties, **shut}

    names = st.sampled_from(["a", "名字", 'q"\\', "n\n"])
    return st.dictionaries(names, values, max_size=3).map(closed)


SCHEMAS = st.recursive(
    st.one_of(
        st.just({"type": "boolean"}),
        st.just({"type": "string", "maxLength": 4}),
        st.integers(-99, 99).map(lambda low: {"type": "integer", "minimum": low, "maximum": 99}),
        st.just({"enum": ["红", 1.5, None, 'x"\\\n', {"k": []}]}),
        st.just({"type": "string", "pattern": "^[a-c]{1,3}$"}),
    ),
    lambda inner: st.one_of(
        _objects(inner),
        inner.map(lambda item: {"type": "array", "items": item, "maxItems": 2}),
        st.tuples(inner, inner).map(lambda both: {"anyOf": [*both]}),
    ),
    max_leaves=4,
)
BRIEFLY = settings(
    max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@BRIEFLY
@given(schema=SCHEMAS, layout=st.sampled_from(LAYOUTS), seed=st.integers(0, 2**40))
def test_what_ends_fits_the_schema(models, schema, layout, seed):
    options = GenerationOptions(
        max_tokens=200, temperature=1.0, seed=seed, response_format={"json_schema": schema}
    )
    reply = models(layout).reply(HELLO, options)
    assume(reply.finish_reason == "stop")
    jsonschema.validate(json.loads(reply.text), schema)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_expressions_and_choices_are_kept_to_the_letter(models, layout):
    said = [
        models(layout).reply(HELLO, GenerationOptions(seed=seed, response_format=form)).text
        for seed in range(2)
        for form in ({"regex": r" ?[\u4e00-\u9fff]{2}-\d{3}\n"}, {"choice": ["是", " no ", "yes!"]})
    ]
    assert all(re.fullmatch(" ?[\u4e00-\u9fff]{2}-[0-9]{3}\n", each) for each in said[::2])
    assert set(said[1::2]) <= {"是", " no ", "yes!"}


def test_rows_of_a_batch_keep_to_their_own_forms(models):
    model = models("glm4-9b")
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    forms = [None, {"json_schema": {**schema, "additionalProperties": False}}, {"regex": "a+b"}]
    options = [
        GenerationOptions(max_tokens=40, temperature=1.0, seed=7, response_format=form)
        for form in forms
    ]
    together = [each.text for each in model.batch([HELLO] * 3, options)]
    assert together == [model.reply(HELLO, each).text for each in options]
    assert len(set(together)) == 3


def test_an_answer_that_is_cut_off_says_so(models):
    options = GenerationOptions(max_tokens=5, response_format={"regex": "[a-c]{20}"})
    reply = models("hub").reply(HELLO, options)
    assert reply.finish_reason == "length" and re.fullmatch("[a-c]{5,}", reply.text)
    assert models("hub").reply(HELLO, GenerationOptions(response_format={"regex": ""})).text == ""


def test_a_text_is_gone_on_with_in_a_form(models):
    model = models("glm4-9b")
    options = GenerationOptions(response_format={"regex": " [xyz]{3}"})
    answer = model.begin("the letters:", options)
    assert re.fullmatch(" [xyz]{3}", Reply.join(model._streamed(answer)).text)
    with pytest.raises(UsageError, match="no tool to call"):
        model.begin("the letters:", GenerationOptions(tool_choice="required"))


def test_a_vocabulary_that_cannot_go_on_fails_its_row_alone(models, monkeypatch):
    model = models("hub").anew()
    plain = type(model.tokenizer).spelling
    lacking = lambda self, at: None if (found := plain(self, at)) == b"q" else found  # noqa: E731
    monkeypatch.setattr(type(model.tokenizer), "spelling", lacking)
    options = [GenerationOptions(response_format={"regex": "q"}), GenerationOptions(max_tokens=3)]
    outcomes = dict(model.answers(_asked(options)))
    assert "lacks a character" in str(outcomes[0]) and outcomes[1].usage.completion_tokens == 3


def _asked(options):
    from glmkit.types import Ask

    return [Ask(at, HELLO, each) for at, each in enumerate(options)]


def test_grammars_are_compiled_once(models, monkeypatch):
    model = models("hub")
    made = Guidance(model.tokenizer, model.settings.stop_ids)
    grammar = "start: /[ab]+/"
    first, second = made.guide(grammar), made.guide(grammar)
    first.take(model.tokenizer.encode("a")[0])
    monkeypatch.setattr("glmkit.runtime.guidance._compiled", None)
    assert not made.guide(grammar).over
    scores = second.mask(torch.zeros(model.config.vocab_size))
    assert {model.tokenizer.token(each) for each in (scores == 0).nonzero()[:, 0].tolist()} == {
        "a",
        "b",
    }


# -- calls -------------------------------------------------------------------------------------

DAYS = {"type": "integer", "minimum": 1, "maximum": 9}
CITY = {"enum": ["北京", "it's\\", "<|user|>"]}
TOOLS = {
    "plain": {"days": DAYS, "city": CITY, "dry": {"type": ["boolean", "null"]}},
    "listed": {"xs": {"type": "array", "items": CITY}, "o": {"type": "object", "properties": {}}},
    "not in python": {"class": DAYS, "s": {"type": "string", "maxLength": 3}},
}


@pytest.mark.parametrize(
    ("layout", "what"), [*product(["chatglm3"], TOOLS), ("glm4-9b", "plain"), ("hub", "plain")]
)
def test_a_required_call_is_made_and_fits(models, layout, what):
    parameters = {"type": "object", "properties": TOOLS[what], "required": [*TOOLS[what]][:1]}
    asked = [Message("system", "", tools=({"name": "first", "parameters": parameters},)), *HELLO]
    options = [
        GenerationOptions(max_tokens=200, temperature=1.0, seed=seed, tool_choice="required")
        for seed in range(3)
    ]
    ended = [
        each
        for each in models(layout).batch([asked] * 3, options)
        if each.finish_reason != "length"
    ]
    assert ended
    for reply in ended:
        (call,) = reply.tool_calls
        assert (call.name, reply.finish_reason, reply.text) == ("first", "tool_calls", "")
        jsonschema.validate(call.arguments, {**parameters, "additionalProperties": False})


@pytest.mark.parametrize("layout", ["chatglm3", "glm4-9b", "hub"])
def test_any_tool_on_offer_may_be_called(models, layout):
    offers = ({"name": "first", "parameters": {"properties": {}}}, {"name": "查询"})
    asked = [Message("system", "", tools=offers), *HELLO]
    options = [
        GenerationOptions(temperature=9.0, seed=seed, tool_choice="required") for seed in range(5)
    ]
    calls = [
        call for each in models(layout).batch([asked] * 5, options) for call in each.tool_calls
    ]
    assert {each.name for each in calls} == {"first", "查询"}


def test_chatglm3_is_called_in_python(models):
    asked = [Message("system", "", tools=({"name": "f"},)), *HELLO]
    options = GenerationOptions(tool_choice="required")
    answer = models("chatglm3").begin(asked, options)
    assert [*models("chatglm3")._streamed(answer)][-1].tool_calls == (ToolCall("f", {}),)
    written = models("chatglm3").tokenizer.raw(answer.row.new)
    assert re.fullmatch(r" ?f\n ?```python\ntool_call\(\)\n```", written)


@pytest.mark.parametrize("layout", ["chatglm3", "glm4-9b"])
def test_a_form_leaves_the_model_free_to_call(models, layout):
    asked = [Message("system", "", tools=({"name": "f"},)), *HELLO]
    options = [
        GenerationOptions(temperature=9.0, seed=seed, response_format={"choice": ["x"]})
        for seed in range(6)
    ]
    replies = [*models(layout).batch([asked] * 6, options)]
    assert {(each.text, len(each.tool_calls)) for each in replies} == {("x", 0), ("", 1)}


def test_calls_that_cannot_be_forced_are_refused(models):
    required = GenerationOptions(tool_choice="required")
    for layout, tool in (("chatglm", "f"), ("glm4-9b", "cogview"), ("chatglm3", " f")):
        with pytest.raises(UsageError):
            asked = [Message("system", "", tools=({"name": tool},)), *HELLO]
            models(layout).reply(asked, required)
    with pytest.raises(UsageError, match="no tool is on offer"):
        models("glm4-9b").reply(HELLO, required)


def test_calls_between_marks_are_read_as_they_come():
    reader = hermes.HermesReader()
    call = ToolCall("f", {"a": "</tool"})
    text = f"Well.{hermes.written(call)}\n<tool_call>{{}}</tool_call> <tool"
    shown = "".join(map(reader.push, text)) + reader.finish()
    assert (shown, reader.calls) == ("Well.<tool_call>{}</tool_call> <tool", (call,))


# -- how likely tokens were --------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["hub", "chatglm", "chatglm3"])
def test_odds_are_those_of_a_plain_pass(models, layout):
    model = models(layout)
    bent = {"temperature": 1.5, "top_k": 30, "repetition_penalty": 1.3, "seed": 3}
    for form in (None, {"regex": "[a-z]{1,9}"}):
        options = GenerationOptions(max_tokens=9, logprobs=4, response_format=form, **bent)
        answer = model.begin(HELLO, options)
        told = Reply.join(model._streamed(answer)).logprobs
        prompt, new = answer.row.prompt, answer.row.new
        scores = model.logits(torch.tensor([[*prompt, *new]]))[0, len(prompt) - 1 : -1]
        plain = scores.log_softmax(-1)
        assert len(told) == len(new)
        for at, (token, each) in enumerate(zip(new, told, strict=True)):
            assert each.logprob == pytest.approx(float(plain[at, token]), abs=1e-4)
            spelt = model.tokenizer.spelling(token)
            lead = b"" if at or spelt is None else model.tokenizer.lead.encode()
            assert each.bytes == (spelt and spelt.removeprefix(lead))
            best = plain[at].topk(4)
            found = [other.logprob for other in each.top]
            assert found == pytest.approx(best.values.tolist(), abs=1e-4)


def test_odds_come_with_their_text(models):
    model = models("glm4-9b")
    options = GenerationOptions(
        max_tokens=30, logprobs=0, response_format={"regex": "[\u4e00-\u9fff]{3}"}
    )
    chunks = [*model.stream(HELLO, options)]
    reply = Reply.join(chunks)
    assert all(
        b"".join(token.bytes for token in each.logprobs).decode() == each.text
        for each in chunks[:-1]
    )
    assert b"".join(each.bytes for each in reply.logprobs).decode() == reply.text
    assert len(reply.logprobs) == reply.usage.completion_tokens
    assert all(each.top == () for each in reply.logprobs)
    assert any(each.token.startswith("bytes:\\x") for each in reply.logprobs)
    assert model.reply(HELLO, GenerationOptions(max_tokens=3)).logprobs == ()
