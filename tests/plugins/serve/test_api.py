"""The API as OpenAI's own client and plain HTTP see it."""

from __future__ import annotations

import json
import re
import threading

import openai
import pytest
from api_plugin import everything
from api_server import HELLO, client_of, events_of, serving_of, until
from tiny_adapters import lora

from glmkit import GenerationOptions
from glmkit.testing import tiny_glm
from glmkit_serve.api.served import Served

pytestmark = [
    pytest.mark.network,
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.usefixtures("one_thread"),
]

GREEDY = {"temperature": 0, "max_tokens": 8}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = tiny_glm(tmp_path_factory.mktemp("tiny"))
    model.add_adapter(lora(model), "low")
    model.set_adapter(None)
    return model


@pytest.fixture(scope="module")
def serving(tmp_path_factory, model):
    found = everything(tmp_path_factory.mktemp("home"), model)
    found.models["low"] = Served("low", "adapter", found.live, "low", root=model.name)
    return found


@pytest.fixture(scope="module")
def http(serving):
    with client_of(serving) as client:
        yield client


@pytest.fixture(scope="module")
def client(http):
    return openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0, timeout=30)


def test_a_chat_is_what_the_model_says(client, model):
    answer = client.chat.completions.create(model="default", messages=HELLO, **GREEDY)
    reply = model.reply(HELLO, GenerationOptions(**GREEDY))
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (reply.text, "length")
    assert (choice.message.role, choice.message.tool_calls) == ("assistant", None)
    assert answer.id.startswith("chatcmpl-") and answer.model == "default"
    usage = (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert usage == (reply.usage.prompt_tokens, reply.usage.completion_tokens)


def test_a_stream_says_the_same_and_counts_where_it_is_asked_to(client):
    whole = client.chat.completions.create(model="default", messages=HELLO, **GREEDY)
    given = {"stream": True, "stream_options": {"include_usage": True}}
    pieces = list(
        client.chat.completions.create(model="default", messages=HELLO, **GREEDY, **given)
    )
    said = "".join(each.choices[0].delta.content or "" for each in pieces if each.choices)
    assert said == whole.choices[0].message.content
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [each.choices[0].finish_reason for each in pieces if each.choices][-1] == "length"
    assert pieces[-1].choices == [] and pieces[-1].usage == whole.usage
    assert len({each.id for each in pieces}) == 1
    plain = list(
        client.chat.completions.create(model="default", messages=HELLO, **GREEDY, stream=True)
    )
    assert all(each.usage is None and each.choices for each in plain)


def test_several_answers_have_seeds_of_their_own(client):
    given = {"model": "default", "messages": HELLO, "max_tokens": 8, "temperature": 1.0}
    answer = client.chat.completions.create(**given, n=3, seed=5)
    texts = [each.message.content for each in answer.choices]
    assert [each.index for each in answer.choices] == [0, 1, 2] and len(set(texts)) == 3
    again = client.chat.completions.create(**given, seed=6)
    assert again.choices[0].message.content == texts[1]
    assert answer.usage.completion_tokens == 24
    assert answer.usage.prompt_tokens == again.usage.prompt_tokens
    streamed = ["", "", ""]
    for piece in client.chat.completions.create(**given, n=3, seed=5, stream=True):
        streamed[piece.choices[0].index] += piece.choices[0].delta.content or ""
    assert streamed == texts


def test_a_stop_text_ends_the_answer(client):
    given = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
    answer = client.chat.completions.create(**given, max_completion_tokens=2)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (
        "one two ",
        "length",
    )
    tiny = client.chat.completions.create(model="default", messages=HELLO, **GREEDY)
    letter = tiny.choices[0].message.content[2]
    stopped = client.chat.completions.create(model="default", messages=HELLO, stop=letter, **GREEDY)
    assert stopped.choices[0].message.content == tiny.choices[0].message.content.split(letter)[0]
    assert stopped.choices[0].finish_reason == "stop"


def test_an_adapter_is_a_model_of_its_own(client, model):
    said = {
        name: client.chat.completions.create(model=name, messages=HELLO, **GREEDY)
        for name in ("default", "low", model.name)
    }
    texts = {name: each.choices[0].message.content for name, each in said.items()}
    assert texts["default"] == texts[model.name] != texts["low"]
    assert texts["low"] == model.reply(HELLO, GenerationOptions(adapter="low", **GREEDY)).text
    listed = [each.id for each in client.models.list()]
    assert listed == ["default", "echo", "scripted", "low", "hashes"]
    assert client.models.retrieve("low").id == "low"


def test_tools_go_there_and_back(client):
    asked = [{"role": "user", "content": "What is the weather?"}]
    answer = client.chat.completions.create(model="scripted", messages=asked, tools=[TOOL])
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "weather",
        {"city": "北京"},
    )
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    turns = [*asked, choice.message, result]
    final = client.chat.completions.create(model="scripted", messages=turns, tools=[TOOL])
    assert final.choices[0].message.content == "It is sunny."
    assert final.model_extra["sources"] == [
        {"path": "news.md", "location": "line 3", "score": 0.9, "text": "sun all day"}
    ]


