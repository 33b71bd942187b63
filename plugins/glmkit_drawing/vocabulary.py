"""What a small picture model knows of a wish: words that it never met mean nothing to it."""

from __future__ import annotations

import re
from collections.abc import Collection

_WORD = re.compile(r"[a-z]+(?:['’][a-z]+)?")
_CHINESE = re.compile(r"[㐀-鿿]+")
_ENDINGS = ("", "s", "es", "y", "'s", "’s")
_KINDS = (
    "corgi poodle husky labrador retriever beagle terrier bulldog chihuahua pug doggy: dog,"
    "kitty tabby siamese: cat,bunny hare: rabbit,pony stallion: horse,sparrow robin: bird,"
    "sedan limousine convertible: car,cottage bungalow villa: house,oak maple: tree,"
    "柯基 柴犬 金毛 哈士奇 泰迪 拉布拉多 贵宾犬 吉娃娃 斗牛犬 边牧 萨摩耶: 狗,"
    "布偶猫 橘猫 英短 美短 暹罗猫: 猫,轿车 跑车 越野车: 汽车,别墅 小屋 木屋: 房子,"
    "麻雀 喜鹊 燕子: 鸟,橡树 枫树: 树"
)
_SILENT = frozenset("戴穿拿着中上里下在和与有是")
"""Characters that say how things go together, which such a model leaves aside."""
KINDS: dict[str, str] = {
    word: kind.strip()
    for words, _, kind in (each.partition(":") for each in _KINDS.split(","))
    for word in words.split()
}
"""Words for words that are wished for often, each with the kind of thing that it is."""


def in_known_words(wish: str, known: Collection[str]) -> tuple[str, dict[str, str], list[str]]:
    """Put a wish into words that a model knows, as far as that goes.

    :param known: English words in small letters, and Chinese terms.
    :return: the wish; what was replaced by what; what is not known, in order.
    """
    swapped = {
        word: KINDS[word]
        for word in (*unknown(wish, known), *_parts(wish, known))
        if KINDS.get(word) in known
    }
    for word, kind in swapped.items():
        edge = r"\b" if word.isascii() else ""
        wish = re.sub(f"{edge}{word}{edge}", kind, wish, flags=re.IGNORECASE)
    return wish, swapped, unknown(wish, known)


def unknown(wish: str, known: Collection[str]) -> list[str]:
    """Return the words of a wish that a model does not know, each once, in order."""
    english = [word for word in _WORD.findall(wish.lower()) if not _is_known(word, known)]
    chinese = [part for run in _CHINESE.findall(wish) for part in _left_over(run, known)]
    return list(dict.fromkeys([*english, *chinese]))


def _parts(wish: str, known: Collection[str]) -> list[str]:
    """Return words with a kind that stand inside unknown ones, such as 柯基 in 柯基犬."""
    return [each for part in unknown(wish, known) for each in KINDS if each in part]


def _is_known(word: str, known: Collection[str]) -> bool:
    return any(word.removesuffix(end) in known for end in _ENDINGS)


def _left_over(run: str, known: Collection[str]) -> list[str]:
    """Return the parts of Chinese characters that no term covers, the longest terms first."""
    longest = max(map(len, known), default=0)
    parts: list[str] = []
    at, open_part = 0, False
    while at < len(run):
        lengths = range(min(longest, len(run) - at), 0, -1)
        parts_of = (run[at : at + each] for each in lengths)
        size = next((len(each) for each in parts_of if each in known or each in _SILENT), 0)
        if not size and open_part:
            parts[-1] += run[at]
        elif not size:
            parts.append(run[at])
        open_part = not size
        at += size or 1
    return parts
