"""How much memory a job takes, by part, foretold from the shape of its model.

Nothing is loaded and no device is touched. The figures are those of what glmkit's own modules and
torch's autograd really hold: tests compare them with what generated models allocate.

Letters: n tokens of a pass, T tokens of a row, h hidden size, f feed-forward size, q = heads x D,
k = key and value heads x D, V vocabulary, s bytes of a number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

from ..errors import UsageError
from ..models.causal import ModelConfig
from .footprint import Anatomy, cached_per_token
from .parting import Parting, parted
from .quantize import GROUP

Training = Literal["lora", "full", "ptuning"]
TRAININGS: tuple[Training, ...] = ("lora", "full", "ptuning")
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
OPTIMIZERS = {"adamw": None, "adamw_8bit": 1, "adafactor": 0, "sgd": 0}
"""Bytes of a number of the two states; None: as the weights. Adafactor's are rows and columns."""
QUANTIZATIONS = ("int8", "int4")
PER_PASS = 2_048
"""Prompt tokens that run together; longer prompts come in in pieces, ChatGLM-6B's run whole."""
_EXACT = 4
"""Bytes of single precision: what adapters are trained in, norms and scores are computed in."""


@dataclass(frozen=True)
class Job:
    """What is to be done with a model."""

    batch: int = 1
    """Rows side by side."""
    length: int = 2_048
    """Tokens of a row, the answer included."""
    dtype: str = "float16"
    quantize: str | None = None
    train: Training | None = None
    """None: answer."""
    checkpointing: bool = True
    """In training, blocks are computed again when gradients need what is inside them."""
    rank: int = 8
    """Of LoRA."""
    targets: tuple[str, ...] = ("query_key_value",)
    """Which linears get LoRA; ``("all",)``: every one."""
    prefix: int = 128
    """Entries of a P-Tuning prefix."""
    optimizer: str = "adamw"
    loss_dtype: str = "float32"
    """In which scores are compared with labels; transformers takes single precision."""
    room: int | None = None
    """Scores that are made at a time where training goes glmkit's own steps, which keep less; None:
    as others train, with the scores of all tokens at once."""
    turned: bool = False
    """Rounded matrices are there the other way round, too, in 8 bits; see `training/rounded.py`."""
    parting: Parting | None = None
    """How several processes share what a training holds; None: each has all of it."""

    def __post_init__(self) -> None:
        _check(self, "dtype", SIZES)
        _check(self, "loss_dtype", SIZES)
        _check(self, "optimizer", OPTIMIZERS)
        _check(self, "quantize", (None, *QUANTIZATIONS))
        _check(self, "train", (None, *TRAININGS))
        for name in ("batch", "length", "rank", "prefix"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UsageError(f"{name} must be a whole number from 1, got {value!r}")
        if self.train == "full" and self.quantize is not None:
            raise UsageError(
                f"quantised weights ({self.quantize}) cannot be trained themselves; train='lora' "
                "trains beside them"
            )

    @property
    def tokens(self) -> int:
        """All tokens of the batch."""
        return self.batch * self.length


def _check(job: Job, name: str, allowed: Iterable[str | None]) -> None:
    values = tuple(allowed)
    if getattr(job, name) not in values:
        known = ", ".join(each for each in values if each is not None)
        raise UsageError(f"{name} must be one of {known}, got {getattr(job, name)!r}")


@dataclass(frozen=True)
class Parts:
    """Bytes by what they are for."""

    weights: int = 0
    cache: int = 0
    """Keys and values."""
    activations: int = 0
    gradients: int = 0
    optimizer: int = 0
    overhead: int = 0
    """What the driver, its libraries and torch's allocator take."""

    def __add__(self, other: Parts) -> Parts:
        return Parts(
            *(getattr(self, each.name) + getattr(other, each.name) for each in fields(self))
        )

    def __mul__(self, times: int) -> Parts:
        return Parts(*(times * getattr(self, each.name) for each in fields(self)))

    @property
    def total(self) -> int:
        """All together."""
        return sum(getattr(self, each.name) for each in fields(self))


@dataclass(frozen=True)
class Demand:
    """What the parts of a model take where they are; see :meth:`on`."""

    layers: int
    embedding: Parts
    layer: Parts
    """One block. Its activations are those that stay until its gradients are done."""
    head: Parts
    """Last norm, head, and the prefix."""
    shared: int
    """Bytes of the head that are the token table's, where both are on one device."""
    inside: int
    """Activations inside the block that runs, one at a time."""
    scores: int
    """Activations of the head that stay while blocks run."""
    loss: int
    """Activations of the head and the loss at their highest, while no block runs."""

    def on(self, layers: int, *, first: bool, last: bool, computes: bool = False) -> Parts:
        """Return what a device takes.

        :param layers: blocks that it holds.
        :param first: it holds the token table.
        :param last: it holds the last norm and the head, and computes the loss.
        :param computes: blocks also if it holds none.
        """
        held = self.layer * layers
        if first:
            held += self.embedding
        if last:
            held += self.head
        if first and last:
            held += Parts(weights=-self.shared)
        inside = self.inside + (self.scores if last else 0) if layers or computes else 0
        return held + Parts(activations=max(inside, self.loss if last else 0))


def demand(parts: Anatomy, job: Job, *, table: float | None = None) -> Demand:
    """Return what each part of a model takes in a job.

    :param table: bytes of a number of the token table; None: as it lies rounded, or of the job's
        dtype.
    """
    size = SIZES[job.dtype]
    table = (table or parts.table or size) if job.quantize else (table or size)
    head = parts.head.size(size, None if job.quantize is None else "int8")
    tied = parts.config.tied_head and job.quantize is None and table == size
    trained = _full(job) if job.train == "full" else Parts()
    small = _beside(parts, job)
    found = Demand(
        layers=parts.config.layers,
        embedding=Parts(weights=int(table * parts.scores))
        + trained * (0 if tied else parts.scores),
        layer=Parts(
            weights=parts.layer.size(size, job.quantize) + _turned(parts.layer.matrices, job),
            cache=0 if job.train else size * cached_per_token(parts.config) * job.tokens,
            activations=_kept(parts, job),
        )
        + trained * (parts.layer.matrices + parts.layer.small)
        + small.layer,
        head=Parts(weights=head + parts.norm.size(size) + _turned(parts.scores, job))
        + trained * (parts.scores + parts.norm.small)
        + small.head,
        shared=head if tied else 0,
        inside=_inside(parts, job) + _expanded(parts, job),
        scores=_scores(parts.config, job),
        loss=_loss(parts.config, job),
    )
    return found if job.parting is None else parted(found, job.parting)


@dataclass(frozen=True)
class _Beside:
    """What is trained beside the weights."""

    layer: Parts = Parts()
    head: Parts = Parts()


def _beside(parts: Anatomy, job: Job) -> _Beside:
    own = Parts(weights=_EXACT * parts.prefix)
    if job.train == "lora":
        numbers = sum(job.rank * sum(parts.linears[each]) for each in _targets(parts, job))
        return _Beside(layer=_exactly(job) * numbers, head=own)
    if job.train == "ptuning":
        entry = parts.config.layers * cached_per_token(parts.config)
        # Beside the parameters, the prefix of every layer in the batch's dtype.
        kv = SIZES[job.dtype] * job.batch * job.prefix * cached_per_token(parts.config)
        numbers = parts.prefix or job.prefix * entry
        return _Beside(layer=Parts(activations=kv), head=_exactly(job) * numbers)
    return _Beside(head=own)


def _targets(parts: Anatomy, job: Job) -> tuple[str, ...]:
    if job.targets == ("all",):
        return tuple(parts.linears)
    for each in job.targets:
        if each not in parts.linears:
            known = ", ".join(parts.linears)
            raise UsageError(f"no linear of a block is called {each!r}; there are {known}, or all")
    return job.targets


def _turned(numbers: int, job: Job) -> int:
    """Return what matrices take the other way round: 8 bits, and a half number for each group."""
    return numbers + 2 * numbers // GROUP if job.turned else 0


def _full(job: Job) -> Parts:
    """Return what a trained weight takes beside itself."""
    size = SIZES[job.dtype]
    states = _states(job, _EXACT if _copy(job) else size)
    return Parts(gradients=size, optimizer=states + _copy(job))


def _states(job: Job, size: int) -> int:
    """Return what an optimizer keeps of a number that takes so many bytes."""
    own = OPTIMIZERS[job.optimizer]
    return 2 * (size if own is None else own)


def _copy(job: Job) -> int:
    """Return what an optimizer's own copy of a number takes."""
    return _EXACT if job.parting is not None and job.parting.copies else 0


def _exactly(job: Job) -> Parts:
    """Return what a number takes that is trained beside the weights, in single precision."""
    states = _states(job, _EXACT)
    return Parts(weights=_EXACT, gradients=_EXACT, optimizer=states + _copy(job))


def _forward_size(parts: Anatomy) -> int:
    """Return f."""
    return parts.linears["dense_4h_to_h"][0]


def _gated(parts: Anatomy) -> bool:
    return parts.linears["dense_h_to_4h"][1] == 2 * _forward_size(parts)


def _kept(parts: Anatomy, job: Job) -> int:
    """Return what stays of a block from its pass to its gradients."""
    if not job.train:
        return 0
    if job.checkpointing:
        return job.tokens * parts.config.hidden_size * SIZES[job.dtype]
    return _saved(parts, job)


def _inside(parts: Anatomy, job: Job) -> int:
    """Return what the block that runs takes beside what stays."""
    config, size = parts.config, SIZES[job.dtype]
    h, f = config.hidden_size, _forward_size(parts)
    if not job.train:
        tokens = min(job.tokens, max(PER_PASS, job.length) if parts.whole else PER_PASS)
        forward = size * (5 * h + (3 if _gated(parts) else 2) * f)
        normed = size * 3 * h + (0 if size == _EXACT else 2 * _EXACT * h)
        # Where no kernel of ours does attention: who sees whom, as numbers that are added.
        attention = size * (4 * h + parts.linears["query_key_value"][1] + job.length)
        return tokens * (max(forward, normed, attention) + job.length)  # a byte for who sees whom
    backward = job.tokens * size * (3 * f + h if _gated(parts) else 2 * (f + h))
    if job.room is not None and _gated(parts):  # what came out of the gate is gone by then
        backward = job.tokens * size * (2 * f + h)
    return backward + (_saved(parts, job) if job.checkpointing else 0)


def _saved(parts: Anatomy, job: Job) -> int:
    """Return what autograd keeps of one block.

    Each number is one tensor that a backward formula needs: inputs of norms, what goes into a
    linear whose weight learns, queries, keys, values and the mixture, the feed-forward's inside.
    """
    config, size = parts.config, SIZES[job.dtype]
    h, f = config.hidden_size, _forward_size(parts)
    columns, width = parts.linears["query_key_value"]
    gated, full = _gated(parts), job.train == "full"
    if job.room is not None and gated and job.train != "ptuning":
        return _kept_by_steps(parts, job)
    if gated:
        # RMS norms keep their input in single precision; attention what the fused linear gave.
        numbers = 2 * _EXACT * h + size * (width + columns + 3 * f)
        if full:
            numbers += 2 * _EXACT * h + size * f + (2 * size * h if size != _EXACT else 0)
        normed = size != _EXACT or not full
    else:
        # Turned queries and keys, and values, are copies of what the fused linear gave.
        numbers = size * (2 * h + width + columns + f)
        numbers += size * (2 * h + f) if full else 0
        normed = not full
    if job.train == "lora" and normed:
        numbers += sum(_EXACT * parts.linears[each][0] for each in _targets(parts, job))
    mask = size * job.length  # who sees whom, once for each layer, as numbers that are added
    return job.tokens * (numbers + mask + _EXACT * config.heads)


def _kept_by_steps(parts: Anatomy, job: Job) -> int:
    """Return what glmkit's own steps keep of a gated block; see `training/linears.py`.

    What goes into both norms, what the norms scaled by, what goes into the gate and comes out of
    it, turned queries, keys and values, the mixture, and what LoRAs narrow tokens down to.
    """
    config, size = parts.config, SIZES[job.dtype]
    h, f = config.hidden_size, _forward_size(parts)
    columns, width = parts.linears["query_key_value"]
    numbers = size * (2 * h + width + columns + 3 * f) + 2 * _EXACT
    if job.train == "lora":
        numbers += size * job.rank * len(_targets(parts, job))
    return job.tokens * (numbers + _EXACT * config.heads)


def _expanded(parts: Anatomy, job: Job) -> int:
    """Return what quantised matrices take while they are ordinary ones: the widest, one by one."""
    if job.quantize is None:
        return 0
    return SIZES[job.dtype] * max(rows * columns for columns, rows in parts.linears.values())


def _scores(config: ModelConfig, job: Job) -> int:
    """Return the scores that the caller holds while gradients go through the blocks."""
    if not job.train:
        return 0
    size = SIZES[job.dtype]
    if job.room is not None:  # the last norm's input and the gradient of its output
        return job.tokens * 2 * size * config.hidden_size
    return job.tokens * (size * (config.vocab_size + config.hidden_size))


def _loss(config: ModelConfig, job: Job) -> int:
    """Return what the head takes at its highest."""
    size = SIZES[job.dtype]
    if not job.train:
        return job.batch * (config.vocab_size * (size + _EXACT) + config.hidden_size * size)
    if job.room is not None:
        held = min(job.room, job.tokens * config.vocab_size)
        return _scores(config, job) + held * (_EXACT if size == _EXACT else _EXACT + 2 * size)
    # Logarithms of probabilities, their gradient, and that of the scores beside the scores.
    loss = 3 * SIZES[job.loss_dtype] * config.vocab_size
    return _scores(config, job) + job.tokens * loss
