"""What people call an emoji: names, keywords and colours, in short wishes of two languages."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

from .data import Emoji

_ENGLISH = (
    "{}", "a {}", "the {}", "one {}", "my {}", "{} emoji", "a {}", "{}",
    "a picture of a {}", "a photo of a {}", "an icon of a {}", "an image of the {}",
    "a drawing of a {}", "draw a {}", "please draw the {}", "draw me a {}",
    "a cute {}", "a little {}", "a big {}", "a beautiful {}", "a simple {}", "a funny {}",
    "a piece of {}", "a bunch of {}", "a pair of {}", "a slice of {}", "a cup of {}",
    "a bowl of {}", "a bottle of {}", "two {}", "some {}",
    "a {} on a table", "a {} in the garden", "a {} in the snow", "a {} on the beach",
    "a {} on a white background", "a {} in the city",
)  # fmt: skip
_CHINESE = (
    "{}", "{}", "{}", "{}图片", "{}的照片", "{}表情", "一张{}的图片", "画一个{}", "请画{}",
    "帮我画一个{}", "可爱的{}", "小{}", "大{}", "美丽的{}", "桌子上的{}", "花园里的{}",
    "雪地里的{}", "白色背景上的{}",
)  # fmt: skip
MEASURES = "个只张块杯架座把件位朵辆条颗匹头棵串根枚轮本支台艘顶双副套幅盘碗瓶片粒扇面盏列间栋封部"
"""What counts things in Chinese: ``"一匹马"``."""
_QUALITIES = ("", "", "", "小", "大", "可爱的", "美丽的", "漂亮的", "小小的", "可爱的小")
_COLOURS = {
    "red": "红色", "orange": "橙色", "brown": "棕色", "yellow": "黄色", "green": "绿色",
    "blue": "蓝色", "purple": "紫色", "pink": "粉色", "black": "黑色", "white": "白色",
    "grey": "灰色",
}  # fmt: skip
_VOWEL = re.compile(r"\ba (?=[aeiou])")
_LETTERS = re.compile("[a-z]+")
_CHARACTERS = re.compile("[\u3400-\u9fff]+")
_SPACES = re.compile(r"\s+")


def caption(emoji: Emoji, dice: random.Random, *, chinese: bool) -> str:
    """Return one way to wish for the emoji: its name, keywords or both, perhaps with its colour."""
    language = int(chinese)
    name, tags = plain(emoji.names[language]), [plain(tag) for tag in emoji.tags[language]]
    draw = dice.random()
    if tags and draw < 0.15:
        joint = "" if chinese else " "
        return joint.join(dice.sample(tags, min(len(tags), dice.randint(2, 3))))
    if tags and draw < 0.25:
        return f"{name} {dice.choice(tags)}"
    thing = dice.choice(tags) if tags and draw < 0.5 else name
    if emoji.colour and dice.random() < 0.2:
        thing = (
            f"{_COLOURS[emoji.colour]}{dice.choice(('的', ''))}{thing}"
            if chinese
            else f"{emoji.colour} {thing}"
        )
    return wished(thing, dice, chinese=chinese)


def wished(thing: str, dice: random.Random, *, chinese: bool) -> str:
    """Put a thing into a sentence: ``"a picture of an apple"``."""
    if chinese and dice.random() < 0.5:
        return f"{dice.choice('一一一两')}{dice.choice(MEASURES)}{dice.choice(_QUALITIES)}{thing}"
    said = dice.choice(_CHINESE if chinese else _ENGLISH).format(thing)
    return said if chinese or thing.startswith("uni") else _VOWEL.sub("an ", said)


def known_words(emoji: Iterable[Emoji]) -> list[str]:
    """Return every English word and Chinese term that captions of these emoji are made of."""
    texts = [
        text
        for each in emoji
        for names in ((each.names[0], *each.tags[0]), (each.names[1], *each.tags[1]))
        for text in names
    ]
    said = " ".join((*texts, *_ENGLISH, *_COLOURS)).lower()
    chinese = (*texts, *_CHINESE, *_COLOURS.values(), *_QUALITIES, *MEASURES, *"一两的")
    terms = (term for text in chinese for term in _CHARACTERS.findall(text))
    return sorted({*_LETTERS.findall(said), *terms})


def plain(name: str) -> str:
    """Return a name without the signs that the standard puts in: ``"man curly hair"``."""
    return _SPACES.sub(" ", re.sub("[:：“”()（）]", " ", name)).strip()
