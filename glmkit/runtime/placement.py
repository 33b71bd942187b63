"""Where the layers of a model go, and whether a job fits: pure functions over numbers of bytes.

The token table goes with the first layer; the last norm, the head and the loss go with the last
one, because scores are large and are best compared where they arise. Layers stay in their order,
each device holding a run of them, so that activations move once per border.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from .demand import Demand, Parts

GIB = 1 << 30
CUDA_OVERHEAD = 640 << 20
"""Bytes that the driver's context, its libraries and the gaps of torch's allocator take of a card:
an estimate, on the high side of what is seen."""
CPU_OVERHEAD = 400 << 20
"""Bytes that Python and torch take by themselves."""
DISK = "disk"
CPU = "cpu"
NOTHING = Parts()


@dataclass(frozen=True)
class Device:
    """Something that layers can be on."""

    name: str
    """As torch calls it: ``cuda:0``, ``cpu``."""
    size: int
    """Bytes that may be used, overhead included."""

    @property
    def is_processor(self) -> bool:
        """Whether it is the processor with its memory."""
        return self.name.partition(":")[0] == CPU

    @property
    def overhead(self) -> int:
        """Bytes that nobody gets."""
        return CPU_OVERHEAD if self.is_processor else CUDA_OVERHEAD

    @property
    def room(self) -> int:
        """Bytes for the job."""
        return self.size - self.overhead


@dataclass(frozen=True)
class Home:
    """Where one layer is."""

    device: str
    """What computes it."""
    kept: str = ""
    """``cpu`` or ``disk``: where its weights lie until its turn; empty: on the device."""


@dataclass(frozen=True)
class Use:
    """What a device takes of a job."""

    device: Device
    layers: int
    parts: Parts
    first: bool = False
    last: bool = False

    @property
    def fits(self) -> bool:
        """Whether there is room."""
        return self.parts.total <= self.device.size


@dataclass(frozen=True)
class Placement:
    """A device map, and what it takes."""

    homes: tuple[Home, ...]
    """One for each layer."""
    uses: tuple[Use, ...]
    carried: Parts = Parts()
    """What layers kept in the processor's memory take there."""
    on_disk: int = 0
    """Bytes that are read from the disk for each pass."""

    @property
    def fits(self) -> bool:
        """Whether everything is on a device that computes it."""
        return all(each.fits for each in self.uses) and not any(each.kept for each in self.homes)

    @property
    def runs(self) -> bool:
        """Whether it runs at all, though layers may be brought in for each pass."""
        return all(each.fits for each in self.uses)

    @property
    def map(self) -> dict[str, str]:
        """Where each part is: names as in Hugging Face's device maps, runs of layers together."""
        found = {"embedding": self.homes[0].device}
        for start, end, home in _runs(self.homes):
            layers = f"layers.{start}" if end == start else f"layers.{start}-{end}"
            kept = f" (kept: {home.kept})" if home.kept else ""
            found[layers] = home.device + kept
        return found | {"norm, head": self.homes[-1].device}


def _runs(homes: Sequence[Home]) -> Iterator[tuple[int, int, Home]]:
    start = 0
    for at in range(1, len(homes) + 1):
        if at == len(homes) or homes[at] != homes[start]:
            yield start, at - 1, homes[start]
            start = at


def place(
    demand: Demand,
    devices: Sequence[Device],
    *,
    spare: int = 0,
    fewest: bool = False,
    carry: bool = True,
) -> Placement:
    """Put layers on devices so that the fullest one is as empty as can be.

    What fits on no device is kept in the processor's memory, then on the disk, and brought to the
    last device for its turn; where the processor is the only device, the rest is on the disk.

    :param devices: in the order in which activations pass them; the processor, where it is among
        others, is filled last, with what they have no room for.
    :param spare: bytes of the processor's memory for layers that it keeps but does not compute.
    :param fewest: use no more devices than are needed; otherwise all of them.
    :param carry: keep layers elsewhere that have no room; those of a training have to stay.
    """
    devices = [each for each in devices if _takes_one(demand, each)] or list(devices[:1])
    devices = devices[: demand.layers]
    for count in range(1 if fewest else len(devices), len(devices) + 1):
        split = _split(demand, devices[:count])
        placed = placed_by(demand, devices[:count], split)
        if placed.runs:
            return placed
    if not carry:
        return placed
    return _with_carried(demand, devices, spare) or placed


