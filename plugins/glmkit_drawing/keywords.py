"""A small table from Chinese to English, for what people wish for most.

It stands in for a chat model that speaks Chinese; what it lacks is said, never guessed.
"""

from __future__ import annotations

from typing import NamedTuple

_ANIMALS = (
    "狗 dog,小狗 puppy,柯基 corgi,猫 cat,小猫 kitten,猫咪 cat,老虎 tiger,狮子 lion,熊 bear,"
    "熊猫 panda,兔子 rabbit,老鼠 mouse,马 horse,牛 cow,羊 sheep,山羊 goat,猪 pig,鸡 chicken,"
    "小鸡 chick,鸭子 duck,鸟 bird,鹰 eagle,猫头鹰 owl,企鹅 penguin,鱼 fish,金鱼 goldfish,"
    "鲸鱼 whale,海豚 dolphin,鲨鱼 shark,章鱼 octopus,螃蟹 crab,青蛙 frog,乌龟 turtle,蛇 snake,"
    "龙 dragon,恐龙 dinosaur,大象 elephant,猴子 monkey,狐狸 fox,狼 wolf,鹿 deer,骆驼 camel,"
    "长颈鹿 giraffe,蝴蝶 butterfly,蜜蜂 bee,蜗牛 snail"
)
_FOOD = (
    "苹果 apple,香蕉 banana,橙子 orange,橘子 tangerine,葡萄 grapes,草莓 strawberry,"
    "西瓜 watermelon,桃子 peach,樱桃 cherries,柠檬 lemon,菠萝 pineapple,番茄 tomato,"
    "西红柿 tomato,胡萝卜 carrot,玉米 corn,蘑菇 mushroom,面包 bread,蛋糕 cake,"
    "米饭 bowl of rice,面条 noodles,饺子 dumplings,披萨 pizza,汉堡 hamburger,冰淇淋 ice cream,"
    "鸡蛋 egg,咖啡 cup of coffee,茶 cup of tea,啤酒 beer,牛奶 milk"
)
_THINGS = (
    "太阳 sun,月亮 moon,星星 star,云 cloud,雨 rain,雪 snow,彩虹 rainbow,火 fire,水 water,"
    "山 mountain,大海 sea,海 sea,海边 seaside,河 river,湖 lake,森林 forest,树 tree,花 flower,"
    "玫瑰 rose,向日葵 sunflower,草地 meadow,叶子 leaf,房子 house,城堡 castle,城市 city,"
    "桥 bridge,汽车 car,公交车 bus,火车 train,自行车 bicycle,飞机 airplane,船 boat,火箭 rocket,"
    "帽子 hat,眼镜 glasses,衣服 clothes,裙子 dress,鞋子 shoes,雨伞 umbrella,钟 clock,书 book,"
    "铅笔 pencil,手机 mobile phone,电脑 computer,吉他 guitar,钢琴 piano,球 ball,"
    "足球 soccer ball,气球 balloon,礼物 gift,灯 lamp,椅子 chair,桌子 table,床 bed,门 door,"
    "心 heart,皇冠 crown,机器人 robot,雪人 snowman,宇航员 astronaut,男孩 boy,女孩 girl,"
    "孩子 child,老人 old person,人 person,公主 princess,国王 king,天空 sky,夜空 night sky,"
    "夜晚 night,春天 spring,夏天 summer,秋天 autumn,冬天 winter"
)
_COLOURS = (
    "红色 red,红 red,橙色 orange,黄色 yellow,黄 yellow,绿色 green,绿 green,蓝色 blue,蓝 blue,"
    "紫色 purple,紫 purple,粉色 pink,粉红色 pink,黑色 black,黑 black,白色 white,白 white,"
    "灰色 grey,棕色 brown,金色 golden,银色 silver,彩色 colourful"
)
_OTHER = (
    "大 big,小 small,可爱 cute,漂亮 beautiful,美丽 beautiful,快乐 happy,开心 happy,"
    "微笑 smiling,笑 laughing,哭 crying,生气 angry,睡觉 sleeping,跑 running,飞 flying,"
    "坐 sitting,戴 wearing,戴着 wearing,穿着 wearing,拿着 holding,骑 riding,吃 eating,和 and,"
    "在 in,卡通 cartoon,油画 oil painting,水彩 watercolour,素描 pencil sketch,"
    "水墨画 Chinese ink painting,照片 photo,像素画 pixel art,动漫 anime,写实 realistic,"
    "风格 style,两只 two,三只 three,两个 two,三个 three"
)
_SILENT = (
    "一只 一个 一条 一匹 一头 一朵 一棵 一座 一辆 一架 一艘 一把 一顶 一本 一杯 一碗 一块 一片 "
    "一幅 一张 一位 一群 一 只 个 的 着 了 上 里 下 中 我 想 要 请 画 一下 给我 帮我 是 正在 "
    "有 很 非常 这 那"
)

TABLE: dict[str, str] = {
    chinese: english
    for group in (_ANIMALS, _FOOD, _THINGS, _COLOURS, _OTHER)
    for chinese, _, english in (each.partition(" ") for each in group.split(","))
}
"""English by Chinese word."""
_MARKS = frozenset("，。！？、；：,.!?;: \t\n“”\"'（）()")
_LONGEST = max(map(len, TABLE))


class Translation(NamedTuple):
    """What the table made of a wish."""

    english: str
    unknown: tuple[str, ...]
    """Pieces of the wish that the table lacks."""


def translate(wish: str) -> Translation:
    """Translate a Chinese wish word by word, the longest words first; other scripts stay."""
    silent = set(_SILENT.split())
    english: list[str] = []
    unknown: list[str] = []
    at, missing = 0, ""
    while at < len(wish):
        word = _longest(wish, at, silent)
        known = bool(word) or wish[at] in _MARKS
        if known and missing:
            _settle(missing, english, unknown)
            missing = ""
        if not known:
            missing += wish[at]
        elif word in TABLE:
            english.append(TABLE[word])
        at += len(word) or 1
    if missing:
        _settle(missing, english, unknown)
    return Translation(" ".join(english), tuple(unknown))


def _longest(wish: str, at: int, silent: set[str]) -> str:
    """Return the longest word of the table or of the silent ones that begins here."""
    for size in range(min(_LONGEST, len(wish) - at), 0, -1):
        word = wish[at : at + size]
        if word in TABLE or word in silent:
            return word
    return ""


def _settle(piece: str, english: list[str], unknown: list[str]) -> None:
    """Keep a piece of another script as it is; remember one of Chinese."""
    if any("\u3400" <= each <= "\u9fff" for each in piece):
        unknown.append(piece)
    else:
        english.append(piece)
