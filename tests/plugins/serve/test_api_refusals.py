"""What the API refuses, and in which words."""

from __future__ import annotations

import json

import openai
import pytest
from api_plugin import everything
from api_server import HELLO, client_of

from glmkit.testing import tiny_glm

pytestmark = [
    pytest.mark.network,
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    model = tiny_glm(tmp_path_factory.mktemp("tiny"))
    with client_of(everything(tmp_path_factory.mktemp("home"), model)) as client:
        yield client


@pytest.fixture(scope="module")
def client(http):
    return openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0, timeout=30)


TOOLS = [{"type": "function", "function": {"name": "x"}}]
WRONG = {
    "no messages": {"messages": []},
    "an unknown role": {"messages": [{"role": "ghost", "content": "x"}]},
    "nothing said": {"messages": [{"role": "user"}]},
    "a picture": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    "too many tokens": {"max_tokens": 401},
    "no tokens": {"max_tokens": 0},
    "too hot": {"temperature": 101},
    "too many answers": {"n": 9},
    "too many odds": {"logprobs": True, "top_logprobs": 21},
    "odds of nothing": {"top_logprobs": 2},
    "an unknown format": {"response_format": {"type": "xml"}},
    "no schema": {"response_format": {"type": "json_schema"}},
    "a schema of nothing": {"structured_outputs": {"json": {"enum": []}}},
    "what is not known in a schema": {"guided_json": {"uniqueItems": True}},
    "an expression that looks around": {"guided_regex": "(?=a)a"},
    "two formats": {"guided_regex": "a", "guided_choice": ["a"]},
    "another engine's grammar": {"structured_outputs": {"grammar": "root ::= x"}},
    "a call of who calls none": {"model": "echo", "tool_choice": "required", "tools": TOOLS},
    "a format of who knows none": {"model": "echo", "response_format": {"type": "json_object"}},
    "a call of nothing": {"tool_choice": "required"},
    "a penalty": {"presence_penalty": 0.5},
    "an empty stop": {"stop": [""]},
    "a tool that is not there": {"tool_choice": {"type": "function", "function": {"name": "x"}}},
    "half a character": {"messages": [{"role": "user", "content": "\ud800"}]},
    "an unknown field": {"tempreature": 1},
    "another engine's field": {"min_p": 0.1},
    "one call at a time": {"parallel_tool_calls": False},
    "too long a question": {"messages": [{"role": "user", "content": "x " * 2000}]},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_done_is_said_in_openais_shape(http, what):
    body = {"model": "default", "messages": HELLO, **WRONG[what]}
    response = http.post("/v1/chat/completions", content=json.dumps(body), headers=JSON)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert error["type"] == "invalid_request_error"
    body["stream"] = True
    streamed = http.post("/v1/chat/completions", content=json.dumps(body), headers=JSON)
    assert (streamed.status_code, streamed.json()) == (400, response.json())


JSON = {"Content-Type": "application/json"}


def test_errors_have_their_statuses(http, client):
    assert http.get("/v1/nothing").status_code == 404
    assert http.get("/v1/chat/completions").status_code == 405
    assert http.post("/v1/chat/completions", content=b"{", headers=JSON).status_code == 400
    assert http.post("/v1/chat/completions", content=b"[1" * 9999, headers=JSON).status_code == 400
    plain = http.post("/v1/chat/completions", content=b"{}", headers={"Content-Type": "text/plain"})
    assert plain.status_code == 400, "a page of another origin may send this without asking"
    untold = http.post("/v1/chat/completions", content=b"{}")
    assert untold.status_code == 400 and "Content-Type" in untold.json()["error"]["message"]
    large = http.post("/v1/chat/completions", content=b" " * 30_000, headers=JSON)
    assert large.status_code == 413 and large.json()["error"]["code"] == "too_large"
    parts = http.post("/v1/chat/completions", content=iter([b" " * 9_000] * 4), headers=JSON)
    assert parts.status_code == 413, "nobody said how much it would be"
    with pytest.raises(openai.NotFoundError, match="echo, scripted; /v1/models lists") as unknown:
        client.chat.completions.create(model="glm-9", messages=HELLO)
    assert unknown.value.code == "model_not_found"


def test_fields_that_are_not_known_are_named(http):
    def refused(path, **body):
        response = http.post(path, json=body)
        assert response.status_code == 400, response.text
        return response.json()["error"]

    error = refused("/v1/chat/completions", messages=HELLO, tempreature=1)
    assert error["param"] == "tempreature" and "did you mean temperature?" in error["message"]
    assert refused("/v1/images/generations", prompt="x", output_format="webp")["param"]
    assert refused("/v1/images/generations", prompt="x", stream=True)["param"] == "stream"
    assert refused("/v1/embeddings", input="x", pooling="mean")["param"] == "pooling"
    assert "\n" not in refused("/v1/embeddings", input="x", **{"a\nb" * 99: 1})["message"]
    harmless = {"user": "anna", "store": True, "service_tier": "auto", "min_p": 0, "top_a": None}
    body = {"messages": HELLO, "model": "echo", "parallel_tool_calls": True, **harmless}
    assert http.post("/v1/chat/completions", json=body).status_code == 200


def test_what_may_be_null_may_be_null(http):
    body = {"messages": HELLO, "model": "echo", "stream": None, "tools": None, "n": None}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    body |= {"stream": True, "stream_options": {"include_usage": None}}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    body = {"input": "x", "encoding_format": None, "dimensions": None}
    assert http.post("/v1/embeddings", json=body).status_code == 200
