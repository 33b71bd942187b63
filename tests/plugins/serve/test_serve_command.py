"""``glmkit serve``: what it refuses, what it says, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from api_server import HELLO, events_of, running, serving_of, until

import glmkit_knowledge
import glmkit_serve
from glmkit import ConfigError, Spec, UsageError, hookimpl
from glmkit.models.tiny import tiny_checkpoint
from glmkit.testing import EchoModel, HashEncoder, make_app
from glmkit_serve.api.served import DEFAULT, Serving, Wanted
from glmkit_serve.command import serve, settings_of
from glmkit_serve.limits import check_exposure, is_local
from glmkit_serve.options import listening, named_paths
from glmkit_serve.settings import Settings

SILENT = {name: None for name in ("host", "port", "concurrency", "max_waiting", "max_tokens")}
SILENT |= {"timeout_s": None, "shutdown_s": None, "hosts": (), "origins": ()}


def load_echo(name: str, app: object) -> EchoModel:
    return EchoModel("The Nile is 6,650 kilometres long.")


def load_hash(name: str, app: object) -> HashEncoder:
    return HashEncoder()


class Parts:
    @hookimpl
    def register_models(self, register) -> None:
        register(Spec("parrot", "", f"{__name__}:load_echo"))

    @hookimpl
    def register_encoders(self, register) -> None:
        register(Spec("hash", "", f"{__name__}:load_hash"))


@pytest.fixture
def app(tmp_path):
    config = {"model": "parrot", "encoder": "hash"}
    plugins = {"serve": glmkit_serve, "knowledge": glmkit_knowledge, "parts": Parts()}
    return make_app(tmp_path / "home", config, **plugins)


def run(app, *arguments):
    serve.main([*arguments], obj=app, standalone_mode=False)


def test_others_need_a_key(app, monkeypatch):
    for host in ("0.0.0.0", "::", "192.168.1.7", "example.org"):
        with pytest.raises(UsageError, match="GLMKIT_API_KEYS"):
            run(app, "--host", host)
        check_exposure(host, ["sk-1"])
    assert all(map(is_local, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))


def test_keys_come_from_everywhere_and_are_shown_nowhere(tmp_path):
    config = {"api_keys": ("sk-env",), "plugins": {"serve": {"api_keys": ["sk-file"]}}}
    app = make_app(tmp_path, config, serve=glmkit_serve)
    settings = settings_of(app, ("sk-flag",), SILENT)
    assert settings.api_keys == ("sk-file", "sk-env", "sk-flag")
    assert "sk-" not in repr((settings, settings.door, app.config.api_keys and app.config))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"prot": 1}, "did you mean 'port'"),
        ({"port": 70000}, "port must be a whole number from 0 to 65535"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"api_keys": [1]}, "api_keys must be texts"),
        ({"api_keys": ["ключ"]}, "plain ASCII"),
        ({"max_tokens": True}, "max_tokens"),
    ],
)
def test_a_wrong_table_is_refused_at_the_start(tmp_path, table, said):
    with pytest.raises(ConfigError, match=said):
        make_app(tmp_path, {"plugins": {"serve": table}}, serve=glmkit_serve)


def test_names_and_paths(tmp_path):
    folder, odd = tmp_path / "a", tmp_path / "b=c" / "notes"
    folder.mkdir(), odd.mkdir(parents=True)
    assert named_paths("--kb", [f"docs={folder}"]) == {"docs": folder}
    assert named_paths("--kb", [str(folder), str(odd)]) == {"a": folder, "notes": odd}
    for wrong in (["absent"], ["=x"], ["docs="], [f"docs={tmp_path}/absent"], [folder, f"a={odd}"]):
        with pytest.raises(UsageError, match="--kb"):
            named_paths("--kb", [str(each) for each in wrong])
    with pytest.raises(UsageError, match="given twice"):
        Wanted(adapters={"a": Path("x")}, bases={"a": Path("y")})
    with pytest.raises(UsageError, match=DEFAULT):
        Wanted(bases={DEFAULT: Path("y")})


@pytest.mark.network
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_port_that_is_taken_is_told_before_anything_is_loaded(app):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="cannot listen .* choose another with --port"):
            run(app, "--port", str(taken.getsockname()[1]))
        with pytest.raises(UsageError, match="cannot listen"), listening("203.0.113.7", 1):
            pass


def test_knowledge_and_adapters_are_models_of_their_own(app, tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "rivers.md").write_text("# Rivers\n\nThe Nile is 6,650 kilometres long.\n")
    serving = Serving.open(app, Settings(), Wanted(bases={"handbook": docs}))
    try:
        question = [{"role": "user", "content": "How long is the Nile in kilometres?"}]
        reply = serving.named("handbook").live.reply(question)
        assert reply.text == "The Nile is 6,650 kilometres long. [1]"
        assert reply.sources[0].path == "rivers.md"
    finally:
        serving.close()
    with pytest.raises(UsageError, match="takes no adapters; leave 'low' out"):
        Serving.open(app, Settings(), Wanted(adapters={"low": docs}))


@pytest.mark.network
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_the_queue_is_answered_beside_the_api(tmp_path):
    from glmkit_serve.command import _application

    serving = serving_of(tmp_path / "home", EchoModel("as was asked"), api_keys=("sk-1",))
    database = f"sqlite:///{tmp_path / 'questions.db'}"
    with closing(serving), _application(serving, database) as web, running(web) as address:
        headers = {"Authorization": "Bearer sk-1"}
        with httpx.Client(base_url=address, verify=False, trust_env=False) as client:
            asked = {"question": "Is anybody there?"}
            assert client.post("/v1/queue/questions", json=asked).status_code == 401
            number = client.post("/v1/queue/questions", json=asked, headers=headers).json()["id"]
            one = f"/v1/queue/questions/{number}"
            until(lambda: client.get(one, headers=headers).json()["state"] == "done")
            assert client.get(one, headers=headers).json()["answer"] == "as was asked"
            named = asked | {"model": serving.live.name}
            assert client.post("/v1/queue/questions", json=named, headers=headers).is_success
            assert client.get("/health").status_code == 200
            serving.beside["queue"] = lambda: False
            health = client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "ended: queue")


@pytest.mark.network
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_server_that_is_told_to_stop_lets_answers_end(tmp_path):
    """SIGTERM while an answer is being written: it comes whole, and the process is gone."""
    folder = tiny_checkpoint(tmp_path / "tiny")
    command = [sys.executable, "-m", "glmkit", "serve", "--model", str(folder), "--port", "0"]
    environment = {**os.environ, "GLMKIT_HOME": str(tmp_path / "home"), "GLMKIT_OFFLINE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        address = re.search(r"http://\S+", line)
        assert address is not None and "as default, no key needed" in line, line
        body = {"messages": HELLO, "max_tokens": 300, "temperature": 0, "stream": True}
        found: list[dict] = []
        begun = threading.Event()

        def ask() -> None:
            url = f"{address[0]}/chat/completions"
            given = {"json": body, "timeout": 60, "trust_env": False, "verify": False}
            with httpx.stream("POST", url, **given) as response:
                found.extend(events_of(response, begun))

        thread = threading.Thread(target=ask)
        thread.start()
        assert begun.wait(60)
        process.send_signal(signal.SIGTERM)
        thread.join()
        process.wait(60)
        assert found[-1]["choices"][0]["finish_reason"] == "length"
        assert process.returncode in (0, -signal.SIGTERM)
        said = process.stderr.read()
        assert "POST /v1/chat/completions 200" in said and "Traceback" not in said
        assert "hello there" not in said
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(("host", "name"), [("127.0.0.2", "127.0.0.2"), ("::1", "[::1]")])
def test_a_server_answers_to_the_address_that_it_listens_at(host, name):
    settings = Settings(host=host, hosts=("Box.lan",))
    assert settings.door.hosts is not None and {name, "box.lan"} <= set(settings.door.hosts)
