"""Joining a Ray cluster, or starting one on this machine; and what each worker gets of it."""

from __future__ import annotations

import logging
import re
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from ....errors import GlmkitError, MissingExtraError, UsageError

log = logging.getLogger(__name__)

LOCAL = "local"
AUTO = "auto"
_REACH_S = 5.0
_STORE = 128 << 20
"""Bytes for what is on its way between processes: rows, which take kilobytes."""


@dataclass(frozen=True)
class Cluster:
    """Where workers run and what each of them gets.

    :raises UsageError: if a value is out of range.
    """

    address: str = LOCAL
    """``local``: a cluster of this machine alone, for as long as the job runs; ``auto``: the one
    that runs here; or ``HOST:PORT`` of its head."""
    workers: int | None = None
    """None: as many as there is room for."""
    gpus_per_worker: float | None = None
    """May be a fraction; None: 1 where there are GPUs, unless ``cpus_per_worker`` is given."""
    cpus_per_worker: int | None = None
    """Threads of a worker; None: 1 beside a GPU, else all of a machine's (of the smallest one),
    divided among its workers."""

    def __post_init__(self) -> None:
        _host_and_port(self.address)
        for name, least in (("workers", 1), ("cpus_per_worker", 1), ("gpus_per_worker", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} must be {least} or more, got {value}")
        gpus = self.gpus_per_worker
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise UsageError(f"gpus_per_worker above 1 must be a whole number, got {gpus}")


def _host_and_port(address: str) -> tuple[str, int] | None:
    """Take an address apart; None for those that name no machine."""
    if address in (LOCAL, AUTO):
        return None
    host, _, port = address.rpartition(":")
    number = int(port) if re.fullmatch("[0-9]{1,5}", port) else _LAST_PORT + 1
    if not host or number > _LAST_PORT or "://" in address:
        raise UsageError(
            f"a Ray address is 'local', 'auto' or HOST:PORT of the cluster's head, such as "
            f"10.0.0.1:6379; got {address!r}"
        )
    return host.strip("[]"), number


_LAST_PORT = 65535


class Node(NamedTuple):
    """What a machine of the cluster has."""

    cpus: float
    gpus: float


class Share(NamedTuple):
    """What the workers get."""

    workers: int
    cpus: int
    gpus: float


def shared_out(cluster: Cluster, nodes: Iterable[Node]) -> Share:
    """Say how many workers run on these machines, and what each of them gets.

    :raises UsageError: if no machine has room for one; says what there is.
    """
    nodes = list(nodes)
    gpus, cpus = cluster.gpus_per_worker, cluster.cpus_per_worker
    if gpus is None:
        gpus = 1 if cpus is None and any(node.gpus >= 1 for node in nodes) else 0
    if cpus is None:
        cpus = 1 if gpus else _even_cpus(nodes, cluster.workers)
    room = sum(_fitting(node, cpus, gpus) for node in nodes)
    if not room:
        has = "; ".join(f"CPU {node.cpus:g}, GPU {node.gpus:g}" for node in nodes)
        raise UsageError(
            f"a worker of CPU {cpus}, GPU {gpus:g} fits on no machine of the cluster; they have "
            f"{has or 'nothing'}: ask for less, or join larger machines"
        )
    return Share(cluster.workers or room, cpus, gpus)


def _even_cpus(nodes: list[Node], workers: int | None) -> int:
    """Divide a machine among its workers, the smallest of those that have any CPUs to give."""
    usable = [node for node in nodes if node.cpus >= 1] or [Node(1, 0)]
    each = -(-workers // len(usable)) if workers else 1
    return max(1, int(min(node.cpus for node in usable) / each))


def _fitting(node: Node, cpus: int, gpus: float) -> int:
    by_gpus = _whole(node.gpus / gpus) if gpus else None
    by_cpus = _whole(node.cpus / cpus)
    return by_cpus if by_gpus is None else min(by_cpus, by_gpus)


def _whole(number: float) -> int:
    """Round down, but for what a fraction such as 0.1 leaves to rounding."""
    return int(number + 1e-9)


@contextmanager
def joined(cluster: Cluster) -> Iterator[Any]:
    """Join the cluster, yield Ray, and leave it again; what this process has joined stays so.

    :raises MissingExtraError: if Ray is not installed.
    :raises GlmkitError: if there is no such cluster, or it cannot be joined from here.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("the ray engine", "ray", "ray") from error
    if ray.is_initialized():
        yield ray
        return
    _refuse_unreachable(cluster.address)
    with _no_prints(ray):
        try:
            with _own_signals():
                _join(ray, cluster.address)
            yield ray
        finally:
            ray.shutdown()


def _join(ray: Any, address: str) -> None:  # noqa: ANN401
    # A local cluster sends no usage statistics; one that runs does as its head was started.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        quiet |= {"include_dashboard": False, "object_store_memory": _STORE}
    try:
        ray.init(address=address, **quiet)
    except ConnectionError as error:
        if address == AUTO:
            raise UsageError(_NONE_HERE) from error
        raise GlmkitError(_cannot(address, error)) from error
    except (RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        raise GlmkitError(_cannot(address, error)) from error


_NONE_HERE = (
    "no Ray cluster runs on this machine; start one (ray start --head), give --ray-address "
    "HOST:PORT, or leave it out to use this machine alone"
)


def _cannot(address: str, error: BaseException) -> str:
    said = next(iter(str(error).strip().splitlines()), type(error).__name__)
    where = "start Ray here" if address == LOCAL else f"join the Ray cluster at {address!r}"
    return (
        f"cannot {where}: {said.rstrip('.')}; this command runs on a machine of the cluster, with "
        "the same versions of Python and Ray"
    )


def _refuse_unreachable(address: str) -> None:
    """Notice at once what Ray would notice after minutes."""
    found = _last_started() if address == AUTO else address
    target = None if found is None else _host_and_port(found)
    if target is None:
        return
    try:
        socket.create_connection(target, timeout=_REACH_S).close()
    except OSError as error:
        if address == AUTO:
            raise UsageError(f"{_NONE_HERE}; the last one was at {found}") from error
        raise UsageError(
            f"no Ray cluster answers at {address} ({error.strerror or error}); is its head "
            "running there (ray start --head --port PORT), and is the port open?"
        ) from error


def _last_started() -> str | None:
    """Return the HOST:PORT that Ray would take for ``auto``; None where it looks for processes."""
    from ray._private import services

    try:
        said: str | None = services.get_ray_address_from_environment(AUTO, None)
        return said if said is not None and _host_and_port(said) is not None else None
    except (ConnectionError, UsageError):  # none, or RAY_ADDRESS in a form that only Ray knows
        return None


@contextmanager
def _own_signals() -> Iterator[None]:
    """Take a signal back that Ray takes for itself, and then ends with an abort and a stack."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _no_prints(ray: Any) -> Iterator[None]:  # noqa: ANN401
    """Keep Ray from printing what its other processes complain of where our caller prints.

    There is no switch for that, and what concerns us comes as exceptions.
    """
    module = ray._private.worker
    before = getattr(module, "print_to_stdstream", None)
    module.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        module.print_to_stdstream = before


def reason_of(error: BaseException) -> str:
    """Say in one line why a worker was lost, and where.

    Ray says it in many: a traceback, or a table and a paragraph.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    where = next((f" on {line[4:]}" for line in lines if line.startswith("ip: ")), "")
    said = lines[-1] if lines else type(error).__name__
    sentence = (said.partition("Worker exit detail: ")[2] or said).split(". ")[0].rstrip(".")
    return f"{sentence}{where}"


def nodes_of(ray: Any) -> list[Node]:  # noqa: ANN401
    """Return what the living machines of the cluster have."""
    alive = (each["Resources"] for each in ray.nodes() if each["Alive"])
    return [Node(each.get("CPU", 0), each.get("GPU", 0)) for each in alive]


def still_joined(ray: Any) -> bool:  # noqa: ANN401
    """Tell whether the cluster counts this machine among its living ones."""
    here = ray.get_runtime_context().get_node_id()
    return any(each["Alive"] and each["NodeID"] == here for each in ray.nodes())
