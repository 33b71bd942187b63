"""``--nproc N``: a command that starts N processes of itself, which train together.

torch's elastic agent starts and watches them, as ``torchrun`` does. Process 0 speaks; what the
others say is kept for the case that one of them fails. On several machines the same command runs
on each: ``NNODES``, ``NODE_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT`` say how they meet.
"""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ..errors import GlmkitError, UsageError, WorkerLostError
from .config import TrainConfig
from .processes import Launched

_LAST_LINES = 12
_END_WITHIN_S = 10
"""How long processes may take to end before they are killed."""


@dataclass(frozen=True)
class Nodes:
    """The machines of a run."""

    count: int = 1
    rank: int = 0
    """Which of them this one is."""
    address: str = "127.0.0.1"
    """Of machine 0."""
    port: int = 29500

    @classmethod
    def here(cls) -> Nodes:
        """Read what launchers of clusters say, by accelerate's readers of the environment.

        :raises UsageError: if it is no number, or of several machines the first is not named.
        """
        from accelerate.utils import get_int_from_env, parse_choice_from_env

        try:
            count, rank = get_int_from_env(["NNODES"], 1), get_int_from_env(["NODE_RANK"], 0)
            port = get_int_from_env(["MASTER_PORT"], cls.port)
        except ValueError as error:
            raise UsageError(f"NNODES, NODE_RANK and MASTER_PORT are numbers: {error}") from error
        address = parse_choice_from_env("MASTER_ADDR", "")
        if count > 1 and not address:
            raise UsageError(
                f"NNODES is {count}, but MASTER_ADDR does not say where machine 0 is; set it to "
                "that machine's name or address on every machine, and NODE_RANK to 0, 1, ..."
            )
        if not 0 <= rank < count:
            raise UsageError(f"NODE_RANK must be 0 to {count - 1} (NNODES is {count}), got {rank}")
        return cls(count, rank, address or cls.address, port)


def needed(config: TrainConfig) -> bool:
    """Tell whether the command has to start processes: several, and nobody else started them."""
    if Launched.here().world > 1:
        return False
    return config.nproc > 1 or Nodes.here().count > 1


def launch(
    arguments: Sequence[str],
    nproc: int,
    *,
    device: str | None = None,
    nodes: Nodes | None = None,
    module: str = "glmkit",
) -> None:
    """Run ``python -m glmkit`` with these arguments in ``nproc`` processes of this machine.

    :param device: where they train, as ``--device`` or a file of settings says it.
    :param module: what is run instead of glmkit.
    :raises UsageError: if there are fewer cards than processes.
    :raises WorkerLostError: if one of them failed; all of them have ended.
    :raises KeyboardInterrupt: if it was stopped by Ctrl-C; all of them have ended.
    """
    nodes = nodes or Nodes.here()
    cards = torch.cuda.device_count()
    if cards and nproc > cards and (device or "").split(":")[0] != "cpu":
        raise UsageError(
            f"--nproc {nproc}: this machine has {cards} card{'s' * (cards != 1)}, and each process "
            f"needs one of its own; take --nproc {cards}, or --device cpu"
        )
    with tempfile.TemporaryDirectory(prefix="glmkit-") as folder, _signals_as_they_were():
        start = elastic_launch(_described(nproc, nodes, folder), sys.executable)
        try:
            start("-m", module, *arguments)
        except ChildFailedError as error:
            raise _failure(error, Path(folder)) from None
        except SignalException as error:
            if error.sigval == SIGINT:
                raise KeyboardInterrupt from None
            raise WorkerLostError(f"stopped by {error.sigval.name}; --resume goes on") from None


@contextmanager
def _signals_as_they_were() -> Iterator[None]:
    """Undo what torch's agent does to signals, and let it speak of failures only through errors."""
    handled = [SIGINT, signal.SIGTERM, *_ELSEWHERE]
    before = {each: signal.getsignal(each) for each in handled}
    talk = logging.getLogger("torch.distributed.elastic")
    level = talk.level
    talk.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # It leaves the files open that it keeps words in.
            warnings.simplefilter("ignore", ResourceWarning)
            yield
    finally:
        talk.setLevel(level)
        for each, handler in before.items():
            signal.signal(each, handler)


_ELSEWHERE = [getattr(signal, each) for each in ("SIGHUP", "SIGQUIT") if hasattr(signal, each)]
"""Signals that Windows does not know."""


def _described(nproc: int, nodes: Nodes, folder: str) -> LaunchConfig:
    """Say to torch what is to be started; several machines meet at an address that all know."""
    alone = nodes.count == 1
    return LaunchConfig(
        min_nodes=nodes.count,
        max_nodes=nodes.count,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex if alone else "glmkit",
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="127.0.0.1:0" if alone else f"{nodes.address}:{nodes.port}",
        rdzv_configs={} if alone else {"rank": nodes.rank},
        local_addr="127.0.0.1" if alone else None,
        max_restarts=0,
        monitor_interval=0.1,
        shutdown_timeout=_END_WITHIN_S,
        logs_specs=DefaultLogsSpecs(
            folder, redirects={at: Std.ALL for at in range(nproc) if at or nodes.rank}
        ),
    )


def _failure(error: ChildFailedError, folder: Path) -> GlmkitError:
    """Return the error of the process that failed first."""
    rank, failure = error.get_first_failure()
    if failure.local_rank == 0 and Nodes.here().rank == 0:
        said = "what it said is above"
    else:
        said = _last_lines(failure, folder) or "it said nothing"
    return WorkerLostError(
        f"process {rank} {_ending(failure)}, so all of them ended; checkpoints are whole, "
        f"--resume goes on from the last one. {said}"
    )


def _ending(failure: ProcessFailure) -> str:
    if failure.exitcode < 0:
        return f"was killed ({failure.signal_name()})"
    return f"failed with exit code {failure.exitcode}"


def _last_lines(failure: ProcessFailure, folder: Path) -> str:
    files = sorted(folder.glob(f"*/attempt_0/{failure.local_rank}/stderr.log"))
    lines = files[-1].read_text("utf-8", "replace").splitlines() if files else []
    return "\n".join(["It said:", *lines[-_LAST_LINES:]]) if lines else ""