def placed_by(demand: Demand, devices: Sequence[Device], split: Sequence[int]) -> Placement:
    """Return the placement of so many layers on each device."""
    used = [(each, count) for each, count in zip(devices, split, strict=True) if count]
    uses = tuple(
        _use(demand, device, count, at == 0, at == len(used) - 1)
        for at, (device, count) in enumerate(used)
    )
    homes = tuple(Home(each.device.name) for each in uses for _ in range(each.layers))
    return Placement(homes, uses)


def _use(demand: Demand, device: Device, layers: int, first: bool, last: bool) -> Use:
    parts = demand.on(layers, first=first, last=last) + Parts(overhead=device.overhead)
    return Use(device, layers, parts, first, last)


def _takes_one(demand: Demand, device: Device) -> bool:
    return device.size >= _use(demand, device, 1, False, False).parts.total


def _split(demand: Demand, devices: Sequence[Device], more: Parts = NOTHING) -> list[int]:
    """Return how many layers each device gets.

    :param more: what the last device takes besides.
    """
    if devices[-1].is_processor and not devices[0].is_processor:
        return _filled(demand, devices)

    def share(at: int, layers: int) -> float:
        last = at == len(devices) - 1
        parts = _use(demand, devices[at], layers, at == 0, last).parts
        return (parts.total + (more.total if last else 0)) / devices[at].size

    return _evenest(demand.layers, len(devices), share, least=0 if more.total else 1)


def _evenest(
    layers: int, devices: int, share: Callable[[int, int], float], *, least: int
) -> list[int]:
    """Part layers into runs, one or more for each device, with the least greatest share.

    :param share: of device and its number of layers, growing with the second.
    :param least: layers of the last device.
    """
    best: list[list[tuple[float, int]]] = [[(share(0, k), k) for k in range(layers + 1)]]
    for at in range(1, devices):
        shares = [share(at, k) for k in range(layers + 1)]
        row = []
        for total in range(layers + 1):
            ways = range(least if at == devices - 1 else 1, total - at + 1)
            found = ((max(best[-1][total - k][0], shares[k]), k) for k in ways)
            row.append(min(found, default=(float("inf"), 0)))
        best.append(row)
    counts = []
    left = layers
    for row in reversed(best):
        counts.append(row[left][1])
        left -= row[left][1]
    return counts[::-1]


def _filled(demand: Demand, devices: Sequence[Device]) -> list[int]:
    """Fill the devices in front of the processor, and give it the rest."""
    counts: list[int] = []
    left = demand.layers
    for at, device in enumerate(devices[:-1]):
        fitting = [
            count
            for count in range(1, left + 1)
            if _use(demand, device, count, at == 0, count == left).fits
        ]
        counts.append(max(fitting, default=0))
        left -= counts[-1]
    return [*counts, left]


def _with_carried(demand: Demand, devices: Sequence[Device], spare: int) -> Placement | None:
    """Keep as few layers as possible elsewhere, and bring them to the last device in turn."""
    if len(devices) > 1 and devices[-1].is_processor:
        return None  # which computes what it holds
    *others, last = devices
    for carried in range(1, demand.layers - len(others) + 1):
        rest = replace(demand, layers=demand.layers - carried)
        # What a carried layer leaves behind, and one layer's weights at a time.
        more = replace(demand.layer, weights=0) * carried + Parts(weights=demand.layer.weights)
        split = _split(rest, devices, more)
        front = tuple(
            _use(rest, device, count, at == 0, False)
            for at, (device, count) in enumerate(zip(others, split[:-1], strict=True))
        )
        own = demand.on(split[-1], first=not others, last=True, computes=True)
        behind = Use(
            last,
            split[-1] + carried,
            own + more + Parts(overhead=last.overhead),
            first=not others,
            last=True,
        )
        if all(each.fits for each in (*front, behind)):
            homes = [Home(each.device.name) for each in front for _ in range(each.layers)]
            homes += [Home(last.name)] * split[-1]
            return _carried(tuple(homes), (*front, behind), carried, demand.layer.weights, spare)
    return None


def _carried(
    homes: tuple[Home, ...], uses: tuple[Use, ...], carried: int, weights: int, spare: int
) -> Placement:
    device = uses[-1].device
    room = 0 if device.is_processor else max(spare, 0)
    in_memory = min(carried, room // max(weights, 1))
    on_disk, last = carried - in_memory, device.name
    return Placement(
        (*homes, *[Home(last, CPU)] * in_memory, *[Home(last, DISK)] * on_disk),
        uses,
        Parts(weights=in_memory * weights),
        on_disk * weights,
    )
