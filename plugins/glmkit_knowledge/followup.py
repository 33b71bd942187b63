"""Follow-up questions: ways to read a question that leans on the conversation.

A question that stands on its own is searched as it is: earlier turns never change it. One that
points back ("它有多长?", "And how long is it?", "那长江呢?") is completed from the turn before:
with what that question was about, and with what its answer was about. Each completion is a whole
question again, so the similarity scale means the same for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .terms import content_terms, is_chinese

_MOST_TURNS_BACK = 4

_CHINESE_POINTER = re.compile(
    r"(?:它|(?<!其)他|她)们?|(?:这|那|该)(?:一)?(?:条|个|座|种|位|本|部|款|项|家|只|片|张|次|些|里|儿|时)(?!乐)|其(?!他|它|中|实|余|次)|此(?!外|后|前)|前者|后者"
)
_CHINESE_LEAD = re.compile(r"^(?:那么?|然后|还有|另外|而且|所以)[，,]?(?!不勒斯|里|个|曲|年)")
_CHINESE_WHAT_ABOUT = re.compile(r"^(?:那么?|还有)?[，,]?\s*(.+?)呢[？?]?$")
_ENGLISH_POINTER = re.compile(
    r"\b(?:it|its|they|them|their|theirs|he|him|his|she|her|hers|this one|that one|those|these"
    r"|there|this|that)\b",
    re.IGNORECASE,
)
_ENGLISH_LEAD = re.compile(r"^(?:and|but|so|also|then|or)\b[,\s]*", re.IGNORECASE)
_ENGLISH_WHAT_ABOUT = re.compile(
    r"^(?:and\s+|but\s+|so\s+)?(?:what|how)\s+about\s+(.+?)\??$|^and\s+((?:the\s+|in\s+)*\S+(?:\s+\S+)?)\s*\?$",
    re.IGNORECASE,
)
# "How long does it take to ...", "Is it possible ...", "Is there ...": nothing is pointed at.
_ENGLISH_EMPTY = re.compile(
    r"\b(?:it\s+(?:take|takes|took|cost|costs|possible|necessary|rain|rains|snow|mean|means)"
    r"|(?:is|are|was|were)\s+there|there\s+(?:is|are|was|were)|there\s+(?:a|an|any)"
    r"|(?:is|was)\s+it\s+(?:possible|necessary|allowed|safe|true)|how many\b.*\bare\s+there)\b",
    re.IGNORECASE,
)
# "the lake", a name after the first word, or a code: something that "its" can stand for.
_ENGLISH_NAMED = re.compile(
    r"\b(?:the|a|an|my|our|your)\s+[A-Za-z]\w+|(?<=\S\s)[A-Z][\w-]+|\b\w*[\d_.]\w+"
    r"|^(?:Does|Do|Did|Can|Is|Are|Was|Were|Will)\s+(?!it\b|they\b|there\b)[a-z]\w+"
)
_ENGLISH_QUESTION = re.compile(
    r"^(?:(?:what|which|who|whom|whose|when|where|why|how)(?:\s+(?:long|high|deep|big|large|tall|far"
    r"|old|many|much|often|wide|heavy|fast))?(?:'s)?|is|are|was|were|does|do|did|can)\b\s*"
    r"(?:(?:is|are|was|were|does|do|did|can|has|have)\b\s*)?",
    re.IGNORECASE,
)
_CHINESE_QUESTION = re.compile(
    r"(?:是|叫|有|在|位于)?(?:什么时候|什么样|什么|哪里|哪儿|哪一?[条个座种位本部年天些国]|谁|多少|多久|多[长高大远深重宽快]|几[个条座种位天年点]|怎么样?|怎样|如何)(?:名字|地方)?"
    r"|[吗呢吧啊？?。！!]|^(?:请问|那么?|谁|哪[条个座种位本部年些]?)|(?:是|有)$"
)
_CHINESE_SUBJECT = re.compile(
    r"^(.{1,20}?)(?:的|有多|有|是|在|位于|流经|全长|长|高|面积|多|属于|为|，|,)"
)
_ENGLISH_SUBJECT = re.compile(
    r"^((?:The\s+|the\s+)?[A-Z][\w-]*(?:\s+(?:of|the|[A-Z][\w-]*))*?)\s+"
    r"(?:is|are|was|were|has|have|had|flows|lies|[a-z]+s|[a-z]+ed)\b"
)
_ENGLISH_ENTITY = re.compile(
    r"\b(?:the\s+)?(?!(?:What|Which|Who|When|Where|Why|How|Is|Are|Was|Were|Does|Do|Did|Can)\b)[A-Z][\w-]*(?:\s+[A-Z][\w-]*)*"
)
_CITATION = re.compile(r"\s*\[\d+\]")


def readings(question: str, history: Sequence[tuple[str, str]]) -> list[str]:
    """Return the ways to read ``question``, at least one, each standing on its own.

    :param history: the turns before, as (question, answer), oldest first.
    """
    question = question.strip()
    if not history or not leans_back(question):
        return [question]
    *before, (asked, answer) = history[-_MOST_TURNS_BACK:]
    earlier = readings(asked, before)[0]
    completed = _completions(question, earlier, _CITATION.sub("", answer))
    return list(dict.fromkeys(each for each in completed if each)) or [question]


def leans_back(question: str) -> bool:
    """Say whether ``question`` cannot be understood without the turn before it."""
    if is_chinese(question):
        return _chinese_leans(question)
    return _english_leans(question)


def _chinese_leans(question: str) -> bool:
    if _CHINESE_LEAD.match(question) or _CHINESE_WHAT_ABOUT.match(question):
        return True
    pointer = _CHINESE_POINTER.search(question)
    if pointer:
        # "尼罗河和它的支流": what is pointed at was named in the question itself.
        return not content_terms(question[: pointer.start()])
    return not content_terms(question)


def _english_leans(question: str) -> bool:
    if _ENGLISH_LEAD.match(question) or _ENGLISH_WHAT_ABOUT.match(question):
        return True
    pointer = _ENGLISH_POINTER.search(_ENGLISH_EMPTY.sub(" ", question))
    if pointer:
        return not _ENGLISH_NAMED.search(question[: question.find(pointer.group())])
    return not content_terms(question)


def _completions(question: str, earlier: str, answer: str) -> list[str]:
    chinese = is_chinese(question)
    about = (_CHINESE_WHAT_ABOUT if chinese else _ENGLISH_WHAT_ABOUT).match(question)
    if about:
        wanted = next(group for group in about.groups() if group)
        swapped = _swap(earlier, wanted.strip())
        if swapped:
            return [swapped]
    subjects = [_topic(earlier), _subject(answer)]
    return [_fill(question, each) for each in subjects if each] or [f"{earlier} {question}"]


def _fill(question: str, subject: str) -> str:
    """Put ``subject`` where the question points back, or in front of it."""
    chinese = is_chinese(question)
    pointer = (_CHINESE_POINTER if chinese else _ENGLISH_POINTER).search(question)
    lead = _CHINESE_LEAD if chinese else _ENGLISH_LEAD
    if pointer is None:
        rest = lead.sub("", question)
        return subject + rest if chinese and is_chinese(subject) else f"{subject}: {rest}"
    owned = pointer.group().lower() in {"its", "their", "his"}
    named = f"{subject}'s" if owned else subject
    return lead.sub("", question[: pointer.start()] + named + question[pointer.end() :])


def _topic(question: str) -> str:
    """Return what an earlier question was about: the question without its asking words."""
    if is_chinese(question):
        rest = _CHINESE_QUESTION.sub("", question).strip(" ，,的")
        named = _CHINESE_SUBJECT.match(question)
        return rest or (named.group(1) if named else "")
    rest = _ENGLISH_QUESTION.sub("", question.strip()).rstrip("?.! ")
    return rest


def _subject(answer: str) -> str:
    """Return what an answer's first sentence is about, empty where no pattern tells."""
    first = answer.strip()
    match = (_CHINESE_SUBJECT if is_chinese(first) else _ENGLISH_SUBJECT).match(first)
    found = match.group(1).strip() if match else ""
    return "" if leans_back(found) else found


def _swap(earlier: str, wanted: str) -> str:
    """Ask the earlier question about something else; empty where its subject is not clear."""
    if is_chinese(earlier):
        match = _CHINESE_SUBJECT.match(earlier)
        return wanted + earlier[match.end(1) :] if match else ""
    entities = list(_ENGLISH_ENTITY.finditer(earlier))
    if not entities:
        return ""
    last = entities[-1]
    return earlier[: last.start()] + wanted + earlier[last.end() :]
