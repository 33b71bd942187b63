"""Formats, required calls and log-probabilities, as OpenAI's own client asks for them."""

from __future__ import annotations

import json
from typing import Literal

import openai
import pytest
from api_plugin import everything
from api_server import HELLO, client_of
from pydantic import BaseModel, Field
from roomy import roomy

from glmkit import GenerationOptions, ResponseFormat
from glmkit.remote.model import RemoteModel
from glmkit.servers import Server

pytestmark = [
    pytest.mark.network,
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.usefixtures("one_thread"),
]

TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "g"}},
]
GREEDY = {"model": "default", "messages": HELLO, "temperature": 0}


class Meal(BaseModel):
    """What people eat."""

    dish: Literal["汤", 'a "pie"']
    guests: int = Field(ge=1, le=9)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return roomy(tmp_path_factory.mktemp("tiny"), "glm4-9b")


@pytest.fixture(scope="module")
def http(tmp_path_factory, model):
    with client_of(everything(tmp_path_factory.mktemp("home"), model)) as client:
        yield client


@pytest.fixture(scope="module")
def client(http):
    return openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0, timeout=30)


def test_an_answer_becomes_an_object(client):
    parsed = client.chat.completions.parse(response_format=Meal, **GREEDY)
    assert isinstance(parsed.choices[0].message.parsed, Meal)
    schema = {"name": "meal", "schema": Meal.model_json_schema() | {"additionalProperties": False}}
    asked = {"type": "json_schema", "json_schema": schema}
    streamed = client.chat.completions.create(response_format=asked, stream=True, **GREEDY)
    text = "".join(each.choices[0].delta.content or "" for each in streamed)
    assert Meal.model_validate_json(text) == parsed.choices[0].message.parsed


def test_any_object_will_do(client):
    answer = client.chat.completions.create(
        response_format={"type": "json_object"}, max_tokens=300, stop="}", **GREEDY
    )
    assert answer.choices[0].message.content.startswith("{")
    plain = client.chat.completions.create(response_format={"type": "text"}, max_tokens=4, **GREEDY)
    free = client.chat.completions.create(max_tokens=4, **GREEDY)
    assert plain.choices[0].message.content == free.choices[0].message.content


def test_the_words_of_vllm_are_known(client):
    for extra in (
        {"structured_outputs": {"choice": ["red", "blue"]}},
        {"guided_regex": "red|blue"},
        {"guided_json": '{"enum": ["red", "blue"]}'},
        {"structured_outputs": {"json": {"enum": ["red", "blue"]}, "json_object": False}},
    ):
        answer = client.chat.completions.create(extra_body=extra, **GREEDY)
        assert answer.choices[0].message.content.strip('"') in ("red", "blue")
    told = client.completions.create(
        model="default", prompt="a colour:", extra_body={"guided_choice": [" red", " blue"]}
    )
    assert told.choices[0].text in (" red", " blue")


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"f", "g"}), ({"type": "function", "function": {"name": "g"}}, {"g"})],
)
def test_a_required_tool_is_called(client, choice, names):
    asked = {**GREEDY, "tools": TOOLS, "tool_choice": choice}
    (answer,) = client.chat.completions.create(**asked).choices
    (call,) = answer.message.tool_calls
    assert call.function.name in names and json.loads(call.function.arguments) == {}
    assert (answer.finish_reason, answer.message.content) == ("tool_calls", None)
    pieces = [*client.chat.completions.create(stream=True, **asked)]
    calls = [each for piece in pieces for each in piece.choices[0].delta.tool_calls or ()]
    assert [each.function.name for each in calls] == [call.function.name]


def test_chats_tell_how_likely_their_tokens_were(client):
    asked = {**GREEDY, "max_tokens": 12, "logprobs": True, "top_logprobs": 3}
    (answer,) = client.chat.completions.create(**asked).choices
    told = answer.logprobs.content
    assert len(told) == 12 and all(each.logprob <= 0 for each in told)
    for each in told:  # greedy: each is the likeliest in its place
        assert len(each.top_logprobs) == 3 and each.top_logprobs[0].token == each.token
        assert each.logprob == pytest.approx(each.top_logprobs[0].logprob)
    spelt = b"".join(bytes(each.bytes or ()) for each in told)
    assert answer.message.content in spelt.decode(errors="replace")
    pieces = [*client.chat.completions.create(stream=True, **asked)]
    odds = [each.choices[0].logprobs for each in pieces]
    assert [token for each in odds if each for token in each.content] == told
    few = client.chat.completions.create(**{**asked, "top_logprobs": 0}).choices[0].logprobs
    assert [each.top_logprobs for each in few.content] == [[]] * 12
    (free,) = client.chat.completions.create(max_tokens=12, **GREEDY).choices
    assert (free.logprobs, free.message.content) == (None, answer.message.content)


def test_texts_tell_where_their_tokens_begin(client):
    asked = {"model": "default", "prompt": "go on", "temperature": 0, "max_tokens": 12}
    asked["extra_body"] = {"guided_regex": "[\u4e00-\u9fff]{2}ab"}
    (answer,) = client.completions.create(logprobs=2, **asked).choices
    odds = answer.logprobs
    assert odds.text_offset == sorted(odds.text_offset) and odds.text_offset[0] == 0
    assert "".join(odds.tokens[-2:]) == "ab" == answer.text[odds.text_offset[-2] :]
    assert all(token in top for token, top in zip(odds.tokens, odds.top_logprobs, strict=True))
    assert all(2 <= len(each) <= 3 for each in odds.top_logprobs)
    pieces = [*client.completions.create(logprobs=2, stream=True, **asked)]
    told = [each.choices[0].logprobs for each in pieces if each.choices[0].logprobs]
    assert [at for each in told for at in each.text_offset] == odds.text_offset
    with pytest.raises(openai.BadRequestError, match="echo"):
        client.completions.create(logprobs=1, echo=True, **asked)


@pytest.mark.parametrize(
    "options",
    [
        {"response_format": ResponseFormat(json_schema={"enum": [1, "二"]}), "logprobs": 2},
        {"response_format": {"type": "json_object"}, "max_tokens": 9},
        {"response_format": {"choice": ["x", "y"]}},
        {"response_format": {"regex": "[xy]{3}"}, "logprobs": 0},
        {"tool_choice": "required"},
    ],
)
def test_the_engine_that_asks_servers_passes_them_on(http, model, options):
    offer = [{"role": "system", "content": "", "tools": TOOLS}] if "tool_choice" in options else []
    asked = [*offer, *HELLO]
    options = GenerationOptions(**{"temperature": 0, "max_tokens": 100, **options})
    remote = RemoteModel("default", Server(base_url=str(http.base_url)))
    here, there = model.reply(asked, options), remote.reply(asked, options)
    streamed = type(here).join(remote.stream(asked, options))
    remote.close()
    assert there == streamed
    assert (there.text, there.tool_calls) == (here.text, here.tool_calls)
    assert [each.token for each in there.logprobs] == [each.token for each in here.logprobs]
    assert [each.bytes for each in there.logprobs] == [each.bytes for each in here.logprobs]
