"""What browsers may send: files that were uploaded, and nothing that is fetched from elsewhere."""

from __future__ import annotations

import json

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from glmkit_serve.web.inspection import Inspection, RefusedError, files_in

API = "/en/gradio_api"


async def uploaded(request: Request) -> Response:
    body = await request.body()
    return JSONResponse(["/kept/hash/a.md"] if body else ["/never"], 200 if body else 400)


async def heard(request: Request) -> Response:
    length = int(request.headers["content-length"])
    assert len(await request.body()) == length
    return JSONResponse(await request.json())


@pytest.fixture
def client():
    """Return a browser of something that takes whatever it is sent."""
    routes = [
        Route(f"{API}/upload", uploaded, methods=["POST"]),
        Route("/{path:path}", heard, methods=["POST"]),
    ]
    with TestClient(Inspection(Starlette(routes=routes))) as client:
        yield client


def join(client, event, way="queue/join"):
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    return client.post(f"{API}/{way}", content=body)


def test_only_what_was_uploaded_goes_on(client):
    event = {"data": [[{"path": "/kept/hash/a.md"}], "河"], "fn_index": 3}
    for way in ("queue/join", "run/add", "call/ask", "api/x"):
        assert join(client, event, way).status_code == 400
    client.post(f"{API}/upload", content=b"")
    assert join(client, {"path": "/never"}).status_code == 400  # nothing came of it
    client.post(f"{API}/upload", content=b"a file")
    answer = join(client, event)
    assert (answer.status_code, answer.json()) == (200, event)
    for path in ("http://127.0.0.1/a.md", "/etc/hostname", "/kept/hash/a.md/../b", None, 3, ["x"]):
        refused = join(client, {"data": ["x", {"deeper": [{"path": path}]}]})
        assert refused.status_code == 400 and "uploaded" in refused.text


def test_what_could_be_read_in_two_ways_is_read_in_one(client):
    answer = join(client, b"\xff\xfe" + '{"data": 1, "data": [2]}'.encode("utf-16-le"))
    assert answer.json() == {"data": [2]}


@pytest.mark.parametrize(
    ("way", "body", "status"),
    [
        ("queue/join", b"{", 400),
        ("queue/join", b"[" * 5000, 400),
        ("queue/join", json.dumps([[[]]] * 9).encode() + b" " * (4 << 20), 400),
        ("process_recording", b"", 403),
        ("vibe-edit/", b"{}", 403),
        ("component_server", b"{}", 403),
    ],
)
def test_what_the_page_never_sends_is_refused(client, way, body, status):
    assert join(client, body, way).status_code == status


def test_no_depth_hides_a_file():
    hidden: object = {"path": "x"}
    for _ in range(40):
        hidden = [{"value": hidden}]
    assert list(files_in(hidden)) == ["x"]
    for _ in range(40):
        hidden = [{"value": hidden}]
    with pytest.raises(RefusedError, match="nested"):
        list(files_in(hidden))
