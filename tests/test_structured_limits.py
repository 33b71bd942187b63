"""Forms and calls at their edges: odd schemas, long choices, signs that grammars trip over."""

from __future__ import annotations

import json

import pytest
import torch
from roomy import loading

from glmkit import GenerationOptions, UsageError
from glmkit.models.formats import GLM4, forced, hermes
from glmkit.models.formats.tools import LONGEST_CALL, json_object, python_call
from glmkit.models.tokenizers import Tokenizer
from glmkit.runtime.forms import FormReader
from glmkit.runtime.guidance import Guidance
from glmkit.runtime.sampling import make_sampler
from glmkit.types import Ask, Message, ToolCall

pytestmark = pytest.mark.usefixtures("one_thread")

HELLO = [Message("user", "hi")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return what loads the tiny model of a layout, with room for tools."""
    return loading(tmp_path_factory)


@pytest.fixture(scope="module")
def guidance(models):
    """Return what follows grammars in the smallest vocabulary."""
    model = models("hub")
    return Guidance(model.tokenizer, model.settings.stop_ids)


def _taken(guidance, tokenizer: Tokenizer, grammar, text):
    """Tell whether a grammar lets a text be written as a whole."""
    guide = guidance.guide(grammar)
    for token in tokenizer.encode(text):
        scores = guide.mask(torch.zeros(tokenizer.size))
        if scores[token] != 0:
            return False
        guide.take(token)
    return guide.over or bool((guide.mask(torch.zeros(tokenizer.size)) == 0)[2])


def _offering(parameters, name="f"):
    return [Message("system", "", tools=({"name": name, "parameters": parameters},)), *HELLO]


# -- schemas of tools --------------------------------------------------------------------------


def _deep(levels):
    schema: dict[str, object] = {"type": "null"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return {"type": "object", "properties": {"a": schema}}


ODD = {
    "properties is a list": {"properties": ["a"]},
    "properties is a number": {"properties": 5},
    "names are numbers": {"properties": {1: {"type": "null"}}},
    "inner properties": {"properties": {"o": {"type": "object", "properties": [{}]}}},
    "enum": {"properties": {"a": {"enum": 5}}},
    "empty enum": {"properties": {"a": {"enum": []}}},
    "required is a number": {"properties": {"a": {"type": "null"}}, "required": 5},
    "required has an object": {"properties": {"a": {"type": "null"}}, "required": [{}]},
    "types": {"properties": {"a": {"type": ["null", {}]}}},
    "a set": {"properties": {"a": {"default": {1}}}},
    "deep": _deep(900),
    "deeper": _deep(3000),
}

FINE = ("names are numbers", "empty enum")
"""JSON knows what to make of them."""


@pytest.mark.parametrize("layout", ["chatglm3", "glm4-9b"])
def test_an_odd_schema_of_a_tool_fails_its_row_alone(models, layout):
    required = GenerationOptions(max_tokens=8, tool_choice="required")
    asks = [Ask(at, _offering(each), required) for at, each in enumerate(ODD.values())]
    asks.append(Ask(len(ODD), HELLO, GenerationOptions(max_tokens=3)))
    outcomes = dict(models(layout).answers(asks))
    assert outcomes.pop(len(ODD)).usage.completion_tokens == 3
    for what, outcome in zip(ODD, map(outcomes.get, range(len(ODD))), strict=True):
        assert isinstance(outcome, UsageError) != (what in FINE), what


def test_types_that_are_said_twice_make_one_rule():
    schema: dict[str, object] = {"type": "null"}
    for _ in range(12):
        schema = {"type": ["object"] * 9, "properties": {"a": schema}}
    rules = forced.python_calls([{"name": "f", "parameters": schema}])
    assert rules.count("\n") < 100


def test_names_that_python_would_write_otherwise_are_called_with_json():
    for name in ("\ufb01", "class", "a b"):
        parameters = {"properties": {name: {"type": "null"}}}
        assert "%json" in forced.python_calls([{"name": "f", "parameters": parameters}])
    inner = {"type": "object", "properties": {"a\rb": {"type": "null"}}}
    tool = {"name": "f", "parameters": {"properties": {"o": inner}}}
    assert "%json" in forced.python_calls([tool])
    assert python_call("tool_call(\ufb01=1)") == {"fi": 1}


# -- grammars ----------------------------------------------------------------------------------


def test_thousands_of_choices_are_chosen_from(models):
    model = models("glm4-9b")
    choices = tuple(f"choice {at}" for at in range(12_000))
    options = GenerationOptions(
        temperature=1.0, seed=1, max_tokens=40, response_format={"choice": choices}
    )
    reply = model.reply(HELLO, options)
    assert reply.finish_reason == "stop" and reply.text in choices
    options = GenerationOptions(response_format={"choice": ["", "a"]}, max_tokens=3)
    assert model.reply(HELLO, options).text in ("", "a")


@pytest.mark.parametrize(("many", "why"), [(700, "too complex"), (4000, "too big")])
def test_what_is_too_much_is_refused_before_it_is_decoded(models, many, why):
    model = models("glm4-9b")
    schema = {"type": "object", "properties": {f"p{at}": {"type": "null"} for at in range(many)}}
    with pytest.raises(UsageError, match=why):
        model.begin(HELLO, GenerationOptions(response_format={"json_schema": schema}))
    needed = {**schema, "required": [*schema["properties"]][:450]}
    if many == 700:
        model.begin(HELLO, GenerationOptions(response_format={"json_schema": needed}))


def test_few_large_grammars_are_kept(models, monkeypatch):
    model = models("hub")
    guidance = Guidance(model.tokenizer, model.settings.stop_ids)
    monkeypatch.setattr("glmkit.runtime.guidance._KEPT_LENGTH", 100)
    for letter in "abc":
        guidance.guide(f'start: "{letter * 30}"')
    assert [each[8] for each in guidance._made] == ["b", "c"]
    guidance.guide(f'start: "{"d" * 300}"')
    assert len(guidance._made) == 1


def test_a_message_does_not_show_the_grammar(models):
    schema = {"type": "string", "format": "foo"}
    with pytest.raises(UsageError, match="foo") as refused:
        models("hub").begin(HELLO, GenerationOptions(response_format={"json_schema": schema}))
    assert "start:" not in str(refused.value) and "form:" not in str(refused.value)


@pytest.mark.parametrize("sign", ["\x7f", "\x00", '"', "\\", "\n"])
def test_any_sign_may_be_in_a_choice_and_in_a_schema(models, guidance, sign):
    model = models("hub")
    for grammar, text in (
        (f"start: {forced.text(f'a{sign}')}", f"a{sign}"),
        (f"start: {forced.json_of({'enum': [f'a{sign}']})}", json.dumps(f"a{sign}")),
    ):
        assert _taken(guidance, model.tokenizer, grammar, text)


def test_a_stop_token_beyond_the_vocabulary_ends_a_form(models):
    tokenizer = models("hub").tokenizer
    stop = tokenizer.size + 5
    guide = Guidance(tokenizer, [stop]).guide("start: /a+/")
    scores = torch.zeros(stop + 10)
    assert guide.mask(scores)[stop] != 0
    guide.take(tokenizer.encode("a")[0])
    allowed = (guide.mask(scores) == 0).nonzero()[:, 0].tolist()
    assert stop in allowed and not any(tokenizer.size <= each != stop for each in allowed)
    guide.take(stop)
    assert guide.over


def test_a_form_that_the_model_gives_no_chance_is_said_to_have_none(models, guidance):
    tokenizer = models("hub").tokenizer
    scores = torch.zeros(tokenizer.size)
    scores[tokenizer.encode("a")] = -torch.inf
    for temperature in (0.0, 1.0):
        pick = make_sampler(guide=guidance.guide('start: "a"'), temperature=temperature, seed=0)
        with pytest.raises(UsageError, match="no chance at all"):
            pick(scores)


# -- calls that are read back ------------------------------------------------------------------


def test_no_call_has_a_number_that_is_no_json():
    for written in ("1e999", "-1e400", f"{'1' * 400}.5"):
        assert python_call(f"tool_call(x={written})") is None
        assert python_call(f"tool_call(x=[1, {written}])") is None
        assert json_object(f'{{"x": {written}}}') is None
    assert json_object('{"x": 1e30}') == python_call("tool_call(x=1e30)") == {"x": 1e30}


@pytest.mark.parametrize("calls", [forced.json_calls, forced.python_calls, hermes.calls])
@pytest.mark.parametrize("listed", [False, True])
def test_numbers_of_calls_stay_finite(models, guidance, calls, listed):
    model = models("hub")
    number: dict[str, object] = {"type": ["null", "number"]}
    number = {"type": "array", "items": {"type": "number"}} if listed else number
    tool = {"name": "f", "parameters": {"properties": {"x": number}, "required": ["x"]}}
    grammar = f"start: calls\n{calls([tool])}"
    assert ("tool_call(" in grammar) == (calls is forced.python_calls)
    before = {
        forced.json_calls: 'f\n{"x": ',
        forced.python_calls: "f\n```python\ntool_call(x=",
        hermes.calls: '<tool_call>\n{"name": "f", "arguments": {"x": ',
    }[calls] + "[" * listed
    guide = guidance.guide(grammar)
    for token in model.tokenizer.encode(f"{before}-1.5"):
        guide.take(token)
    plain = torch.zeros(model.tokenizer.size)
    exponent, digit = (model.tokenizer.encode(each)[0] for each in "e1")
    for _ in range(25):
        allowed = guide.mask(plain) == 0
        assert not allowed[exponent]
        guide.take(digit)
    guide = guidance.guide(grammar)
    for token in model.tokenizer.encode(before + "9" * 18):
        guide.take(token)
    assert guide.mask(plain)[digit] != 0


def test_a_tool_that_takes_other_arguments_is_called_with_them(models, guidance):
    parameters = {"type": "object", "additionalProperties": {"type": "integer"}}
    grammar = f"start: calls\n{forced.python_calls([{'name': 'f', 'parameters': parameters}])}"
    assert _taken(guidance, models("hub").tokenizer, grammar, 'f\n{"any": 3}')
    closed = {**parameters, "additionalProperties": False}
    grammar = f"start: calls\n{forced.python_calls([{'name': 'f', 'parameters': closed}])}"
    assert "%json" not in grammar


def test_calls_whose_strings_have_marks_in_them_are_read():
    first = ToolCall("f", {"a": 'x</tool_call>\n<tool_call>"\\', "b": ["</tool_call>"]})
    second = ToolCall("g", {})
    text = f"A{hermes.written(first)}\nB{hermes.written(second)}"
    for pieces in (text, [text], [text[:70], text[70:]]):
        reader = hermes.HermesReader()
        shown = "".join(map(reader.push, pieces)) + reader.finish()
        assert (shown, reader.calls) == ("AB", (first, second))


def test_a_string_that_never_ends_hides_no_call():
    call = ToolCall("f", {})
    begun = '<tool_call>{"a": "</tool_call>'
    for between in (" ", "x" * (LONGEST_CALL + 1)):
        reader = hermes.HermesReader()
        shown = reader.push(f"{begun}{between}{hermes.written(call)}") + reader.finish()
        assert (shown, reader.calls) == (f"{begun}{between}", (call,))
    reader = hermes.HermesReader()
    assert reader.push(begun) + reader.finish() == begun and not reader.calls


# -- a form beside tools -----------------------------------------------------------------------

LETTERS = ("  x  ", " y", "f\n", 'f\n{"a": 1}', "z<|assistant|>f\n{}")


@pytest.mark.parametrize("layout", ["chatglm3", "glm4-9b"])
def test_a_form_beside_tools_is_shown_to_the_letter(models, layout):
    asked = [Message("system", "", tools=({"name": "f"},)), *HELLO]
    forms = [{"choice": [each]} for each in LETTERS] + [{"regex": " ?"}]
    options = [
        GenerationOptions(max_tokens=60, temperature=9.0, seed=seed, response_format=form)
        for form in forms
        for seed in range(6)
    ]
    replies = [*models(layout).batch([asked] * len(options), options)]
    said = {each.text for each in replies if not each.tool_calls}
    assert said <= {*LETTERS, "", " "} and len(said) > 3
    called = [call for each in replies for call in each.tool_calls]
    assert called and all(each == ToolCall("f", {}) for each in called)


def test_a_form_is_told_from_a_call_however_it_comes():
    for lead in ("", " "):
        for text, shown, calls in (
            (f"\n{lead} x ", " x ", 0),
            (f" \n{lead}\n", "\n", 0),
            (f"\n{lead}", "", 0),
            ("f\n{}", "", 1),
            (" f\n{}", "", 1),
            ("f\n{", "f\n{", 0),
            (" ", "", 0),
        ):
            for pieces in ([text], text):
                turns = [Message("system", "", tools=({"name": "f"},)), *HELLO]
                reader = FormReader(GLM4.reader(turns), "\n", lead)
                told = "".join(map(reader.push, pieces)) + reader.finish()
                assert (told, len(reader.calls)) == (shown, calls)
