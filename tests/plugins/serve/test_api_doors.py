"""Who is let in by the API, and what of its faults is told."""

from __future__ import annotations

import openai
import pytest
from api_server import HELLO, client_of, serving_of

from glmkit import Chunk, hookimpl
from glmkit.testing import EchoModel

pytestmark = [
    pytest.mark.network,
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.usefixtures("one_thread"),
]


class Breaking(EchoModel):
    def stream(self, messages, options=None):
        yield Chunk("half ")
        raise ZeroDivisionError("a secret of the server")


def test_a_bug_is_told_without_its_secrets(tmp_path, caplog):
    with client_of(serving_of(tmp_path, Breaking())) as http:
        whole = http.post("/v1/chat/completions", json={"messages": HELLO})
        assert whole.status_code == 500 and "secret" not in whole.text
        body = {"messages": HELLO, "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = [line for line in response.iter_lines() if line]
    assert '"type":"server_error"' in lines[-1] and "secret" not in "".join(lines)
    assert "ZeroDivisionError" in caplog.text


def test_nothing_is_drawn_without_a_plugin_that_draws(tmp_path):
    with client_of(serving_of(tmp_path, EchoModel())) as http:
        response = http.post("/v1/images/generations", json={"prompt": "x"})
    assert response.status_code == 503 and "glmkit[drawing]" in response.json()["error"]["message"]


def test_keys_open_the_door(tmp_path, caplog):
    keys = ("sk-first", "sk-second")
    with client_of(serving_of(tmp_path, EchoModel(), api_keys=keys)) as http:
        assert http.get("/health").status_code == 200
        for given in (None, "sk-first", "Bearer sk-firs", "Bearer", "Basic sk-first"):
            headers = {} if given is None else {"Authorization": given}
            refused = http.get("/v1/models", headers=headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
        for key in keys:
            sent = {"Authorization": f"Bearer {key}"}
            assert http.get("/v1/models", headers=sent).status_code == 200
        url = f"{http.base_url}/v1"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
    assert "sk-" not in caplog.text


def test_without_a_key_only_local_names_are_answered_and_no_other_page_reads(tmp_path):
    serving = serving_of(tmp_path, EchoModel(), hosts=("models.lan",))
    with client_of(serving) as http:
        for host, status in (("evil.example", 403), ("models.lan:80", 200), ("localhost", 200)):
            response = http.get("/v1/models", headers={"Host": host, "Origin": "http://a.example"})
            assert response.status_code == status
            assert "access-control-allow-origin" not in response.headers
    with client_of(serving_of(tmp_path, EchoModel(), origins=("http://a.example",))) as http:
        response = http.get("/v1/models", headers={"Origin": "http://a.example"})
        assert response.headers["access-control-allow-origin"] == "http://a.example"


def test_hook_register_routes(tmp_path):
    class Routes:
        @hookimpl
        def register_routes(self, router, serving):
            router.get("/mine")(lambda: {"names": list(serving.models)})

    serving = serving_of(tmp_path, EchoModel(), plugins={"mine": Routes()}, api_keys=("sk-1",))
    with client_of(serving) as http:
        assert http.get("/mine").status_code == 401
        told = http.get("/mine", headers={"Authorization": "Bearer sk-1"})
        assert told.json() == {"names": ["default"]}
