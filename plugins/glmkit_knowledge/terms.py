"""What a question asks about: its content terms, its hard tokens and the kind of its answer.

Everything here is plain text work, in Chinese and English, without a dictionary or a model: the
encoder judges meaning, this module judges whether the very things that were asked about occur.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Literal

from glmkit import language_of

AnswerKind = Literal["number", "time", "none"]

_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_HAN_RUN = re.compile(f"[{_HAN}]+")
_LATIN = re.compile(r"[A-Za-z][A-Za-z0-9'_+#-]*|\d[\d.,:]*[A-Za-z0-9]*")

_ENGLISH_STOP = frozenset(
    """a an the of in on at to for from by with without about into over after before and or but if
    is are was were be been being am do does did done have has had can could may might must shall
    should will would what which who whom whose when where why how long much many far old often
    big large high tall deep wide heavy fast it its he she they them his her their this that these
    those there here i me my we our us you your please tell me know called name named give say said
    any some all not no than then also very so as just only mean means mean's get take there's
    what's who's it's kind type sort there one""".split()
)
# Question words and the grammar around them, longest first: they are cut out of Chinese questions
# before bigrams are taken, so that "谁发明了" leaves "发明".
_CHINESE_STOP = re.compile(
    "|".join(
        sorted(
            """请问 请 什么时候 什么样 什么 怎么样 怎么 怎样 如何 多少 多久 多长时间 多长 多高
            多大 多远 多深 多重 多宽 多快 几个 几天 几点 几 哪里 哪儿 哪个 哪些 哪一年 哪年
            哪一 哪种 哪位 哪 谁 为什么 是否 能不能 可不可以 可以 是不是 有没有 吗 呢 吧 啊
            的 了 是 在 有 被 把 和 与 或 及 等 能 会 要 应该 需要 叫做 叫 一个 一共 一次
            这个 那个 这 那 我 你 他 她 它 们 于 从 到 为 以 所 由 其 并 而 也 都 就 还 又
            很 最 以及 之 对 向 中 里 上 下 时候 意思 分别""".split(),
            key=len,
            reverse=True,
        )
    )
)

_NUMBER = re.compile(r"\d|[零一二两三四五六七八九十百千万亿半]+|%|％")
_ENGLISH_NUMBER = re.compile(
    r"\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen"
    r"|sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
    r"|hundred|thousand|million|billion|half|dozen|once|twice|free)\b",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"\b\d{3,4}\b|\d{1,2}[:.]\d\d|[年月日时点]|世纪|星期|周[一二三四五六日]|\b[ap]m\b"
    r"|\b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\b|day\b|century|ago\b|during"
    r"|\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b|after|before|beyond|until",
    re.IGNORECASE,
)
_ASKS_NUMBER = re.compile(
    r"多少|多长|多高|多大|多远|多深|多重|多宽|多快|多久|几(?!乎)|\bhow\s+(?:many|much|long|high|tall|deep"
    r"|wide|heavy|far|fast|old|big|large|often)\b|\bwhat\s+(?:percentage|temperature|number)\b",
    re.IGNORECASE,
)
_ASKS_TIME = re.compile(
    r"什么时候|何时|哪一?年|几点|哪一?天|哪个世纪|\bwhen\b|\b(?:which|what)\s+(?:year|day|date|time|century)\b",
    re.IGNORECASE,
)


def is_chinese(text: str) -> bool:
    """Say whether ``text`` is mainly Chinese; a Chinese character weighs as much as a word."""
    return language_of(text) == "zh"


@cache
def _stem(word: str) -> str:
    """Return ``word`` without the commonest English endings, so that "rivers" meets "river"."""
    for ending, least in (("ies", 5), ("ing", 6), ("ed", 5), ("es", 5), ("s", 4), ("e", 5)):
        if word.endswith(ending) and len(word) >= least and not word.endswith("ss"):
            return word[: -len(ending)] + ("y" if ending == "ies" else "")
    return word


def latin_terms(text: str) -> list[str]:
    """Return the stemmed content words and numbers in Latin script, in order."""
    words = (word.lower().rstrip(".,:'-") for word in _LATIN.findall(text))
    words = (word.removesuffix("'s") for word in words)
    return [_stem(word) for word in words if word not in _ENGLISH_STOP]


