"""Giving memory that is mapped from files back to the system.

A mapped tensor takes memory from when its numbers are first looked at. Once they are converted or
packed into something else, only the system can tell that nobody needs those pages any more.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

from torch import Tensor

_DONTNEED = 4
"""Linux: drop the pages now. A private mapping of a file is read from the file again when it is
looked at again; nothing is lost, unless somebody wrote to it."""


def release(tensor: Tensor) -> None:
    """Drop the memory of a contiguous tensor that is mapped from a file, and was only read."""
    if sys.platform != "linux":
        return
    start = tensor.data_ptr()
    end = (start + tensor.numel() * tensor.element_size()) & -mmap.PAGESIZE
    start = (start + mmap.PAGESIZE - 1) & -mmap.PAGESIZE  # whole pages only: others share the rest
    if start < end:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


def available_memory() -> int:
    """Return how many bytes programs can still get; a large number where nobody says."""
    limits = [_available(), _left_to_group()]
    return min((each for each in limits if each is not None), default=1 << 40)


def _available() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            table = dict(line.split(":", 1) for line in lines)
        return int(table["MemAvailable"].split()[0]) * 1024
    except (OSError, LookupError, ValueError):
        return None


def _left_to_group() -> int | None:
    """Return what the limit of a container leaves, where there is one."""
    numbers = []
    for name in ("max", "current"):
        try:
            with open(f"/sys/fs/cgroup/memory.{name}", encoding="ascii") as file:
                numbers.append(int(file.read()))
        except (OSError, ValueError):  # no limit reads "max"
            return None
    return max(numbers[0] - numbers[1], 0)
