"""Every text of the page, in English and Chinese."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

LANGUAGES: Mapping[str, str] = MappingProxyType({"en": "English", "zh": "中文"})
"""What the page speaks, each by its own name; the first where nobody says."""

TEXTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "chat": ("Chat", "对话"),
        "draw": ("Draw", "绘图"),
        # -- talking -------------------------------------------------------------------------
        "welcome": ("How can I help?", "有什么可以帮您？"),
        "welcome_more": (
            "Ask anything, or add documents and ask about them.",
            "直接提问，或先添加文档，再就文档提问。",
        ),
        "speaks": ("The model here speaks {languages} only.", "这里的模型只会{languages}。"),
        "language_en": ("English", "英语"),
        "language_zh": ("Chinese", "中文"),
        "example_1": (
            "Explain in two sentences why the sky is blue.",
            "用两句话解释天空为什么是蓝色的。",
        ),
        "example_2": (
            "Write a short thank-you note to a colleague.",
            "给同事写一段简短的感谢话。",
        ),
        "example_3": (
            "What should I check before I travel by train?",
            "乘火车出行前应该检查哪些事项？",
        ),
        "message": ("Your message …", "请输入消息……"),
        "stop": ("Stop", "停止"),
        "new_chat": ("New conversation", "新对话"),
        "thinking": ("…", "……"),
        "stopped": ("Stopped.", "已停止。"),
        "cut": (
            "The answer reached its longest length; raise it in the settings to read more.",
            "回答已达到最大长度；可在设置中调大。",
        ),
        "no_text": ("The model gave an empty answer.", "模型没有给出内容。"),
        "wants_tools": (
            "The model asked for a tool, which this page does not run.",
            "模型请求调用工具，本页面不执行工具。",
        ),
        # -- choosing ------------------------------------------------------------------------
        "settings": ("Model and settings", "模型与设置"),
        "model": ("Model", "模型"),
        "temperature": ("Temperature", "温度"),
        "temperature_more": (
            "0 always takes the likeliest word; higher is more varied.",
            "0 总取最可能的词；越高越多样。",
        ),
        "top_p": ("Top-p", "Top-p"),
        "top_p_more": (
            "Words are picked from this share of the likeliest.",
            "只在累计概率达到此值的词中选取。",
        ),
        "max_tokens": ("Longest answer (tokens)", "最长回答（词元数）"),
        "seed": ("Seed", "随机种子"),
        "seed_more": (
            "The same number gives the same answer; empty: by chance.",
            "相同数字得到相同回答；留空则随机。",
        ),
        "system": ("System message", "系统提示"),
        "system_more": (
            "Tells the model how to answer, e.g. “Be brief.”",
            "告诉模型如何回答，例如“请简短作答”。",
        ),
        # -- documents -----------------------------------------------------------------------
        "documents": ("Documents", "文档"),
        "base": ("Answer from", "回答依据"),
        "base_none": ("The model alone", "仅模型本身"),
        "base_own": ("My documents", "我的文档"),
        "base_more": (
            "With documents, every answer names the passages that it rests on.",
            "依据文档回答时，会列出所依据的段落。",
        ),
        "upload": ("Add documents", "添加文档"),
        "upload_to": ("Add to", "添加到"),
        "upload_to_more": (
            "“My documents” end with this visit. Under a name that you type they are kept, for "
            "everybody who uses this page.",
            "“我的文档”只在本次访问期间有效；输入名称则长期保留，本页面的所有使用者都可使用。",
        ),
        "limits": (
            "{types}; at most {size} MB each, {count} in all.",
            "{types}；每个不超过 {size} MB，总共不超过 {count} 个。",
        ),
        "held": ("{count} in all: {names}", "共 {count} 个：{names}"),
        "added": ("Added: {names}", "已添加：{names}"),
        "none_added": ("Nothing was added.", "没有添加任何文档。"),
        "bad_type": (
            "{name}: this kind of file cannot be read here; use {types}.",
            "{name}：不支持此类文件；可用的类型为 {types}。",
        ),
        "bad_name": ("{name}: the name of the file cannot be used.", "{name}：文件名无法使用。"),
        "bad_file": (
            "{name}: this is no plain file, so it was left out.",
            "{name}：这不是普通文件，已忽略。",
        ),
        "too_large": (
            "{name}: the file is larger than {size} MB.",
            "{name}：文件超过 {size} MB。",
        ),
        "too_many": (
            "{name}: there are {count} documents already, which is all that may be.",
            "{name}：已有 {count} 个文档，达到上限。",
        ),
        "empty_file": ("{name}: the file is empty.", "{name}：文件是空的。"),
        "unread": ("{name} could not be read: {reason}", "{name} 无法读取：{reason}"),
        "bad_base": (
            "A name has 1 to 40 letters, digits, spaces, - or _.",
            "名称由 1 到 40 个文字、数字、空格、- 或 _ 组成。",
        ),
        "too_many_bases": (
            "There are {count} named bases already, which is all that may be.",
            "已有 {count} 个命名知识库，达到上限。",
        ),
        "read_only": (
            "Nothing can be added to {name} from this page.",
            "不能通过本页面向 {name} 添加文档。",
        ),
        "no_documents": (
            "There are no documents to answer from yet. Add some, or choose “{alone}”.",
            "还没有可依据的文档。请先添加文档，或选择“{alone}”。",
        ),
        "sources": ("Sources", "来源"),
        "score": ("relevance {score}", "相关度 {score}"),
        "line": ("line {at}", "第 {at} 行"),
        "page": ("page {at}", "第 {at} 页"),
        "pages": ("pages {at}", "第 {at} 页"),
        # -- opinions ------------------------------------------------------------------------
        "feedback": ("Feedback", "反馈"),
        "thanks": ("Thank you: noted.", "谢谢，已记录。"),
        "improved": ("Your better answer is stored.", "更好的回答已保存。"),
        "withdrawn": ("Taken back.", "已撤回。"),
        "better": ("What would have been a better answer?", "更好的回答应该是什么？"),
        "better_more": (
            "Optional. It is stored on this server and can be used to train the model.",
            "可选。内容保存在本服务器上，可用于训练模型。",
        ),
        "save": ("Save", "保存"),
        "close": ("Close", "关闭"),
        # -- drawing -------------------------------------------------------------------------
        "wish": ("What shall be drawn?", "想画什么？"),
        "wish_example": ("a red apple", "一个红苹果"),
        "negative": ("Not in the picture", "不要出现的内容"),
        "size": ("Size", "尺寸"),
        "size_own": ("as the model likes", "由模型决定"),
        "steps": ("Steps (0: as the model likes)", "步数（0：由模型决定）"),
        "guidance": ("Guidance (0: as the model likes)", "引导强度（0：由模型决定）"),
        "count": ("Pictures", "张数"),
        "picture_seed": ("Seed (empty: by chance)", "随机种子（留空则随机）"),
        "image_model": ("Picture model", "绘图模型"),
        "lora": ("Style (LoRA)", "风格（LoRA）"),
        "lora_none": ("none", "无"),
        "lora_weight": ("How much of the style", "风格强度"),
        "more": ("More settings", "更多设置"),
        "draw_now": ("Draw", "开始绘图"),
        "pictures": ("Pictures", "图片"),
        "drawing": ("Drawing …", "正在绘图……"),
        "drawn": ("Drawn with seed {seeds}.", "已完成，随机种子：{seeds}。"),
        "no_drawing": (
            "No plugin that draws is installed. Install one and start the page again:",
            "没有安装可以绘图的插件。请安装后重新启动页面：",
        ),
        "no_wish": ("Say first what shall be drawn.", "请先写明要画什么。"),
        # -- what may go wrong ---------------------------------------------------------------
        "notice": ("Please note", "提示"),
        "busy": (
            "Too many people are asking at the moment. Please try again in a while.",
            "当前提问的人太多，请稍后再试。",
        ),
        "slow": (
            "No answer came in time. Please try again, or ask for less.",
            "未能及时得到回答。请重试，或减少要求。",
        ),
        "closing": ("The server is being shut down.", "服务器正在关闭。"),
        "failed": ("That did not work: {reason}", "未能完成：{reason}"),
        "broken": (
            "Something broke on the server; its log says more.",
            "服务器出现内部错误，详情见其日志。",
        ),
        "too_long": (
            "The message is longer than {count} characters.",
            "消息超过 {count} 个字符。",
        ),
        "still_answering": (
            "The last question is still being answered.",
            "上一个问题还在回答中。",
        ),
        "tab_failed": (
            "The tab of the plugin {name} could not be shown: {reason}",
            "插件 {name} 的标签页无法显示：{reason}",
        ),
    }
)


@dataclass(frozen=True)
class Words:
    """The texts of the page in one language.

    :param language: one of :data:`LANGUAGES`.
    """

    language: str

    def __call__(self, key: str, **values: object) -> str:
        """Return a text, its places filled in."""
        text = TEXTS[key][list(LANGUAGES).index(self.language)]
        return text.format(**values) if values else text


def preferred(header: str) -> str:
    """Return the language that a browser would rather read.

    :param header: its ``Accept-Language``: ``"zh-CN,zh;q=0.9,en;q=0.8"``.
    """
    spoken = list(LANGUAGES)
    best = max(_weighed(header), key=lambda pair: pair[1], default=("", 0.0))
    return best[0] if best[0] in spoken and best[1] > 0 else spoken[0]


def _weighed(header: str) -> Iterable[tuple[str, float]]:
    """Yield the languages of ours in a header with their weights."""
    for part in header.split(","):
        name, _, weight = part.partition(";q=")
        language = name.strip().lower().partition("-")[0]
        if language in LANGUAGES:
            try:
                yield language, float(weight or 1)
            except ValueError:
                continue
