"""Scores of an answer against the answer that was wanted, each from 0 to 100.

``rouge-1``, ``rouge-2``, ``rouge-l``
    F1 of the words, pairs of words and the longest common subsequence of words. Words are jieba's;
    what stands between blanks (English) is a word there too, case and all. Computed by
    rouge-chinese, which also breaks what it compares at the ends of sentences.
``bleu-4``
    BLEU over *characters*, smoothed by method 3 of NLTK, which computes it. So do the scripts of
    ChatGLM's P-Tuning and LLaMA-Factory, whose figures these are to the digit.
``bleu-4-words``
    The same over what stands between blanks, for languages that have them: over characters,
    English texts score high that have little in common.
``exact``
    100 where both are the same text but for case, width, blanks and punctuation at the ends.

An empty answer scores 0, unless an empty one was wanted. The score of a file is the mean.
"""

from __future__ import annotations

import logging
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import MissingExtraError, UnknownNameError

LOSS = "loss"
"""What tables call the mean loss of a token, in nats."""
METRICS = {
    "bleu": ("bleu-4", "bleu-4-words"),
    "rouge": ("rouge-1", "rouge-2", "rouge-l"),
    "exact": ("exact",),
}
"""What can be asked for -> the scores that it gives."""


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    """Return the scores that metrics give, in their order.

    :raises UnknownNameError: if there is no such metric.
    """
    wanted: set[str] = set()
    for name in names:
        if name not in METRICS:
            raise UnknownNameError("metric", name, METRICS)
        wanted.update(METRICS[name])
    return tuple(each for given in METRICS.values() for each in given if each in wanted)


class Scorer:
    """Scores answers.

    :param metrics: of :data:`METRICS`.
    :param cache: private folder for jieba's prepared dictionary; None: it is prepared anew, which
        takes a second.
    :raises UnknownNameError: if there is no such metric.
    """

    def __init__(self, metrics: Iterable[str] = METRICS, *, cache: Path | None = None) -> None:
        self.scores = chosen(metrics)
        self._cache = cache

    def score(self, predict: str, label: str) -> dict[str, float]:
        """Return the scores of one answer, by name.

        ``bleu-4-words`` is left out where the wanted answer has no blanks between its words.
        """
        found: dict[str, float] = {}
        if "rouge-l" in self.scores:
            found |= _rouge(self._words(predict), self._words(label))
        if "bleu-4" in self.scores:
            found["bleu-4"] = _bleu(list(predict), list(label))
            if spaced(label):
                found["bleu-4-words"] = _bleu(predict.split(), label.split())
        if "exact" in self.scores:
            found["exact"] = 100.0 * (normalised(predict) == normalised(label))
        return found

    def _words(self, text: str) -> str:
        """Return a text with blanks between its words."""
        return " ".join(_jieba(self._cache).cut(text))


def normalised(text: str) -> str:
    """Return a text without what tells no answers apart: case, width, blanks, ends.

    >>> normalised(" “Paris”。 ") == normalised("paris")
    True
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _BLANKS.sub("", text).strip(_ENDS)


_HAN = "\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uff00-\uffef"
_BLANKS = re.compile(rf"(?<=[{_HAN}]) | (?=[{_HAN}])")
"""Blanks beside Chinese characters, which mean nothing."""
_ENDS = " .,:;!?\"'`*()[]{}<>·。，、：；！？“”‘’「」『』《》〈〉【】（）…"


def spaced(text: str) -> bool:
    """Tell whether a text is of a language that puts blanks between words."""
    return " " in text.strip() and not re.search(rf"[{_HAN}\u3040-\u30ff]", text)


def _rouge(predict: str, label: str) -> dict[str, float]:
    names = METRICS["rouge"]
    if not predict.split() or not label.split():
        return dict.fromkeys(names, 100.0 * (predict.split() == label.split()))
    found = _rouges().get_scores(predict, label)[0]
    return {name: round(100 * found[name]["f"], 4) for name in names}


def _bleu(predict: list[str], label: list[str]) -> float:
    if not predict or not label:
        return 100.0 * (predict == label)
    return round(100 * float(_sentence_bleu()(predict, label)), 4)


@lru_cache(maxsize=1)
def _rouges() -> Any:  # noqa: ANN401
    try:
        from rouge_chinese import Rouge
    except ImportError as error:
        raise MissingExtraError("ROUGE", "rouge-chinese", "finetune") from error
    return Rouge()


@lru_cache(maxsize=1)
def _sentence_bleu() -> Callable[[list[str], list[str]], float]:
    try:
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    except ImportError as error:
        raise MissingExtraError("BLEU", "nltk", "finetune") from error
    smooth = SmoothingFunction().method3

    def bleu(predict: list[str], label: list[str]) -> float:
        return float(sentence_bleu([label], predict, smoothing_function=smooth))

    return bleu


@lru_cache(maxsize=1)
def _jieba(cache: Path | None) -> Any:  # noqa: ANN401
    with warnings.catch_warnings():
        # jieba 0.42 has invalid escapes in its sources, which Python reports when compiling them.
        warnings.simplefilter("ignore")
        try:
            import jieba
        except ImportError as error:
            raise MissingExtraError("ROUGE", "jieba", "finetune") from error
    logging.getLogger("jieba").setLevel(logging.CRITICAL)  # it reports loading on stderr
    tokenizer = jieba.Tokenizer()
    with TemporaryDirectory() as own:
        # By default jieba reads its file from the temporary directory, where anybody may put one.
        folder = Path(own) if cache is None else cache
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tokenizer.tmp_dir = str(folder)
        tokenizer.initialize()
    return tokenizer
