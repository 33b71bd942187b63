"""Who may come in, and with how much. Light: no web framework."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field

from glmkit import UsageError

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Door:
    """Who may come in, and with how much."""

    keys: tuple[str, ...] = field(default=(), repr=False)
    """One of them has to be sent as ``Authorization: Bearer KEY``; none: nobody needs one."""
    max_body_bytes: int = 4 << 20
    """Largest body of a request."""
    hosts: tuple[str, ...] | None = None
    """What the server may be called in a request's ``Host``; None: anything.

    Without a key, a page in the user's browser could reach it under a name of its own.
    """
    origins: tuple[str, ...] = ()
    """Pages of other origins that may read answers; none by default."""


def is_local(host: str) -> bool:
    """Tell whether an address to listen at is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_named(host: bytes, allowed: Iterable[str]) -> bool:
    """Tell whether a ``Host`` header says one of some names, in small letters, at any port."""
    name = host.decode("latin-1").lower()
    bare = name if name.endswith("]") else name.rpartition(":")[0] or name
    return bare in allowed


def own_names(host: str, more: Iterable[str] = ()) -> tuple[str, ...]:
    """Return what a server that only this machine reaches may be called.

    :param host: the address that it listens at.
    :param more: names that it was given.
    """
    at = f"[{host}]" if ":" in host else host
    return (*LOCAL_NAMES, at.lower(), *(each.lower() for each in more))


def check_exposure(host: str, keys: Iterable[str]) -> None:
    """Refuse to be reached by others without a key.

    :raises UsageError: saying how to give one.
    """
    if not is_local(host) and not any(keys):
        raise UsageError(
            f"--host {host} can be reached by others, so it needs a key: set GLMKIT_API_KEYS, "
            "api_keys under [plugins.serve], or --api-key; or leave --host out"
        )
