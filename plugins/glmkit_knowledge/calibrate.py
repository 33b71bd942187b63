"""The similarity scale: how likely it is, from 0 to 1, that a passage answers a question.

Raw scores do not travel. The cosines of one encoder live in 0.7..0.95, another's around 0; BM25
grows with the base. So each candidate is described by a few features that mean the same for every
encoder and base, and one logistic curve turns them into a probability:

``sentence``  cosine of the question and the passage's best sentence, on a scale where 0 is as close
              as unrelated text of the passage's language and 1 is identical (see
              :class:`Background`)
``focus``     how far that sentence stands out from the others of its passage, same scale
``coverage``  share of the question's content terms found in the passage, weighted by rarity among
              the candidates; 0 across languages
``crossing``  1 if question and passage are in different languages, else 0
``codes``     share of the question's numbers, codes and Latin names that the passage lacks
``kind``      1 if a number or time was asked for and no good sentence holds one, else 0

:data:`WEIGHTS` was fitted by ``benchmarks/calibrate.py`` with the embedded encoder (see there for
the data and the figures); it is not fitted on the sample knowledge base, which is the check.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from glmkit import Encoder

THRESHOLD = 0.35
"""Below this probability a passage does not count as an answer."""


@dataclass(frozen=True)
class Evidence:
    """The features of one question and one passage; the module's docstring defines them."""

    sentence: float
    focus: float
    coverage: float
    crossing: float
    codes: float
    kind: float


@dataclass(frozen=True)
class Weights:
    """One logistic curve over :class:`Evidence`."""

    bias: float
    evidence: Evidence

    def probability(self, evidence: Evidence) -> float:
        """Return the probability, 0..1, that the passage answers the question."""
        pairs = zip(astuple(self.evidence), astuple(evidence), strict=True)
        return 1 / (1 + math.exp(-self.bias - sum(weight * value for weight, value in pairs)))


WEIGHTS = Weights(
    bias=-9.0,
    evidence=Evidence(sentence=10.9, focus=3.7, coverage=4.1, crossing=5.2, codes=-1.7, kind=-0.5),
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
    """What an encoder's cosines look like where nothing is related.

    Every encoder is measured against the same thirty-two everyday sentences, half of them Chinese.
    A question's mean cosine with those of a passage's language is the zero of the scale there,
    which also takes out the distance that an encoder puts between languages.

    :param vectors: unit vectors (N, D) of the sentences, by language.
    """

    def __init__(self, vectors: Mapping[str, np.ndarray]) -> None:
        self._vectors = vectors

    @classmethod
    def of(cls, encoder: Encoder, home: Path | None = None) -> Background:
        """Measure ``encoder``, or read what was measured before under ``home``."""
        return cls({language: _load(encoder, language, home) for language in _UNRELATED})

    def zeros(self, question: np.ndarray) -> dict[str, float]:
        """Return the mean cosine of a question vector (D,) with unrelated text, by language."""
        return {name: float((each @ question).mean()) for name, each in self._vectors.items()}


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
