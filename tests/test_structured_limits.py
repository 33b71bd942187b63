"""Forms and calls at their edges: odd schemas, long choices, signs that grammars trip over."""

from __future__ import annotations

import pytest
import torch
from roomy import roomy

from glmkit import GenerationOptions, UsageError
from glmkit.models.formats import forced
from glmkit.models.formats.tools import python_call
from glmkit.models.tokenizers import Tokenizer
from glmkit.runtime.guidance import Guidance
from glmkit.types import Ask, Message

pytestmark = pytest.mark.usefixtures("one_thread")

HELLO = [Message("user", "hi")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return what loads the tiny model of a layout, with room for tools."""
    made = {}

    def load(layout):
        if layout not in made:
            made[layout] = roomy(tmp_path_factory.mktemp(layout), layout)
        return made[layout]

    return load


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
