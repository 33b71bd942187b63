"""The similarity scale: how likely it is, from 0 to 1, that a passage answers a question.

Raw scores do not travel. The cosines of one encoder live in 0.7..0.95, another's around 0; BM25
grows with the base. So each candidate is described by a few features that mean the same for every
encoder and base, and one logistic curve turns them into a probability:

``passage``   cosine of the question and the passage, on a scale where 0 is as close as other text
              of the passage's language and 1 is identical (see :class:`Background`)
``sentence``  the same for the passage's best sentence
``margin``    how far that is above the median of the other candidates in its language
``coverage``  share of the question's content terms found in the passage, weighted by rarity among
              the candidates; 0 across languages
``crossing``  1 if question and passage are in different languages, else 0
``codes``     share of the question's numbers, codes and Latin names that the passage lacks

:data:`WEIGHTS` was fitted by ``benchmarks/calibrate.py`` with the embedded encoder (see there for
the data and the figures); it is not fitted on the sample knowledge base, which is the check.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from glmkit import Encoder

THRESHOLD = 0.154
"""Below this probability a passage does not count as an answer. Chosen on the sample base so that
refusals hold: it refuses 14 of 15 unanswerable questions in either language there, and also 4 of 30
answerable English ones and 3 of 30 Chinese ones, nearly all of them answered only in the other
language. Rounding in the encoder moves the scores nearest to it across."""


SAMPLE = 256
"""Chunks of a base that its zero is measured with, at most."""
WEIGHT = 8
"""How many chunks the everyday sentences of a language count as."""


@dataclass(frozen=True)
class Evidence:
    """The features of one question and one passage; the module's docstring defines them."""

    passage: float
    sentence: float
    margin: float
    coverage: float
    crossing: float
    codes: float


@dataclass(frozen=True)
class Curve:
    """A logistic curve over :class:`Evidence`."""

    bias: float
    evidence: Evidence

    def probability(self, evidence: Evidence) -> float:
        """Return the probability, 0..1, that the passage answers the question."""
        pairs = zip(astuple(self.evidence), astuple(evidence), strict=True)
        return 1 / (1 + math.exp(-self.bias - sum(weight * value for weight, value in pairs)))


@dataclass(frozen=True)
class Weights:
    """One curve for passages in the question's language and one for those in another."""

    near: Curve
    far: Curve

    def probability(self, evidence: Evidence) -> float:
        """Return the probability, 0..1, that the passage answers the question."""
        return (self.far if evidence.crossing else self.near).probability(evidence)


WEIGHTS = Weights(
    near=Curve(-6.08, Evidence(2.35, 4.72, 5.81, 1.83, 0.0, -0.77)),
    far=Curve(-4.44, Evidence(3.17, 7.5, 4.19, 0.0, 0.0, -2.52)),
)

_UNRELATED: Mapping[str, tuple[str, ...]] = {
    "zh": (
        "会议改到下星期三下午举行。",
        "她把钥匙忘在了厨房的桌子上。",
        "这家公司去年的营业额增长了百分之八。",
        "请在安装之前仔细阅读说明书。",
        "孩子们在操场上踢足球。",
        "把洋葱切碎，用小火炒五分钟。",
        "这部电影讲的是两个老朋友重逢的故事。",
        "申请表必须在月底之前交到办公室。",
        "数据库每天夜里自动备份一次。",
        "这幅画现在收藏在市立博物馆。",
        "医生建议他每天散步半小时。",
        "火车因为大雪晚点了两个小时。",
        "国王在位三十年，死后由他的儿子继位。",
        "这种植物喜欢潮湿和半阴的地方。",
        "乐队在第二张唱片里换了鼓手。",
        "水在一百摄氏度沸腾。",
    ),
    "en": (
        "The meeting was moved to Wednesday afternoon.",
        "She left her keys on the kitchen table.",
        "The company's sales grew by eight percent last year.",
        "Please read the manual before you install the device.",
        "The children are playing football in the yard.",
        "Chop the onions and fry them gently for five minutes.",
        "The film tells the story of two old friends who meet again.",
        "The form must reach the office by the end of the month.",
        "The database is backed up automatically every night.",
        "The painting now hangs in the city museum.",
        "The doctor told him to walk for half an hour a day.",
        "The train was two hours late because of heavy snow.",
        "The king ruled for thirty years and was followed by his son.",
        "This plant likes damp and half-shaded places.",
        "The band changed its drummer for the second record.",
        "Water boils at one hundred degrees Celsius.",
    ),
}


