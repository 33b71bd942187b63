"""Downloads: resumed, retried, checked, and clear about what went wrong."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import Request

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from stand_in import Fault, Server, serve

from glmkit.console import drain
from glmkit.disk import explain_full_disk, require_space
from glmkit.download import RemoteFile, fetch
from glmkit.errors import SourceError
from glmkit.web import Http, _Redirects

pytestmark = [pytest.mark.network, pytest.mark.allow_hosts(["127.0.0.1"])]

CONTENT = random.Random(1).randbytes(3_000_000)
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
HTTP = Http(pause_s=0.001, timeout_s=5)


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as state:
        state.pages["/f"] = CONTENT
        yield state


def remote(server: Server, *, digest: str | None = SHA256, size: int | None = len(CONTENT)):
    return RemoteFile("f", f"{server.url}/f", size, digest)


def get(server: Server, target: Path, http: Http = HTTP, **how) -> None:
    drain(fetch(http, remote(server, **how), target, stage="downloading f"))


def one_line(error: pytest.ExceptionInfo[SourceError]) -> str:
    said = str(error.value)
    assert "\n" not in said
    return said


def test_a_download_reports_bytes_and_leaves_one_file(server, tmp_path):
    events = list(fetch(HTTP, remote(server), tmp_path / "f", stage="downloading f"))
    done = [each.done for each in events if each.stage == "downloading f"]
    assert done == sorted(done) and done[-1] == len(CONTENT)
    assert {each.total for each in events} == {len(CONTENT)}
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["f"]


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), digest=st.sampled_from([SHA256, None]), ranges=st.booleans())
def test_any_cuts_still_give_the_right_file(server, data, digest, ranges):
    lengths = st.integers(min_value=0, max_value=len(CONTENT) - 1)
    cuts = data.draw(st.lists(lengths, max_size=3))
    server.asked.clear()
    server.ranges = ranges
    server.faults["/f"] = [Fault(cut_after=each) for each in cuts]
    with TemporaryDirectory() as folder:
        get(server, Path(folder) / "f", digest=digest)
        assert (Path(folder) / "f").read_bytes() == CONTENT
    if digest and ranges:
        assert server.sent("/f") == len(CONTENT), "something was sent twice"


def test_the_next_call_goes_on_where_the_last_one_was_killed(server, tmp_path):
    work = fetch(HTTP, remote(server), tmp_path / "f", stage="downloading f")
    while next(work).done < 1_000_000:
        pass
    work.close()
    here = (tmp_path / "f.part").stat().st_size
    assert here > 0 and not (tmp_path / "f").exists()
    get(server, tmp_path / "f")
    assert server.headers("/f")[-1]["Range"] == f"bytes={here}-"
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_complete_part_is_only_checked(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT)
    get(server, tmp_path / "f")
    assert not server.asked
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [len(CONTENT), None], ids=["known-size", "unknown-size"])
@pytest.mark.parametrize("stale", [b"x" * 1000, b"x" * (len(CONTENT) + 5)], ids=["short", "long"])
def test_a_part_of_some_other_file_is_thrown_away(server, tmp_path, stale, size):
    (tmp_path / "f.part").write_bytes(stale)
    get(server, tmp_path / "f", size=size)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_damaged_file_of_the_right_name_is_replaced(server, tmp_path):
    (tmp_path / "f").write_bytes(CONTENT[:-1] + b"?")
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_wrong_checksum_deletes_the_file_and_names_both(server, tmp_path):
    wrong = "sha256:" + "0" * 64
    with pytest.raises(SourceError) as error:
        get(server, tmp_path / "f", digest=wrong)
    said = one_line(error)
    assert SHA256 in said and wrong in said and "deleted" in said
    assert os.listdir(tmp_path) == []


def test_git_blob_ids_are_checked_too(server, tmp_path):
    blob = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    get(server, tmp_path / "f", digest=f"git:{blob}")
    with pytest.raises(SourceError, match="wrong checksum"):
        get(server, tmp_path / "g", digest="git:" + "0" * 40)


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.faults["/f"] = [Fault(429, {"Retry-After": "0"}), Fault(503), Fault(500), Fault(502)]
    get(server, tmp_path / "f")
    assert len(server.asked) == 5


def test_the_servers_wish_to_wait_is_honoured(server, tmp_path, monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    server.faults["/f"] = [Fault(429, {"Retry-After": "7"}), Fault(503, {"Retry-After": "9999"})]
    get(server, tmp_path / "f")
    assert slept == [7.0, 60.0]


def test_any_number_of_cuts_is_fine_as_long_as_it_goes_on(server, tmp_path):
    server.faults["/f"] = [Fault(cut_after=200_000)] * 12
    get(server, tmp_path / "f")
    assert len(server.asked) == 13 and server.sent("/f") == len(CONTENT)


def test_giving_up_keeps_what_is_here_and_says_how_to_go_on(server, tmp_path):
    server.faults["/f"] = [Fault(cut_after=1_000_000)] + [Fault(503)] * 9
    with pytest.raises(SourceError) as error:
        get(server, tmp_path / "f")
    assert "after 1000000 bytes" in one_line(error) and "run the same command" in str(error.value)
    assert (tmp_path / "f.part").stat().st_size == 1_000_000
    server.faults.clear()
    get(server, tmp_path / "f")
    assert server.sent("/f") == len(CONTENT)


@pytest.mark.parametrize(
    ("status", "says"),
    [(404, "has no /f"), (401, "HF_TOKEN"), (403, "terms"), (400, "answered 400"), (410, "no /f")],
)
def test_a_refusal_is_final(server, tmp_path, status, says):
    server.faults["/f"] = [Fault(status)]
    http = Http(token="secret-token", pause_s=0.001)
    with pytest.raises(SourceError, match=says) as error:
        get(server, tmp_path / "f", http)
    assert "secret-token" not in one_line(error)
    assert len(server.asked) == 1


def test_a_changed_size_is_refused(server, tmp_path):
    with pytest.raises(SourceError, match="should have 5 bytes, but the server offers 3000000"):
        get(server, tmp_path / "f", size=5)


def test_a_server_that_falls_silent_is_asked_again(server, tmp_path):
    server.faults["/f"] = [Fault(cut_after=1_000_000, stall_s=0.6)]
    get(server, tmp_path / "f", Http(pause_s=0.001, timeout_s=0.2))
    assert server.headers("/f")[-1]["Range"] == "bytes=1000000-"
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_more_than_was_promised_is_refused(server, tmp_path):
    server.faults["/f"] = [Fault(more=b"!")]
    with pytest.raises(SourceError, match="should have 3000000 bytes, but the server sent 3000001"):
        get(server, tmp_path / "f")
    assert os.listdir(tmp_path) == []


def test_an_empty_file(server, tmp_path):
    empty = "git:e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    get(server, tmp_path / "f", size=0, digest=empty)
    assert (tmp_path / "f").read_bytes() == b""


def test_nobody_listening(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/f"
    with pytest.raises(
        SourceError, match="broke off after 0 bytes: the connection to 127"
    ) as error:
        drain(fetch(HTTP, RemoteFile("f", url, 5, SHA256), tmp_path / "f", stage="s"))
    one_line(error)


def test_an_unknown_host_names_the_mirrors(tmp_path, monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    file = RemoteFile("f", "https://hub.invalid/f", 5, SHA256)
    with pytest.raises(SourceError, match=r"cannot find the server hub\.invalid.*HF_ENDPOINT"):
        drain(fetch(HTTP, file, tmp_path / "f", stage="s"))


@pytest.mark.parametrize("url", ["ftp://host/f", "data:,x", "/etc/passwd", "C:/f"])
def test_other_schemes_are_refused(tmp_path, url):
    with pytest.raises(SourceError, match="cannot download"):
        drain(fetch(HTTP, RemoteFile("f", url, 5, SHA256), tmp_path / "f", stage="s"))


def test_the_token_stays_with_its_server(server, tmp_path):
    with serve() as other:
        other.pages["/f"] = CONTENT
        server.redirects["/away"] = (302, f"{other.url}/f")
        server.redirects["/moved"] = (308, "/f")
        http = Http(token="secret", pause_s=0.001)
        http.read(f"{server.url}/away")
        http.read(f"{server.url}/moved")
        assert "Authorization" not in other.headers("/f")[0]
    assert server.headers("/away")[0]["Authorization"] == "Bearer secret"
    assert server.headers("/f")[0]["Authorization"] == "Bearer secret"


def test_a_redirect_out_of_encryption_is_refused():
    with pytest.raises(SourceError, match="not encrypted"):
        _Redirects().redirect_request(
            Request("https://hub/f"), None, 302, "Found", {}, "http://hub/f"
        )


def test_an_answer_that_is_no_json(server):
    with pytest.raises(SourceError, match="did not answer JSON"):
        HTTP.json(f"{server.url}/f")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_names_folder_and_bytes(server, tmp_path):
    (tmp_path / "f.part").symlink_to("/dev/full")
    with pytest.raises(SourceError) as error:
        get(server, tmp_path / "f")
    said = one_line(error)
    assert "disk is full" in said and str(tmp_path) in said and "3000000 bytes" in said


def test_too_little_space_is_said_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1_000))
    require_space(tmp_path / "not" / "yet", 1_000)
    with pytest.raises(SourceError, match=r"needs 0\.0 MB \(234 bytes\) more"):
        require_space(tmp_path / "not" / "yet", 1_234)


def test_only_a_full_disk_is_called_one(tmp_path):
    from safetensors import SafetensorError

    for full in (OSError(errno.ENOSPC, "x"), SafetensorError("I/O: No space left on device")):
        with pytest.raises(SourceError, match="disk is full"), explain_full_disk(tmp_path):
            raise full
    with pytest.raises(PermissionError), explain_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_a_folder_nobody_may_write_is_no_network_problem(server, tmp_path):
    (tmp_path / "f.part").mkdir()
    with pytest.raises(OSError) as error:
        get(server, tmp_path / "f", size=None)
    assert error.value.errno == errno.EISDIR or sys.platform == "win32"
