"""What visitors bring in, who is let in, and what may be set."""

import asyncio
import base64
import os
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from glmkit import ConfigError
from glmkit_serve.limits import own_names
from glmkit_serve.settings import Settings
from glmkit_serve.web.entrance import Entrance
from glmkit_serve.web.settings import WebSettings
from glmkit_serve.web.uploads import Limits, documents_in, safe_name, take_in


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd.txt", "passwd.txt"),
        ("C:\\Users\\me\\notes.md", "notes.md"),
        ("/etc/cron.d/x.txt", "x.txt"),
        (".hidden.md", "hidden.md"),
        ("..", None),
        ("...txt", "txt"),
        ("", None),
        ("河流 rivers.pdf", "河流 rivers.pdf"),
        ("a\u202efdp.txt", "afdp.txt"),
        ("a\x00b\n.txt", "ab.txt"),
        ("x" * 300 + ".txt", "x" * 96 + ".txt"),
        ("what?*.md", "what.md"),
    ],
)
def test_names_of_documents_are_made_safe(sent, kept):
    assert safe_name(sent) == kept


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_no_name_leads_out_of_its_folder(sent):
    name = safe_name(sent)
    if name is not None:
        assert Path(name).name == name and not name.startswith(".") and len(name) <= 100 + len(sent)
        assert not set(name) & set('/\\\0:*?"<>|') and safe_name(name) == name


LIMITS = Limits(max_bytes=100, max_files=3)


def test_plain_files_are_taken_and_nothing_else(tmp_path):
    sent, folder = tmp_path / "sent", tmp_path / "kept"
    sent.mkdir()
    for name, text in {"a.md": "A", "b.exe": "B", "c.md": "c" * 101, "d.md": ""}.items():
        (sent / name).write_text(text)
    secret = tmp_path / "secret.md"
    secret.write_text("secret")
    (sent / "link.md").symlink_to(secret)
    (sent / "folder.md").mkdir()
    os.mkfifo(sent / "pipe.md")
    taken = take_in([*sorted(sent.iterdir()), sent / "gone.md"], folder, LIMITS)
    assert taken.added == ["a.md"] and documents_in(folder) == ["a.md"]
    assert dict((name, key) for key, name in taken.refused) == {
        "b.exe": "bad_type",
        "c.md": "too_large",
        "d.md": "empty_file",
        "folder.md": "bad_file",
        "gone.md": "bad_file",
        "link.md": "bad_file",
        "pipe.md": "bad_file",
    }
    assert [each.name for each in folder.iterdir()] == ["a.md"]


def test_no_more_documents_than_may_be_but_newer_ones_replace_older_ones(tmp_path):
    folder = tmp_path / "kept"
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("old")
        taken = take_in([tmp_path / f"{number}.txt"], folder, LIMITS)
    assert taken.refused == [("too_many", "3.txt")] and len(documents_in(folder)) == 3
    (tmp_path / "0.txt").write_text("new")
    assert take_in([tmp_path / "0.txt"], folder, LIMITS).added == ["0.txt"]
    assert (folder / "0.txt").read_text() == "new"


def test_a_link_in_the_folder_is_replaced_not_followed(tmp_path):
    folder, secret = tmp_path / "kept", tmp_path / "secret.txt"
    folder.mkdir()
    secret.write_text("keep me")
    (folder / "a.txt").symlink_to(secret)
    (tmp_path / "a.txt").write_text("mine")
    take_in([tmp_path / "a.txt"], folder, LIMITS)
    assert secret.read_text() == "keep me" and not (folder / "a.txt").is_symlink()


# -- who may come in -------------------------------------------------------------------------------


def answered(entrance, path="/", method="GET", **headers):
    """Return status and headers of what an ASGI application answers."""
    sent = []

    async def ask_it():
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": raw}
        await entrance(scope, None, collect)

    async def collect(message):
        sent.append(message)

    asyncio.run(ask_it())
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


async def inside(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"in"})


def basic(text):
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


def test_a_key_is_asked_for_as_password():
    locked = Entrance(inside, ("key-1", "ключ"), None)
    assert answered(locked, **basic("anybody:key-1"))[0] == 200
    assert answered(locked, **basic(":ключ"))[0] == 200
    wrong = (basic("key-1"), basic("a:key-2"), basic("a:"), {"Authorization": "Basic ?"}, {})
    for headers in (*wrong, {"Authorization": "Bearer key-1"}):
        status, told = answered(locked, "/en/gradio_api/upload", **headers)
        assert status == 401 and told["www-authenticate"].startswith("Basic")


def test_without_a_key_only_local_names_are_answered():
    door = Entrance(inside, (), own_names("127.0.0.2", ["Box.lan"]))
    for host in ("127.0.0.1:7860", "localhost", "[::1]:7860", "BOX.lan:7860", "127.0.0.2:7860"):
        assert answered(door, Host=host)[0] == 200
    for host in ("evil.example", "127.0.0.1.evil.example:7860", ""):
        assert answered(door, Host=host)[0] == 403
    assert "default-src 'self'" in answered(door, Host="localhost")[1]["content-security-policy"]


def test_who_listens_at_an_address_answers_to_it():
    for host, name in (("127.0.0.2", "127.0.0.2"), ("::1", "[::1]"), ("localhost", "localhost")):
        assert name in Settings(host=host).door.hosts


HERE = {"Host": "127.0.0.1:7860"}
FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:8000"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:7860"},
]
OWN = [
    {},
    {"Origin": "http://127.0.0.1:7860"},
    {"Origin": "https://chat.example.org"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://somewhere.example"},
    {"Sec-Fetch-Site": "none"},
]


def test_pages_elsewhere_can_neither_send_nor_embed_but_may_link():
    door = Entrance(inside, (), own_names("127.0.0.1"), proxies=("chat.example.org",))
    for headers in FOREIGN:
        assert answered(door, method="POST", **HERE, **headers)[0] == 403, headers
    for headers in OWN:
        assert answered(door, method="POST", **HERE, **headers)[0] == 200, headers
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert answered(door, **HERE, **link)[0] == 200
    assert answered(door, method="POST", **HERE, **link)[0] == 403
    assert answered(door, **HERE, **{**link, "Sec-Fetch-Mode": "no-cors"})[0] == 403


def test_settings_are_checked():
    assert WebSettings.of({"port": 1}, port=2, host=None).port == 2
    for table, said in (
        ({"prot": 1}, "did you mean 'port'"),
        ({"port": "x"}, "port .* must be a whole number"),
        ({"uploads": 1}, "uploads .* true or false"),
        ({"host": " "}, "host .* an address"),
        ({"hosts": [" "]}, "hosts .* must be texts"),
        ({"feedback": 3}, "feedback .* a file"),
        ({"max_file_mb": True}, "max_file_mb"),
    ):
        with pytest.raises(ConfigError, match=said):
            WebSettings.of(table)
    with pytest.raises(ConfigError, match="must be a table"):
        WebSettings.of(3)
