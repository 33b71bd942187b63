"""How much memory is left, and how running out of it shows."""

from __future__ import annotations

import torch

from .pages import available_memory

_SHARE = {"cuda": 0.85, "cpu": 0.5}
"""What keys and values may take of the memory that is free: on a processor others live there too,
and its numbers are estimates."""


def memory_of(device: torch.device) -> int:
    """Return how many bytes of memory a device has free, or the machine, for processors."""
    if device.type == "cuda":
        free = int(torch.cuda.mem_get_info(device)[0])
        # What torch's allocator holds without using it is free for us.
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + max(idle, 0)
    return available_memory()


def cache_limit(devices: list[torch.device]) -> int:
    """Return how many bytes of keys and values fit beside what is loaded.

    :param devices: one for each layer; the layers' caches are alike.
    """
    each = min(
        memory_of(device) * _SHARE.get(device.type, _SHARE["cpu"]) / devices.count(device)
        for device in set(devices)
    )
    return int(each * len(devices))


def ran_out(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out.

    torch has a class of its own for that on accelerators; on processors there is only the text.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(each in str(error) for each in _SAID)


_SAID = ("can't allocate memory", "not enough memory", "out of memory")


def readable(size: float) -> str:
    """Write bytes for people."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.{2 if size < 100 * unit else 0}f} {name}"
    return f"{size:.0f} bytes"