class Background:
    """What an encoder's cosines look like where nothing answers.

    Every encoder is measured against the same thirty-two everyday sentences, half of them Chinese,
    and against up to :data:`SAMPLE` chunks of the base itself: the mean cosine of a question with
    those of a passage's language is the zero of the scale there. That takes out the distance that
    an encoder puts between languages, and the subject that a base is about. The sentences count as
    much as :data:`WEIGHT` chunks, so that a base of three chunks has a zero too.

    :param vectors: unit vectors (N, D) of the sentences, by language.
    :param base: unit vectors (N, D) of the base's chunks, by language.
    """

    def __init__(
        self, vectors: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self._vectors = vectors
        self._base = base or {}

    @classmethod
    def of(cls, encoder: Encoder, home: Path | None = None) -> Background:
        """Measure ``encoder``, or read what was measured before under ``home``."""
        return cls({language: _load(encoder, language, home) for language in _UNRELATED})

    def rows(self) -> Iterator[np.ndarray]:
        """Yield the vector (D,) of each sentence."""
        for each in self._vectors.values():
            yield from each

    def against(self, base: Mapping[str, np.ndarray]) -> Background:
        """Return this background with chunks of a base, by language."""
        return Background(self._vectors, base)

    def zeros(self, question: np.ndarray) -> dict[str, float]:
        """Return the zero of the scale for a question vector (D,), by passage language."""
        return {language: self._zero(language, question) for language in self._vectors}

    def _zero(self, language: str, question: np.ndarray) -> float:
        everyday = float((self._vectors[language] @ question).mean())
        chunks = self._base.get(language)
        if chunks is None or not len(chunks):
            return everyday
        total = WEIGHT * everyday + float((chunks @ question).sum())
        return total / (WEIGHT + len(chunks))

    def neutral(self, question: np.ndarray) -> np.ndarray:
        """Return a question's unit vector (D,) without what only tells its language.

        Encoders put texts of one language together. Searching with the part of the vector that is
        perpendicular to the difference of the languages' means ranks passages of both alike.
        """
        import numpy as np

        first, second = (each.mean(axis=0) for each in self._vectors.values())
        across = first - second
        length = float(np.linalg.norm(across))
        if length < 1e-6:
            return question
        rest = question - (question @ across) / length**2 * across
        unit: np.ndarray = rest / max(float(np.linalg.norm(rest)), 1e-6)
        return unit.astype(np.float32)


def _load(encoder: Encoder, language: str, home: Path | None) -> np.ndarray:
    texts = _UNRELATED[language]
    if home is None:
        return encoder.encode(texts, kind="passage")
    import numpy as np

    key = hashlib.sha256("\n".join((encoder.name, *texts)).encode()).hexdigest()[:16]
    path = home / "knowledge" / f"background-{key}.npy"
    try:
        vectors = np.load(path, allow_pickle=False)
        if vectors.shape == (len(texts), encoder.dimensions):
            return np.asarray(vectors, dtype=np.float32)
    except (OSError, ValueError, EOFError):
        pass  # missing or cut short: measured again below
    vectors = encoder.encode(texts, kind="passage")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}-{id(vectors):x}.tmp.npy")
    np.save(temporary, vectors, allow_pickle=False)
    temporary.replace(path)
    return vectors


def relative(cosine: float, zero: float) -> float:
    """Return ``cosine`` on a scale where ``zero`` is 0 and identical is 1."""
    return (cosine - zero) / max(1e-6, 1 - zero)
