"""A MariaDB server of one's own: in a temporary folder, behind a socket, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

_SMALL = ("--innodb-log-file-size=4M", "--innodb-buffer-pool-size=32M")
# Nothing is to be kept, so nobody waits for the disk.
_QUICK = ("--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=OFF", "--skip-networking")


def _programs() -> tuple[str, str]:
    """Return what makes a server's files, and the server; Debian keeps it off the path."""
    make = shutil.which("mariadb-install-db")
    serve = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    # The first is a script that needs what another package has.
    if make is None or serve is None or shutil.which("my_print_defaults") is None:
        pytest.skip("MariaDB is not installed (Debian: mariadb-server-core, mariadb-client-core)")
    return make, serve


def _user() -> str:
    """Return whom the server runs as: it refuses to be root."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    return "nobody"


@contextmanager
def running() -> Iterator[str]:
    """Start a server, and yield its address for SQLAlchemy."""
    make, serve = _programs()
    user = _user()
    folder = Path(tempfile.mkdtemp(prefix="maria"))
    shutil.chown(folder, user)
    given = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    where = ("--no-defaults", f"--datadir={folder / 'data'}", f"--user={user}")
    normal = ("--auth-root-authentication-method=normal", "--skip-test-db")
    try:
        subprocess.run([make, *where, *normal, *_SMALL], check=True, **given)
        address = folder / "socket"
        paths = (f"--socket={address}", f"--pid-file={folder / 'pid'}")
        server = subprocess.Popen([serve, *where, *paths, *_SMALL, *_QUICK], **given)
        try:
            _wait(address, server)
            yield f"mysql://root@localhost/questions?unix_socket={address}"
        finally:
            server.kill()  # at once: nothing is to be kept
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(address: Path, server: subprocess.Popen) -> None:
    """Wait until it answers, and make the database."""
    import pymysql

    until = time.monotonic() + 60
    while not _listens(address):
        assert server.poll() is None and time.monotonic() < until, "MariaDB did not start"
        time.sleep(0.02)
    with closing(pymysql.connect(unix_socket=str(address), user="root")) as connection:
        connection.cursor().execute("CREATE DATABASE questions CHARACTER SET utf8mb4")


def _listens(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as door:
        return door.connect_ex(str(address)) == 0
