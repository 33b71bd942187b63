"""Forms, required calls and log-probabilities through the transformers engine."""

import json

import jsonschema
import pytest
import torch
from test_transformers_engine import TEMPLATE, checkpoint

import glmkit
from glmkit import GenerationOptions, Message, Reply, UsageError
from glmkit.types import Ask

HERMES = TEMPLATE.replace(
    "{{ call.function | tojson }}", "<tool_call>{{ call.function.arguments }}"
)
HELLO = [Message("user", "hi")]
OFFER = [Message("system", "", tools=({"name": "f", "parameters": {"properties": {}}},)), *HELLO]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return glmkit.load(checkpoint(tmp_path_factory.mktemp("forms") / "llama", template=HERMES))


def test_answers_fit_a_schema(model):
    schema = {"type": "array", "items": {"enum": ["红", True]}, "minItems": 2, "maxItems": 3}
    options = GenerationOptions(seed=1, temperature=1.0, response_format={"json_schema": schema})
    reply = model.reply(HELLO, options)
    assert reply.finish_reason == "stop"
    jsonschema.validate(json.loads(reply.text), schema)


def test_calls_are_required_where_they_are_read(model, tmp_path):
    required = GenerationOptions(tool_choice="required")
    (call,) = model.reply(OFFER, required).tool_calls
    assert (call.name, call.arguments) == ("f", {})
    either = GenerationOptions(response_format={"choice": ["x"]}, temperature=9.0)
    found = [*model.batch([OFFER] * 6, [either] * 6)]
    assert {(each.text.strip(), len(each.tool_calls)) for each in found} <= {("x", 0), ("", 1)}
    other = glmkit.load(checkpoint(tmp_path / "plain"))
    with pytest.raises(UsageError, match="are not read here"):
        other.reply(OFFER, required)


def test_odds_are_those_of_a_plain_pass(model):
    answer = model.begin(HELLO, GenerationOptions(max_tokens=6, logprobs=2, temperature=0))
    told = Reply.join(model._streamed(answer)).logprobs
    prompt, new = answer.row.prompt, answer.row.new
    plain = model.logits(torch.tensor([[*prompt, *new]]))[0, len(prompt) - 1 : -1].log_softmax(-1)
    wanted = [float(plain[at, token]) for at, token in enumerate(new)]
    assert [each.logprob for each in told] == pytest.approx(wanted, abs=1e-4)


def test_who_does_not_know_tokens_in_bytes_refuses_that_alone(tmp_path):
    model = glmkit.load(checkpoint(tmp_path / "unspelt", template=HERMES))
    model.tokenizer._spell = None  # as where transformers has no fast tokenizer
    asked = [{"logprobs": 1}, {}, {"response_format": {"regex": "a"}}, {"tool_choice": "required"}]
    asks = [
        Ask(at, OFFER, GenerationOptions(max_tokens=3, **each)) for at, each in enumerate(asked)
    ]
    found = dict(model.answers(asks))
    assert found.pop(1).usage.completion_tokens
    assert len(found) == 3
    assert all("in bytes is not known" in str(each) for each in found.values())
    assert all(isinstance(each, UsageError) for each in found.values())
