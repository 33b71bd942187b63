"""Where a server is: addresses, keys, settings, and what a server is asked at first."""

from __future__ import annotations

import pytest
from chat_server import HELLO, KEY, one_line

from glmkit import (
    Server,
)
from glmkit.config import Config
from glmkit.errors import ConfigError, OfflineError, ServerError, UsageError
from glmkit.remote.faults import ShutError
from glmkit.remote.model import RemoteModel, connect

pytestmark = [
    pytest.mark.network,
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.usefixtures("hurry"),
]


@pytest.mark.parametrize("base", ["/v1", "", "/api/v3", "/llm", "/llm/v1"])
def test_the_address_may_lack_its_v1(server, base):
    server.base = base
    model = connect(None, Server(server.url + base.removesuffix("/v1") + "/"))
    assert model.name == "tiny" and model.reply(HELLO).text == "echo hello there"
    assert connect(None, Server(server.url + base)).reply(HELLO).text == "echo hello there"


def test_a_login_in_the_address_is_sent_and_never_shown(server):
    url = server.url.replace("//", f"//me:{KEY}@")
    model = RemoteModel("tiny", Server(url))
    model.reply(HELLO)
    assert server.headers[-1]["Authorization"].startswith("Basic ")
    assert KEY not in repr(model.server) + model.server.shown


@pytest.mark.parametrize(
    "url",
    [
        "http://me:topsecret/x@host/v1",
        "http://me:topsecret#word@host/v1",
        "https://me:topsecret?x@host",
        "ftp://me:topsecret/x@h",
        "http://me:123#topsecret@host/v1",
        "http://me:a@topsecret/x@host/v1",
    ],
)
def test_a_password_that_makes_an_address_unreadable_is_not_quoted(url):
    with pytest.raises(UsageError, match="cannot be read; .* write %2F for /") as found:
        Server(url)
    assert "topsecret" not in str(found.value) and "123" not in str(found.value)


@pytest.mark.parametrize(
    "host",
    [
        "a..b",
        "a" * 64,
        "ex\tample",
        "host\x7f",
        "exa mple.com",
        "h%20",
        "a,b",
        "[::g]",
        "ho\u2028st",
    ],
)
def test_a_host_that_cannot_be_is_refused_at_once(host):
    with pytest.raises(UsageError, match="base URL (cannot be read|names '[^']*', which no)"):
        Server(f"http://{host}/v1")


@pytest.mark.parametrize("url", ["http://ho\u0661st/v1", "http://h/" + "x" * 70_000])
def test_an_address_that_only_the_client_refuses_ends_a_job(url):
    with pytest.raises(ShutError, match="is no address"):
        RemoteModel("tiny", Server(url)).reply(HELLO)


def test_a_name_in_other_letters_is_one():
    assert Server("http://m\u00fcnchen.example./v1").shown == "http://m\u00fcnchen.example./v1"


def test_a_key_and_a_login_are_refused_together():
    with pytest.raises(UsageError, match=r"one header holds either; unset OPENAI_API_KEY") as found:
        connect("x", Server("http://me:topsecret@host/v1", KEY))
    assert "topsecret" not in one_line(found)


def test_what_a_server_says_is_repeated_without_secrets():
    server = Server("http://me:a%2Fb@host/v1?token=0123456789&v=2")
    said = server.hidden("a/b a%2Fb Basic bWU6YS9i 0123456789, v is 2")
    assert said == "*** *** Basic *** ***, v is 2"
    assert Server("http://host", KEY).hidden(f"Bearer {KEY}.") == "Bearer ***."
    assert "topsecret" not in repr(Server(extra={"token": "topsecret"}))


def test_a_list_of_models_that_is_none(server):
    for listing in ({"data": 5}, {"data": True}, {"data": {"a": 1}}):
        server.listing = listing
        with pytest.raises(ServerError, match="no list of models"):
            connect(None, Server(server.url))
    server.listing = {"data": [{"id": "x\x1b[2J"}, {"id": None}, "y", {"id": "tiny"}]}
    assert connect(None, Server(server.url)).name == "tiny"


def test_a_wrong_path_is_told_from_an_unknown_model(server):
    with pytest.raises(ShutError, match="404: Not Found; check the base URL"):
        RemoteModel("tiny", Server(server.url + "/else/v1")).reply(HELLO)


