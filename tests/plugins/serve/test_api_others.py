"""Embeddings, pictures and what is listed, as OpenAI's own client and plain HTTP see it."""

from __future__ import annotations

import base64
import threading

import anyio
import openai
import pytest
from api_plugin import everything
from api_server import client_of

from glmkit import BusyError, TimeLimitError
from glmkit.testing import EchoModel, HashEncoder
from glmkit_serve.api.others import _WAITING, _Aside

pytestmark = [
    pytest.mark.network,
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    with client_of(everything(tmp_path_factory.mktemp("home"), EchoModel())) as client:
        yield client


@pytest.fixture(scope="module")
def client(http):
    return openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0, timeout=30)


def test_embeddings_come_as_numbers_and_as_bytes(client, http):
    texts = ["a text", "another one"]
    found = client.embeddings.create(model="default", input=texts)  # the client asks for base64
    plain = http.post("/v1/embeddings", json={"model": "hash-8", "input": texts}).json()
    for at, each in enumerate(HashEncoder(8).encode(texts)):
        assert found.data[at].embedding == pytest.approx(each.tolist(), abs=1e-6)
        assert plain["data"][at]["embedding"] == pytest.approx(each.tolist(), abs=1e-6)
    assert found.usage.prompt_tokens == 4
    with pytest.raises(openai.NotFoundError, match="hash-8"):
        client.embeddings.create(model="text-embedding-3-small", input="x")
    with pytest.raises(openai.BadRequestError, match="not tokens"):
        client.embeddings.create(model="default", input=[1, 2])
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="default", input="x", dimensions=3)


def test_pictures_are_drawn(client):
    drawn = client.images.generate(prompt="red apple", n=2, size="64x64", extra_body={"seed": 3})
    assert [base64.b64decode(each.b64_json) for each in drawn.data] == [b"\x89PNG0", b"\x89PNG1"]
    assert drawn.data[0].revised_prompt == "red apple"
    assert [each.model_extra["seed"] for each in drawn.data] == [3, 4]
    for wrong in ({"size": "huge"}, {"size": "9999x9999"}, {"response_format": "url"}):
        with pytest.raises(openai.BadRequestError):
            client.images.generate(prompt="x", **wrong)
    with pytest.raises(openai.NotFoundError, match="painter"):
        client.images.generate(prompt="x", model="/etc")


def test_the_encoder_is_listed_under_a_name_that_embeds(client):
    (name,) = [each.id for each in client.models.list() if each.kind == "encoder"]
    assert client.models.retrieve(name).id == name
    assert client.embeddings.create(model=name, input="x").data


def test_threads_that_nobody_waits_for_keep_their_places():
    may, ended = threading.Event(), []

    def work(stop):
        may.wait(20)
        ended.append(stop.is_set())

    async def ask(aside):
        with pytest.raises(TimeLimitError):
            await aside.run(work)

    async def many():
        aside = _Aside(1)  # all have begun by then
        async with anyio.create_task_group() as group:
            for _ in range(_WAITING):
                group.start_soon(ask, aside)
        with pytest.raises(BusyError):
            await aside.run(work)
        may.set()
        with anyio.fail_after(20):
            while not aside.idle:
                await anyio.sleep(0.01)

    anyio.run(many)
    assert len(ended) <= _WAITING and all(ended)
