"""A PostgreSQL server of one's own: in a temporary folder, behind a socket, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _programs() -> Path:
    """Return the folder of the newest server that is installed; Debian keeps them off the path."""
    found = [Path(each).parent for each in [shutil.which("initdb")] if each]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda each: each.parent.name)
    if not found or not (found[-1] / "initdb").exists():
        pytest.skip("PostgreSQL is not installed (Debian's package: postgresql)")
    return found[-1]


def _user() -> str | None:
    """Return whom the server runs as: it refuses to be root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user called postgres")


@contextmanager
def running() -> Iterator[str]:
    """Start a server, and yield its address for SQLAlchemy."""
    programs, user = _programs(), _user()
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    given = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if user:
        shutil.chown(folder, user)
        given["user"] = user
    flags = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"]
    try:
        subprocess.run([programs / "initdb", *flags, "-D", folder / "data"], check=True, **given)
        settings = [f"unix_socket_directories={folder}", "listen_addresses=", "fsync=off"]
        command = [programs / "postgres", "-D", folder / "data"]
        for each in settings:
            command += ["-c", each]
        server = subprocess.Popen(command, **given)
        try:
            _wait(programs, folder, server)
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nothing is to be kept
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(programs: Path, folder: Path, server: subprocess.Popen) -> None:
    until = time.monotonic() + 60
    while subprocess.run([programs / "pg_isready", "-q", "-h", folder]).returncode:
        assert server.poll() is None and time.monotonic() < until, "PostgreSQL did not start"
        time.sleep(0.05)
