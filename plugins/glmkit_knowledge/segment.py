"""Words for the lexical index: Chinese by jieba, everything else by runs of letters and digits.

Documents and questions go through the same :func:`words`, so that what was written is what is
found. jieba and its dictionary (a quarter of a second) are loaded with the first Chinese text.
"""

from __future__ import annotations

import logging
import marshal
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

_MOST_TERMS = 64
"""A question may be a whole document; more terms than this only cost time."""

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SYLLABLES = "\u3041-\u30ff\uac00-\ud7af"
_TOKEN = re.compile(
    rf"[{_HAN}]+|[{_SYLLABLES}]+"
    rf"|[^\W_{_HAN}{_SYLLABLES}]+(?:[-_./:@+#]+[^\W_{_HAN}{_SYLLABLES}]+)*(?:[+#]{{1,2}}(?!\w))?"
)
_HAN_TEXT = re.compile(f"[{_HAN}]")
_SYLLABLE_TEXT = re.compile(f"[{_SYLLABLES}]")
_JOINT = re.compile(r"[-_./:@+#]+")

_ENGLISH_STOP = """a an the of in on at to for from by with about into over after before and or but
    if is are was were be been being am do does did done have has had can could may might shall
    should will would what which who whom whose when where why how it its he she they them his her
    their this that these those there here i me my we our us you your please tell as not no than
    then so s t m d re ve ll"""
_CHINESE_STOP = """的 了 是 在 有 和 与 或 及 等 也 都 就 还 又 很 最 被 把 对 从 到 为 以 于 由 其
    之 而 吗 呢 吧 啊 我 你 他 她 它 我们 你们 他们 这 那 这个 那个 什么 怎么 怎样 如何 哪 哪里 哪儿
    哪个 哪些 谁 多少 几 为什么 请 请问 是否 可以 能 会 要 一个 一下 告诉 个 上 中 里 下"""
STOP_WORDS = frozenset(f"{_ENGLISH_STOP} {_CHINESE_STOP}".split())


def words(text: str, cache: Path) -> list[str]:
    """Return the words of a text in order, lower-cased.

    A compound such as ``--max-tokens`` or ``rivers.md`` gives its parts and itself
    (``max_tokens``); a Chinese word gives itself and the shorter words inside it.

    :param cache: private folder for jieba's prepared dictionary.
    """
    normal = unicodedata.normalize("NFKC", text).lower()
    return [word for found in _TOKEN.finditer(normal) for word in _split(found[0], cache)]


def index_text(text: str, cache: Path) -> str:
    """Return the words of a text, separated by spaces, as the full-text table stores them."""
    return " ".join(words(text, cache))


def query_terms(question: str, cache: Path) -> list[str]:
    """Return the distinct words of a question that are no stop words, at most 64."""
    found = dict.fromkeys(word for word in words(question, cache) if word not in STOP_WORDS)
    return list(found)[:_MOST_TERMS]


def _split(token: str, cache: Path) -> Iterator[str]:
    if _HAN_TEXT.match(token):
        return _chinese(token, cache)
    if _SYLLABLE_TEXT.match(token):
        return iter(_pairs(list(token)) or [token])
    return _compound(token)


def _compound(token: str) -> Iterator[str]:
    parts = [part for part in _JOINT.split(token) if part]
    yield from parts
    if len(parts) > 1:
        yield "_".join(parts)
    if token.endswith(("+", "#")):
        yield token.replace("/", "_").replace(".", "_")


def _chinese(run: str, cache: Path) -> Iterator[str]:
    """Yield jieba's words; characters that it knows no word for come single and in pairs.

    jieba's guesses about unknown words depend on what stands around them, so that a name could be
    one word in the document and another in the question. Pairs don't.
    """
    for single, group in groupby(_tokenizer(cache).cut_for_search(run, HMM=False), _is_single):
        found = list(group)
        yield from found
        if single:
            yield from _pairs(found)


def _is_single(word: str) -> bool:
    return len(word) == 1


def _pairs(characters: list[str]) -> list[str]:
    return [first + second for first, second in zip(characters, characters[1:], strict=False)]


def _tokenizer(cache: Path) -> Any:  # noqa: ANN401
    """Return jieba's tokenizer; the dictionary is the same whatever folder keeps it prepared."""
    tokenizer = _unprepared()
    if not tokenizer.initialized:
        _prepare(tokenizer, cache)
    return tokenizer


@lru_cache(maxsize=1)
def _unprepared() -> Any:  # noqa: ANN401
    with warnings.catch_warnings():
        # jieba 0.42 has invalid escapes in its sources, which Python reports when compiling them.
        warnings.simplefilter("ignore")
        import jieba
    # It reports loading on stderr.
    logging.getLogger("jieba").setLevel(logging.CRITICAL)
    return jieba.Tokenizer()


def _prepare(tokenizer: Any, cache: Path) -> None:  # noqa: ANN401
    """Load the dictionary, keeping its marshalled form in a private folder.

    By default jieba reads that file from the temporary directory, where anybody may put one.
    """
    import jieba

    folder = cache / f"jieba-{jieba.__version__}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    tokenizer.tmp_dir = str(folder)
    # jieba writes this file and reads it with marshal.load, which takes three times as long.
    with tokenizer.lock, suppress(OSError, EOFError, TypeError, ValueError):
        saved = (folder / "jieba.cache").read_bytes()
        tokenizer.FREQ, tokenizer.total = marshal.loads(saved)
        tokenizer.initialized = True
    tokenizer.initialize()