def test_tools_are_streamed(client):
    asked = {"model": "scripted", "messages": HELLO, "tools": [TOOL, TOOL], "stream": True}
    pieces = list(client.chat.completions.create(**asked))
    calls = [call for each in pieces for call in each.choices[0].delta.tool_calls or ()]
    assert [(each.index, each.function.name) for each in calls] == [(0, "weather"), (1, "weather")]
    assert len({each.id for each in calls}) == 2
    assert pieces[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("auto", ["weather", "time"]),
        ("none", []),
        ("required", ["weather", "time"]),
        ({"type": "function", "function": {"name": "time"}}, ["time"]),
    ],
)
def test_the_choice_narrows_the_offer(client, choice, called):
    tools = [TOOL, {"type": "function", "function": {"name": "time"}}]
    given = {"model": "scripted", "messages": HELLO, "tools": tools, "tool_choice": choice}
    calls = client.chat.completions.create(**given).choices[0].message.tool_calls or ()
    assert [each.function.name for each in calls] == called


def test_texts_are_gone_on_with(client, model):
    given = {"model": "default", **GREEDY}
    answer = client.completions.create(prompt=["go on", "and on"], n=2, **given)
    ids = model.tokenizer.wrap(model.tokenizer.encode("go on"))
    said = model.tokenizer.decode(model.generate_ids(ids, 8)).rstrip("\ufffd")  # half a character
    assert [each.text for each in answer.choices[:2]] == [said, said]
    assert [each.index for each in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.completion_tokens == 32 and answer.id.startswith("cmpl-")
    streamed = client.completions.create(prompt="go on", stream=True, echo=True, **given)
    assert "".join(each.choices[0].text for each in streamed) == f"go on{said}"
    with pytest.raises(openai.BadRequestError, match="plain text"):
        client.completions.create(prompt="go on", model="echo")


def test_health_and_metrics_tell_what_is_going_on(http):
    until(lambda: not http.get("/health").json()["running"])  # what others left has gone
    assert http.get("/health").json() == {
        "status": "ok",
        "model": "tiny0",
        "running": 0,
        "waiting": 0,
    } | {"model": http.get("/health").json()["model"]}
    http.post("/v1/chat/completions", json={"messages": HELLO, **GREEDY})
    http.get("/a/path/that/somebody/made/up")
    told = http.get("/metrics").text
    assert re.search(r'glmkit_tokens_total\{kind="completion",model="default"\} \d', told)
    assert 'glmkit_requests_total{route="/v1/chat/completions",status="200"}' in told
    assert "made/up" not in told and "hello there" not in told


def ended(http, reason):
    """Return how many answers of the model have ended in a way."""
    told = http.get("/metrics").text
    found = re.search(rf'glmkit_answers_total{{model="default",reason="{reason}"}} (\d+)', told)
    return int(found[1]) if found else 0


def test_a_client_that_leaves_frees_its_row(http, serving):
    body = {"messages": HELLO, "max_tokens": 400, "temperature": 0, "stream": True}
    whole, before = ended(http, "length"), ended(http, "cancelled")
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        next(response.iter_lines())
        assert serving.live.running == 1
    until(lambda: serving.live.running == 0)
    with pytest.raises(Exception, match="timed out"):
        http.post("/v1/chat/completions", json={**body, "stream": False}, timeout=0.05)
    until(lambda: serving.live.running == 0)
    until(lambda: ended(http, "cancelled") == before + 2)
    assert ended(http, "length") == whole


def test_a_full_queue_says_come_again(http, serving):
    options = GenerationOptions(max_tokens=400, temperature=0)
    tickets = [serving.live.ask(HELLO, options, wake=lambda: None) for _ in range(8)]
    try:
        response = http.post("/v1/chat/completions", json={"messages": HELLO, **GREEDY})
        assert response.status_code == 429
        assert response.headers["Retry-After"] == "2"
        assert response.json()["error"]["type"] == "rate_limit_error"
    finally:
        for each in tickets:
            each.close()
    until(lambda: serving.live.running == 0)


def test_an_answer_has_its_time(tmp_path, model):
    with client_of(serving_of(tmp_path, model, timeout_s=0.1)) as http:
        body = {"messages": HELLO, "max_tokens": 450, "temperature": 0}
        response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 504 and response.json()["error"]["code"] == "timeout"


def test_what_runs_may_end_while_the_server_stops(tmp_path, model):
    serving = serving_of(tmp_path, model)
    found = []
    body = {"messages": HELLO, "max_tokens": 100, "temperature": 0, "stream": True}

    def ask(http):
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            found.extend(events_of(response))

    with client_of(serving) as http:
        thread = threading.Thread(target=ask, args=(http,))
        thread.start()
        until(lambda: serving.live.running == 1)
        serving.draining = True
        refused = http.post("/v1/chat/completions", json={"messages": HELLO})
        assert refused.status_code == 503 and http.get("/health").status_code == 503
        until(lambda: len(found) > 3 or not thread.is_alive())
        thread.join()
    assert found[-1]["choices"][0]["finish_reason"] == "length"
    assert not serving.live._threads[0].is_alive()


def test_the_engine_that_asks_servers_finds_itself_at_home(http, model):
    from glmkit.remote.model import RemoteModel
    from glmkit.servers import Server

    with_server = RemoteModel("default", Server(base_url=str(http.base_url)))
    options = GenerationOptions(**GREEDY)
    assert with_server.reply(HELLO, options) == model.reply(HELLO, options)
    with_server.close()