def test_without_a_name_the_only_model_answers(server):
    model = connect(None, Server(server.url))
    assert model.name == "tiny"
    server.models = ["b", "a"]
    with pytest.raises(UsageError, match="has 2 models; name one with --model: b, a"):
        connect(None, Server(server.url))
    server.models = []
    with pytest.raises(ServerError, match="has no model"):
        connect(None, Server(server.url))
    with pytest.raises(ServerError, match="cannot list the models: .*name one with --model"):
        connect(None, Server(server.url + "/else/v1"))


def test_what_belongs_to_other_engines_is_refused(server):
    with pytest.raises(UsageError, match="takes no quantize"):
        connect("x", Server(server.url), quantize="int4", device=None)
    with pytest.raises(UsageError, match="--lora-modules"):
        connect("x", Server(server.url), adapter="folder")
    with pytest.raises(UsageError, match="needs the address of a server"):
        connect("x", Server())


def test_offline_keeps_to_this_machine(server):
    assert connect(None, Server(server.url), offline=True).reply(HELLO).text
    with pytest.raises(OfflineError, match="--online"):
        connect("x", Server("http://models.example:8000"), offline=True)


def test_extra_fields_go_into_every_request(server):
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    RemoteModel("tiny", Server(server.url, extra=extra)).reply(HELLO)
    assert server.asked[-1]["chat_template_kwargs"] == {"enable_thinking": False}


def test_the_server_comes_from_file_and_environment(tmp_path):
    file = tmp_path / "glmkit.toml"
    file.write_text(
        'engine = "openai"\n[openai]\nbase_url = "http://a/v1"\ntimeout_s = 5\n'
        "[openai.extra]\nmin_p = 0.1\n"
    )
    config = Config.load(file, environment={"OPENAI_API_KEY": KEY})
    assert config.openai == Server("http://a/v1", KEY, timeout_s=5, extra={"min_p": 0.1})
    assert KEY not in repr(config)
    assert Config.load(file, environment={"OPENAI_BASE_URL": "http://b"}).openai.shown == "http://b"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('base_url = "ftp://x"', "http://"),
        ("base_urls = 1", "did you mean 'base_url'"),
        ('api_key = "sk-1"', "set OPENAI_API_KEY"),
        ("timeout_s = 0", "timeout_s must be a number above 0"),
        ("tokens_per_minute = -1", "tokens_per_minute must be"),
        ("extra = { messages = 1 }", "cannot set messages"),
        ('base_url = "http://[::1"', "base URL"),
    ],
)
def test_wrong_settings_are_named(tmp_path, table, said):
    file = tmp_path / "glmkit.toml"
    file.write_text(f"[openai]\n{table}\n")
    with pytest.raises(ConfigError, match=said) as found:
        Config.load(file, environment={})
    assert "sk-1" not in str(found.value)


def test_a_damaged_key_is_refused_unsaid():
    with pytest.raises(UsageError, match="copy it again") as found:
        Server("http://x", "sk-1234\n")
    assert "1234" not in str(found.value)


@pytest.mark.parametrize(
    ("url", "first", "second"),
    [
        ("http://h:1", "http://h:1/v1/models", "http://h:1/models"),
        ("http://h:1/v1/", "http://h:1/v1/models", None),
        ("http://h/v1/chat/completions", "http://h/v1/models", None),
        ("https://o.cn/api/paas/v4/", "https://o.cn/api/paas/v4/models", None),
        ("https://g/v1beta/openai", "https://g/v1beta/openai/models", None),
        ("http://u:p@h/x?v=2", "http://h/x/v1/models?v=2", "http://h/x/models?v=2"),
        ("http://[::1]:8/v1", "http://[::1]:8/v1/models", None),
    ],
)
def test_addresses(url, first, second):
    assert Server(url).addresses("/models") == tuple(filter(None, (first, second)))


@pytest.mark.parametrize(
    ("url", "local"),
    [("http://localhost:1", True), ("http://[::1]", True), ("http://127.9.9.9/v1", True)]
    + [("http://10.0.0.1", False), ("https://localhost.example", False)],
)
def test_what_is_on_this_machine(url, local):
    assert Server(url).local is local
