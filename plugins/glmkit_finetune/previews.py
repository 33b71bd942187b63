"""Samples as a model reads them: how many tokens, which text exactly, and what of it is learnt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from glmkit import DataError
from glmkit.dataset.checks import Longest

if TYPE_CHECKING:
    from glmkit import Glmkit, Message
    from glmkit.dataset import Data, Sample
    from glmkit.training.encoding import Encoded, SampleEncoder

_ENDLESS = 1 << 30
"""Tokens: nothing is left out where they are counted."""
OPEN, CLOSED = "⟦", "⟧"
"""Around what is learnt, where there are no colours."""


def open_encoder(app: Glmkit, model: str, **options: Any) -> SampleEncoder:  # noqa: ANN401
    """Open a model's vocabulary and chat format; its weights are not read.

    :param options: of :meth:`SampleEncoder.open`.
    """
    from glmkit.training.encoding import SampleEncoder

    located = app.locate_model(None if model == "default" else model)
    return SampleEncoder.open(located.path, **options)


class Shown(NamedTuple):
    """A conversation to show."""

    sample: Sample
    answer: str = ""
    """What its last answer is, where the data says so: ``chosen``, ``undesirable``, ..."""


def first(data: Data, count: int) -> Iterator[Shown]:
    """Yield the first samples; of preferences, a conversation with each answer."""
    from glmkit.dataset import Preference, Verdict
    from glmkit.dataset.samples import compared

    for row in islice(data.rows(), count):
        if isinstance(row, Preference):
            yield Shown(compared(row, 0), "chosen")
            yield Shown(compared(row, 1), "rejected")
        elif isinstance(row, Verdict):
            yield Shown(row.sample, "desirable" if row.good else "undesirable")
        else:
            yield Shown(row)


def counting(app: Glmkit, model: str, family: str | None, most: int) -> Longest:
    """Return what counts the tokens of samples.

    :param most: tokens that a sample may have.
    """
    encoder = open_encoder(app, model, family=family, max_length=_ENDLESS)

    def measure(sample: Sample) -> int:
        (written,) = encoder.encode([sample])
        if not written.rows:
            raise DataError(f"{model} cannot read it: {written.reason}")
        return max(map(len, written.rows))

    return Longest(measure, most)


def plain_lines(each: Shown) -> Iterator[str]:
    """Yield a sample message by message, what is learnt marked."""
    yield _heading(each)
    for message, weight in zip(each.sample.messages, each.sample.weights, strict=True):
        yield f"{click.style(message.role, bold=True)}: {shown(_said(message), weight)}"


def _said(message: Message) -> str:
    calls = "".join(f" [calls {each.name} {dict(each.arguments)}]" for each in message.tool_calls)
    tools = f" [offers {len(message.tools)} tools]" if message.tools else ""
    return f"{message.content}{tools}{calls}".strip()


def written_lines(shown_: Shown, written: Encoded, encoder: SampleEncoder) -> Iterator[str]:
    """Yield a sample as the rows of tokens that it becomes, what is learnt marked."""
    from glmkit.training.encoding import spans

    tokens = sum(map(len, written.rows))
    learnt = sum(int((each.weights > 0).sum()) for each in written.rows)
    rows = "1 row" if len(written.rows) == 1 else f"{len(written.rows)} rows"
    yield f"{_heading(shown_)}: {rows}, {tokens:,} tokens, of which {learnt:,} are learnt"
    if written.cut or written.parted:
        yield f"{written.cut} answers cut, {written.parted} rows without the oldest turns"
    if written.reason:
        yield f"left out: {written.reason}"
    for row in written.rows:
        parts = spans(row, encoder.renderer.tokenizer)
        yield "".join(shown(each.text, each.weight) for each in parts)


def as_dict(shown_: Shown, written: Encoded, encoder: SampleEncoder) -> dict[str, Any]:
    """Return the same, ready for JSON."""
    from glmkit.training.encoding import spans

    rows = [
        {
            "ids": each.ids.tolist(),
            "weights": each.weights.tolist(),
            "spans": [part._asdict() for part in spans(each, encoder.renderer.tokenizer)],
        }
        for each in written.rows
    ]
    told = {"cut": written.cut, "parted": written.parted, "reason": written.reason}
    told |= {"answer": shown_.answer} if shown_.answer else {}
    sample = shown_.sample
    return {"file": sample.source, "place": str(sample.place), "rows": rows, **told}


def shown(text: str, weight: float) -> str:
    """Return a text with a mark if it is learnt: a colour on a terminal, brackets elsewhere."""
    if not weight:
        return text
    times = "" if weight == 1 else f"{weight:g}×"
    if sys.stdout.isatty():
        return click.style(times + text, fg="green")
    return f"{times}{OPEN}{text}{CLOSED}"


def _heading(each: Shown) -> str:
    said = f", {each.answer}" if each.answer else ""
    return click.style(f"{each.sample.source}, {each.sample.place}{said}", fg="cyan")