def han_terms(text: str) -> list[str]:
    """Return the Chinese content terms of a question: bigrams of what its grammar leaves over."""
    terms: list[str] = []
    for run in _HAN_RUN.findall(_CHINESE_STOP.sub(" ", text)):
        terms += [run[i : i + 2] for i in range(len(run) - 1)] if len(run) > 1 else [run]
    return terms


def content_terms(text: str) -> list[str]:
    """Return what a question is about, each term once, in order."""
    return list(dict.fromkeys([*han_terms(text), *latin_terms(text)]))


def without_common(question: str, texts: Sequence[str], *, share: float) -> str:
    """Return a question without the names and codes that at least ``share`` of ``texts`` hold.

    In the manual of one product every passage names it: that a passage does says nothing, yet an
    encoder takes it for likeness. The question is kept whole if little else is left of it.
    """
    held = [_vocabulary(text) for text in texts]
    rest = question
    for word in dict.fromkeys(_LATIN.findall(question)):
        term = next(iter(latin_terms(word)), "")
        if term and sum(term in words for words in held) >= share * max(1, len(held)):
            rest = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", " ", rest)
    rest = " ".join(rest.split())
    return rest if content_terms(rest) else question


def hard_tokens(text: str) -> list[str]:
    """Return the terms that keep their form in every language: numbers, codes, Latin names.

    In an English question only terms with a digit or an inner capital count, because its names may
    be written in Chinese in the passage.
    """
    tokens = [word.rstrip(".,:'-") for word in _LATIN.findall(text)]
    if not is_chinese(text):
        tokens = [word for word in tokens if _is_code(word)]
    return list(dict.fromkeys(word.lower() for word in tokens if word.lower() not in _ENGLISH_STOP))


def _is_code(word: str) -> bool:
    return any(each.isdigit() or each == "_" for each in word) or (
        len(word) > 1 and any(each.isupper() for each in word[1:])
    )


@lru_cache(maxsize=4096)
def _vocabulary(text: str) -> frozenset[str]:
    """Return the Latin terms of a text; each candidate is asked for every term of the question."""
    return frozenset(latin_terms(text))


def coverage(terms: Sequence[str], text: str) -> float:
    """Return the share of ``terms`` that occur in ``text``, 0..1; 1 for no terms."""
    if not terms:
        return 1.0
    words = _vocabulary(text)
    return sum(term in words or _is_han(term) and term in text for term in terms) / len(terms)


def _is_han(term: str) -> bool:
    return bool(_HAN_RUN.match(term))


def missing_tokens(tokens: Sequence[str], text: str) -> float:
    """Return the share of ``tokens`` (lower case) that ``text`` lacks, 0..1; 0 for no tokens."""
    if not tokens:
        return 0.0
    lower = text.lower()
    return sum(not _holds(token, lower) for token in tokens) / len(tokens)


def _holds(token: str, lower: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){re.escape(token)}(?![0-9])", lower) is not None


def answer_kind(question: str) -> AnswerKind:
    """Say what kind of thing a question asks for, as far as a pattern can tell."""
    if _ASKS_TIME.search(question):
        return "time"
    return "number" if _ASKS_NUMBER.search(question) else "none"


def holds_kind(kind: AnswerKind, text: str) -> bool:
    """Say whether ``text`` has anything of that kind in it."""
    if kind == "number":
        return bool(_NUMBER.search(text) or _ENGLISH_NUMBER.search(text))
    return kind == "none" or bool(_TIME.search(text))


_POINTS_BACK = re.compile(
    r"^(?:it|its|they|their|he|his|she|her|this|these|that|those|both|there)\b"
    r"|^[^，。；：]{0,20}[，：]?它|^(?:它|他|她|其(?!他|中)|这|那(?!不勒斯)|该|此|两者|前者|后者)",
    re.IGNORECASE,
)


def points_back(sentence: str) -> bool:
    """Say whether a sentence opens with a word that stands for something said before it."""
    return bool(_POINTS_BACK.match(sentence))
