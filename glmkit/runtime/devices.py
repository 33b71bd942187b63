"""Which devices a model is spread over, and how people write them and their sizes."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

import torch

from ..errors import OutOfMemoryError, UsageError
from .demand import Demand
from .memory import memory_of, readable
from .pages import available_memory
from .placement import CPU, Device, Home, Placement, place

log = logging.getLogger(__name__)

_UNITS = {
    **{"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12},
    **{"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40},
}
_SIZE = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([kmgt]?i?b?)\s*", re.IGNORECASE)
_CARDS = re.compile(r"(?:\s*([0-9]{1,18})\s*x)?([^x]*)", re.IGNORECASE)
_LINK = 12e9
_DISK = 1.5e9
"""Bytes a second that a card gets from the processor's memory, and a fast disk gives: what usual
machines have, for warnings."""


def parse_size(text: str) -> int:
    """Read a size: ``16GiB`` is 2**30 bytes each, ``16GB`` is 10**9, a bare number is bytes.

    :raises UsageError: if it is something else.
    """
    found = _SIZE.fullmatch(text)
    unit = found[2].lower() if found else "?"
    size = int(float(found[1]) * _UNITS[unit]) if found and unit in _UNITS else 0
    if not size:
        raise UsageError(
            f"{text!r} is no size; write 16GiB (2**30 bytes each), 16GB (10**9) or MiB, MB, bytes"
        )
    return size


def parse_cards(text: str) -> list[Device]:
    """Read what a plan is for: ``2x16GiB``, ``24GB,16GB``, or ``none`` for the processor alone.

    :raises UsageError: if it is something else.
    """
    if text.strip().lower() in ("none", CPU, "0"):
        return [Device(CPU, available_memory())]
    sizes: list[int] = []
    for part in text.split(","):
        found = _CARDS.fullmatch(part)
        if found is None:
            raise UsageError(f"{part!r} is no card; write 2x16GiB, 24GB,16GB or none")
        count = int(found[1] or 1)
        if not 0 < count <= _MOST - len(sizes):
            named = len(sizes) + count
            raise UsageError(f"{text!r} names {named} cards or more; a plan is for 1 to {_MOST}")
        size = parse_size(found[2])
        if size < _LEAST:
            raise UsageError(
                f"{text!r} would be cards of {readable(size)}; write 16GiB, 2x16GiB or 24GB,16GB"
            )
        sizes += [size] * count
    return [Device(f"cuda:{at}", size) for at, size in enumerate(sizes)]


_MOST = 64
_LEAST = 1 << 20
"""A card of fewer bytes is none that anyone means."""


def here() -> list[Device]:
    """Return the cards of this machine with their whole memory, or the processor."""
    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    found = [Device(f"cuda:{at}", int(torch.cuda.mem_get_info(at)[1])) for at in cards]
    return found or [Device(CPU, available_memory())]


def devices_of(text: str | None) -> list[torch.device]:
    """Read ``cpu``, ``cuda:0,cuda:1``, ``cuda:0,cpu``, ``mps``, or ``auto`` (None): what is here.

    :raises UsageError: if one cannot be used, or is named twice.
    """
    if text is None or text.strip().lower() == "auto":
        return _cards() or [torch.device(CPU)]
    found = [_usable(each.strip()) for each in text.split(",")]
    if len({(each.type, each.index or 0) for each in found}) < len(found):
        raise UsageError(f"--devices {text!r} names a device twice")
    return found


def _cards() -> list[torch.device]:
    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return [torch.device("cuda", at) for at in cards]


def _usable(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        has = [CPU, *(["mps"] if torch.backends.mps.is_available() else []), *map(str, _cards())]
        if name in has:
            said = str(error).splitlines()[0][:200]
            raise UsageError(f"device {name!r} cannot be used ({said}); try 'cpu'") from error
        raise UsageError(f"this machine has no {name!r}; it has {', '.join(has)}") from error
    return device


def limits_of(text: str | None, devices: Sequence[torch.device]) -> dict[str, int]:
    """Read ``0=10GiB,cpu=30GiB``, or ``10GiB,12GiB`` in the order of the devices.

    :return: bytes by device; ``cpu`` also bounds what is kept there for the others.
    :raises UsageError: if it is something else, or names a device that is not used.
    """
    names = [str(each) for each in devices]
    bounds = text.split(",") if text else []
    found: dict[str, int] = {}
    for at, part in enumerate(bounds):
        named, given, size = part.rpartition("=")
        if not given and at >= len(names):
            raise UsageError(
                f"--max-memory {text!r} gives {len(bounds)} sizes for {len(names)} device"
                f"{'s' * (len(names) > 1)} ({', '.join(names)}); name what they are for: cpu=30GiB"
            )
        name = _bounded(named.strip(), text, names) if given else names[at]
        if name in found:
            raise UsageError(f"--max-memory {text!r} bounds {name} twice")
        found[name] = parse_size(size)
    return found


def _bounded(name: str, text: str | None, used: Sequence[str]) -> str:
    """Return the device that is meant, as torch calls it."""
    full = f"cuda:{name}" if name.isdigit() else name
    if full not in (*used, CPU):
        raise UsageError(
            f"--max-memory {text!r} bounds {full}, which is not used; used are "
            f"{', '.join(used)}, and cpu for what has no room there"
        )
    return full


def spread(
    needed: Demand,
    devices: Sequence[torch.device],
    limits: Mapping[str, int],
    *,
    fewest: bool,
    carry: bool = True,
) -> Placement:
    """Return where each layer goes.

    What has no room on the devices goes to the processor's memory, then to the disk, and a warning
    says what that costs.

    :param limits: bytes that the model and its job may take of a device.
    :param fewest: leave devices out that are not needed.
    :param carry: keep layers elsewhere that have no room; otherwise all are on the devices, also
        if they may not fit.
    :raises OutOfMemoryError: if it cannot run even so.
    """
    sized = [_sized(each, limits) for each in devices]
    spare = limits.get(CPU, int(0.8 * available_memory()))
    placed = place(needed, sized, spare=spare, fewest=fewest, carry=carry)
    if carry and not placed.runs:
        raise OutOfMemoryError(_too_large(placed))
    for line in costs(placed):
        log.warning(line)
    return placed


def homes_of(placed: Placement, device: torch.device) -> tuple[Home, ...]:
    """Return where each layer is; empty: all of them are on the device."""
    alike = len(set(placed.homes)) == 1 and not placed.homes[0].kept
    return () if alike and placed.homes[0].device == str(device) else placed.homes


def cache_room(placed: Placement, limits: Mapping[str, int]) -> int | None:
    """Return how many bytes of keys and values bounded devices have room for; None: no bound."""
    each = [
        (use.device.size - use.parts.total + use.parts.cache) // use.layers
        for use in placed.uses
        if use.device.name in limits and use.layers
    ]
    return max(0, min(each)) * len(placed.homes) if each else None


def _sized(device: torch.device, limits: Mapping[str, int]) -> Device:
    """Return a device with what is free of it; its overhead is paid already."""
    plain = Device(str(device), 0)
    free = memory_of(device)
    return Device(plain.name, min(free, limits.get(plain.name, free)) + plain.overhead)


def _too_large(placed: Placement) -> str:
    most = max(placed.uses, key=lambda each: each.parts.total - each.device.size)
    return (
        f"{most.device.name} needs {readable(most.parts.total - most.device.overhead)} for what "
        f"must be on it and has {readable(most.device.room)}; name more devices (--devices), "
        "raise --max-memory, or round the weights (--quantize int4)"
    )


def costs(placed: Placement, *, quantize: str | None = None) -> list[str]:
    """Say what it costs that layers are not where they are computed, a line for each place.

    :param quantize: how the weights are rounded already.
    """
    lines = []
    advice = "" if quantize == "int4" else "--quantize int4, "
    for kept, where, size, speed in (
        (CPU, "in the processor's memory", placed.carried.weights, _LINK),
        ("disk", "on the disk", placed.on_disk, _DISK),
    ):
        count = sum(each.kept == kept for each in placed.homes)
        if count:
            lines.append(
                f"{count} of {len(placed.homes)} layers ({readable(size)}) have no room and "
                f"stay {where}: every pass brings them in again, which takes about "
                f"{size / speed:.2g} s for each token of an answer (at {speed / 1e9:g} GB/s); "
                f"{advice}another device or a smaller model is faster"
            )
    return lines
