"""Figures of data: how many, how long, in which scripts."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from ..types import Progress
from .checks import Longest
from .data import Data
from .samples import Kind, Preference, Sample, Verdict, compared

T = TypeVar("T")
_EVERY = 20_000
_SHARES = (50, 90, 95, 99)
_SCRIPTS = {
    "Japanese": re.compile("[\u3040-\u30ff]"),
    "Korean": re.compile("[\uac00-\ud7af]"),
    "Chinese": re.compile("[\u4e00-\u9fff\u3400-\u4dbf]"),
    "Cyrillic": re.compile("[\u0400-\u04ff]"),
    "Arabic": re.compile("[\u0600-\u06ff]"),
    "Latin": re.compile("[A-Za-z\u00c0-\u024f]"),
}
"""What tells a script; the first of which there is enough counts."""
_ENOUGH = 0.2
"""Of the letters of a text, in the scripts that are written with others."""


@dataclass
class Lengths:
    """Lengths of many texts."""

    values: array[int] = field(default_factory=lambda: array("q"))

    def add(self, value: int) -> None:
        """Take one more into account."""
        self.values.append(value)

    def figures(self) -> dict[str, float]:
        """Return the mean, percentiles and the greatest."""
        ordered = sorted(self.values)
        if not ordered:
            return {}
        last = len(ordered) - 1
        found: dict[str, float] = {"mean": round(sum(ordered) / len(ordered), 1)}
        found |= {f"p{share}": ordered[round(last * share / 100)] for share in _SHARES}
        return found | {"max": ordered[-1]}


@dataclass
class Measured:
    """What is told of samples and of pairs alike."""

    counts: ClassVar[tuple[str, ...]]
    """The attributes that count something."""
    lengths: ClassVar[Mapping[str, str]]
    """The attributes that hold characters, by what they are characters of."""

    turns: Counter[int] = field(default_factory=Counter)
    """Samples by how many questions they have."""
    scripts: Counter[str] = field(default_factory=Counter)
    """Samples by the script of their answers, of pairs the better ones."""
    tokens: Lengths = field(default_factory=Lengths)
    """Of whole samples, of pairs the longer conversations, where a model was given."""
    overlong: int = 0
    """Samples with more tokens than there may be."""

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        found: dict[str, Any] = {name: getattr(self, name) for name in self.counts}
        found["turns"] = {str(turns): count for turns, count in sorted(self.turns.items())}
        found["scripts"] = dict(self.scripts.most_common())
        for told, name in self.lengths.items():
            found[f"{told}_characters"] = getattr(self, name).figures()
        if self.tokens.values:
            found |= {"tokens": self.tokens.figures(), "overlong": self.overlong}
        return found

    def _weigh(self, longest: Longest | None, *conversations: Sample) -> None:
        if longest is not None:
            tokens = max(map(longest.measure, conversations))
            self.tokens.add(tokens)
            self.overlong += tokens > longest.tokens


@dataclass
class Statistics(Measured):
    """What data is made of."""

    counts = ("samples", "messages", "answers", "learnt", "with_system", "with_tools")
    lengths = MappingProxyType({"question": "questions", "answer": "replies"})

    samples: int = 0
    messages: int = 0
    answers: int = 0
    learnt: int = 0
    """Answers with a weight above 0."""
    with_system: int = 0
    with_tools: int = 0
    questions: Lengths = field(default_factory=Lengths)
    """Characters of all but the answers that are learnt."""
    replies: Lengths = field(default_factory=Lengths)
    """Characters of the answers that are learnt."""

    def add(self, sample: Sample, longest: Longest | None) -> None:
        """Take a sample into account."""
        self.samples += 1
        self.messages += len(sample.messages)
        roles = Counter(each.role for each in sample.messages)
        self.answers += roles["assistant"]
        self.with_system += any(each.role == "system" and each.content for each in sample.messages)
        self.with_tools += any(each.tools or each.tool_calls for each in sample.messages)
        self.turns[roles["user"]] += 1
        weighted = list(zip(sample.messages, sample.weights, strict=True))
        said = [each.content for each, weight in weighted if weight]
        self.learnt += len(said)
        self.replies.add(sum(map(len, said)))
        self.questions.add(sum(len(each.content) for each, weight in weighted if not weight))
        self.scripts[script_of(said)] += 1
        self._weigh(longest, sample)


@dataclass
class PairStatistics(Measured):
    """What preference data is made of."""

    counts = ("pairs", "longer", "shorter", "with_margin")
    lengths = MappingProxyType({"prompt": "prompts", "chosen": "chosen", "rejected": "rejected"})

    pairs: int = 0
    longer: int = 0
    """Pairs whose better answer is the longer one, in characters."""
    shorter: int = 0
    with_margin: int = 0
    prompts: Lengths = field(default_factory=Lengths)
    """Characters of what is said before the answers."""
    chosen: Lengths = field(default_factory=Lengths)
    rejected: Lengths = field(default_factory=Lengths)

    def add(self, pair: Preference, longest: Longest | None) -> None:
        """Take a pair into account."""
        better, worse = len(pair.chosen.content), len(pair.rejected.content)
        self.pairs += 1
        self.longer += better > worse
        self.shorter += better < worse
        self.with_margin += pair.margin is not None
        self.turns[sum(each.role == "user" for each in pair.prompt)] += 1
        self.scripts[script_of([pair.chosen.content])] += 1
        self.prompts.add(sum(len(each.content) for each in pair.prompt))
        self.chosen.add(better)
        self.rejected.add(worse)
        self._weigh(longest, *(compared(pair, which) for which in (0, 1)))


@dataclass
class VerdictStatistics(Measured):
    """What answers with a verdict are made of."""

    counts = ("verdicts", "desirable", "undesirable")
    lengths = MappingProxyType({"prompt": "prompts", "desirable": "good", "undesirable": "bad"})

    verdicts: int = 0
    desirable: int = 0
    undesirable: int = 0
    prompts: Lengths = field(default_factory=Lengths)
    """Characters of what is said before the answers."""
    good: Lengths = field(default_factory=Lengths)
    """Characters of the answers that are good."""
    bad: Lengths = field(default_factory=Lengths)

    def add(self, verdict: Verdict, longest: Longest | None) -> None:
        """Take an answer into account."""
        self.verdicts += 1
        self.desirable += verdict.good
        self.undesirable += not verdict.good
        self.turns[sum(each.role == "user" for each in verdict.prompt)] += 1
        self.scripts[script_of([verdict.answer.content])] += 1
        self.prompts.add(sum(len(each.content) for each in verdict.prompt))
        (self.good if verdict.good else self.bad).add(len(verdict.answer.content))
        self._weigh(longest, verdict.sample)


def statistics(data: Data, longest: Longest | None = None) -> Generator[Progress, None, Statistics]:
    """Measure data.

    :param longest: how many tokens a sample has, and may have.
    """
    found = Statistics()
    yield from _measuring(data.samples(), len(data), lambda each: found.add(each, longest))
    return found


def pair_statistics(
    data: Data, longest: Longest | None = None
) -> Generator[Progress, None, PairStatistics]:
    """Measure preference data; the parameters are those of :func:`statistics`."""
    found = PairStatistics()
    yield from _measuring(data.preferences(), len(data), lambda each: found.add(each, longest))
    return found


def verdict_statistics(
    data: Data, longest: Longest | None = None
) -> Generator[Progress, None, VerdictStatistics]:
    """Measure answers with a verdict; the parameters are those of :func:`statistics`."""
    found = VerdictStatistics()
    yield from _measuring(data.verdicts(), len(data), lambda each: found.add(each, longest))
    return found


MEASURING: Mapping[Kind, Callable[..., Generator[Progress, None, Measured]]] = MappingProxyType(
    {
        "answers": statistics,
        "preferences": pair_statistics,
        "verdicts": verdict_statistics,
    }
)
"""What measures data, by what it holds; all take the parameters of :func:`statistics`."""


def _measuring(
    samples: Iterable[T], count: int, add: Callable[[T], None]
) -> Generator[Progress, None, None]:
    for number, each in enumerate(samples, 1):
        add(each)
        if number % _EVERY == 0:
            yield Progress("measuring", number, count)


def script_of(texts: Sequence[str]) -> str:
    """Return the script that texts are mostly in; ``other`` where they have no letters."""
    text = "".join(each[:2000] for each in texts)
    counts = {name: len(each.findall(text)) for name, each in _SCRIPTS.items()}
    letters = sum(counts.values())
    if not letters:
        return "other"
    mixed = next((name for name in list(counts)[:3] if counts[name] >= _ENOUGH * letters), None)
    return mixed or max(counts, key=lambda name: counts[name])
