"""Files over HTTP: resumed where they were cut, retried, and checked before they count.

A file grows under the name ``<name>.part``. It gets its own name only after its checksum agreed,
so whatever has its own name is whole.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .disk import explain_full_disk
from .errors import SourceError
from .store import MEGABYTE, hash_file
from .types import Progress
from .web import Http, RangeError, TransientError, blocks, host_of


@dataclass(frozen=True)
class RemoteFile:
    """A file that a server offers."""

    path: str
    """Its name relative to the folder it goes to."""
    url: str
    size: int | None = None
    """In bytes, where the server said."""
    digest: str | None = None
    """``"sha256:<hex>"`` or ``"git:<hex>"``; without one a cut download starts over."""


def fetch(
    http: Http, file: RemoteFile, target: Path, *, stage: str
) -> Generator[Progress, None, None]:
    """Download ``file`` to ``target``, going on where an earlier try stopped.

    :param stage: what to call this work in progress events.
    :raises SourceError: if it fails for good; what was downloaded stays for the next time, except
        after a wrong checksum.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    if target.exists():
        target.replace(part)
    if file.digest is None:
        part.unlink(missing_ok=True)
    resumed = part.exists()
    yield from _complete(http, file, part, stage)
    got = yield from _digest(part, file)
    if got != file.digest and resumed:
        # The beginning was left by some other version of the file.
        part.unlink()
        yield from _complete(http, file, part, stage)
        got = yield from _digest(part, file)
    if got != file.digest:
        part.unlink()
        raise SourceError(
            f"{file.path} has the wrong checksum: got {got}, expected {file.digest}; it was "
            "deleted. Pull it again, and from elsewhere (--from) if that does not help"
        )
    part.replace(target)


def _digest(part: Path, file: RemoteFile) -> Generator[Progress, None, str | None]:
    if file.digest is None:
        return None
    algorithm = file.digest.partition(":")[0]
    value = yield from hash_file(part, f"checking {file.path}", algorithm)
    return f"{algorithm}:{value}"


def _complete(
    http: Http, file: RemoteFile, part: Path, stage: str
) -> Generator[Progress, None, None]:
    """Bring ``part`` to its full length, trying again while that gets us further."""
    failures = 0
    part.touch()
    while file.size is None or _size(part) != file.size:
        if file.size is not None and _size(part) > file.size:
            part.unlink()
        before = _size(part)
        try:
            yield from _append(http, file, part, stage)
        except TransientError as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures >= http.tries:
                raise SourceError(
                    f"the download of {file.path} broke off after {_size(part)} bytes: {error}; "
                    "run the same command again to go on from there"
                ) from error
            http.wait(failures, error)
            continue
        if file.size is None:
            return


def _append(
    http: Http, file: RemoteFile, part: Path, stage: str
) -> Generator[Progress, None, None]:
    """Write what the server sends to the end of ``part``, or over it where it starts anew."""
    offset = _size(part) if file.digest else 0
    try:
        with http.open(file.url, offset=offset) as response:
            offset = _start(response, offset)
            expected = _expected(response, offset, file)
            with explain_full_disk(part.parent, (expected or offset) - offset):
                yield from _copy(blocks(response, file.url), part, offset, expected, stage)
    except RangeError:
        part.unlink()
        raise
    got = _size(part)
    if expected is not None and got < expected:
        raise TransientError(f"{host_of(file.url)} closed the connection early")
    if expected is not None and got > expected:
        part.unlink()
        raise SourceError(f"{file.path} should have {expected} bytes, but the server sent {got}")


def _start(response: Any, offset: int) -> int:  # noqa: ANN401
    """Return the byte that the answer begins at: ``offset``, or 0 where resuming isn't offered."""
    if getattr(response, "status", None) != 206:
        return 0
    content_range = response.headers.get("Content-Range", "")
    if not content_range.startswith(f"bytes {offset}-"):
        raise SourceError(f"the server answered with the wrong part of the file: {content_range!r}")
    return offset


def _expected(response: Any, offset: int, file: RemoteFile) -> int | None:  # noqa: ANN401
    """Return the length of the whole file.

    :raises SourceError: if the server contradicts what it promised.
    """
    length = response.headers.get("Content-Length")
    whole = offset + int(length) if length is not None and length.isdigit() else file.size
    if file.size is not None and whole != file.size:
        raise SourceError(
            f"{file.path} should have {file.size} bytes, but the server offers {whole}; "
            "it may have changed just now: pull it again"
        )
    return whole


def _copy(
    received: Iterator[bytes], part: Path, offset: int, expected: int | None, stage: str
) -> Generator[Progress, None, None]:
    with part.open("ab" if offset else "wb") as out:
        done = shown = offset
        yield Progress(stage, done, expected, "bytes")
        for block in received:
            out.write(block)
            done += len(block)
            if done - shown >= MEGABYTE or done == expected:
                shown = done
                yield Progress(stage, done, expected, "bytes")


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
