"""From a wish to what a picture model is told: worded by the chat model, never cut in silence."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from glmkit import GenerationOptions, Message, SourceError, UsageError, language_of

from .keywords import translate
from .vocabulary import in_known_words

if TYPE_CHECKING:
    from glmkit import ChatModel

    from .painter import Painter

_NAMES = {"zh": "Chinese", "en": "English"}
_TOLD = (
    "You write prompts for a text-to-image model. Turn the wish into one line of English: first "
    "what is shown, then its looks, light and style, separated by commas. At most {words} words. "
    "Keep everything that is wished for and add no other subject. Answer with that line only."
)
_EXAMPLES = (
    ("一只在雨里的猫", "a cat in the rain, wet fur, soft grey light, detailed photograph"),
    (
        "an old lighthouse",
        "an old lighthouse on a cliff, stormy sea, dramatic evening light, oil painting",
    ),
)
_TOKENS_PER_WORD = 1.5
_STOP = re.compile(r"[\n\r]")


@dataclass(frozen=True)
class Worded:
    """What a picture model is told for a wish."""

    prompt: str
    how: str
    """One line for a person: who worded it, or why nobody did."""
    cut: str = ""
    """What did not fit into the text encoder."""


def word(wish: str, painter: Painter, chat: Callable[[], ChatModel] | None) -> Worded:
    """Return what to tell the picture model.

    :param chat: loads the chat model, which is done only where it is needed; None: nobody words
        the wish.
    :raises UsageError: if nobody here understands the wish; says what to do.
    """
    if chat is None:
        return fit(painter, wish, "drawn as wished")
    if painter.about.plain and language_of(wish) in painter.about.languages:
        return _plain(wish, painter)
    why = "no chat model is here"
    try:
        model = chat()
    except SourceError:
        pass  # wording is a help: it is not worth failing, nor fetching what may not be fetched
    else:
        why = f"{model.name!r} does not speak its language"
        if model.languages is None or language_of(wish) in model.languages:
            prompt = _asked(model, wish, painter)
            if prompt is not None:
                return fit(painter, prompt, f"worded by {model.name!r}")
            why = f"{model.name!r} strayed from the wish"
    if language_of(wish) in painter.about.languages:
        return fit(painter, wish, f"drawn as wished: {why}")
    return _from_table(wish, painter, why)


def _plain(wish: str, painter: Painter) -> Worded:
    """Tell a model that knows plain wishes the wish, in its own words."""
    spoken = " and ".join(_NAMES.get(each, each) for each in sorted(painter.about.languages))
    how = f"drawn as wished: {painter.name!r} knows short wishes in {spoken}"
    if not painter.about.words or painter.loras:  # a LoRA may have taught it the word
        return fit(painter, wish, how)
    wish, swapped, lacking = in_known_words(wish, painter.about.words)
    said = [how, *(f"{word} is drawn as {kind}" for word, kind in swapped.items())]
    if lacking:
        said.append(f"it never met {', '.join(lacking)} and draws something else for that")
    return fit(painter, wish, "; ".join(said))


def _from_table(wish: str, painter: Painter, why: str) -> Worded:
    """Translate word by word, where no chat model does."""
    english, unknown = translate(wish)
    if not english or unknown:
        lacking = ", ".join(unknown) or wish
        raise UsageError(
            f"nobody here puts this wish into English: {why}, and the table of words lacks "
            f"{lacking}; wish in English, name a chat model that speaks Chinese (--model "
            "glm-4-9b), or pass the wish as it is (--no-expand)"
        )
    return fit(painter, english, f"translated word by word: {why}")


def _asked(model: ChatModel, wish: str, painter: Painter) -> str | None:
    """Have a chat model word a wish; None where its answer is no prompt for it."""
    words = int(((painter.room or 77) - 2) / _TOKENS_PER_WORD)
    messages = [Message("system", _TOLD.format(words=words))]
    for asked, answer in _EXAMPLES:
        messages += [Message("user", asked), Message("assistant", answer)]
    # Greedy: the same wish gives the same prompt, and with it the same picture.
    options = GenerationOptions(max_tokens=2 * words, temperature=0)
    answer = model.reply([*messages, Message("user", wish)], options).text
    line = _STOP.split(answer.strip())[0].strip().strip("\"'`“”").strip()
    prompt = _own(line, wish)
    return prompt if _is_prompt(prompt, wish) else None


def _own(line: str, wish: str) -> str:
    """Leave out what a small model says twice, or repeats from the examples."""
    taught = [_words(each) for _, answer in _EXAMPLES for each in answer.split(", ")[1:]]
    phrases: dict[frozenset[str], str] = {}
    for each in line.rstrip(". ").split(","):
        phrases.setdefault(frozenset(_words(each)), each.strip())
    return ", ".join(
        phrase
        for words, phrase in phrases.items()
        if words and (words <= _words(wish) or words not in taught)
    )


def _words(text: str) -> set[str]:
    """Return the words of a text that say something."""
    return {each for each in re.findall("[a-z]{3,}", text.lower()) if each not in _SMALL}


def _is_prompt(prompt: str, wish: str) -> bool:
    """Tell whether a prompt is English and, for an English wish, still about it."""
    if not re.search("[A-Za-z]{2}", prompt) or language_of(prompt) != "en":
        return False
    wished = _words(wish)
    kept = {each for each in wished if each.rstrip("s") in prompt.lower()}
    return language_of(wish) != "en" or 2 * len(kept) >= len(wished)


_SMALL = frozenset(
    "the and with for his her its that this who are was from into please draw".split()
)


def fit(painter: Painter, prompt: str, how: str) -> Worded:
    """Cut a prompt to the length of the text encoder, at a comma or between words, and say so."""
    room = painter.room
    if room is None or painter.count(prompt) <= room:
        return Worded(prompt, how)
    end = 0
    for between in (r"[,，、;；。]\s*", r"\s+", r"(?<=[^\x00-\x7f])"):  # the best place first
        ends = (each.start() for each in re.finditer(between, prompt))
        # Up to the first that is too far: a long text is not counted from the beginning for each.
        fitting = takewhile(lambda at: painter.count(prompt[:at]) <= room, ends)
        end = max(fitting, default=0)
        if prompt[:end].strip():
            break
    if not prompt[:end].strip():
        raise UsageError(
            f"the first word of the wish has more than the {room} tokens that the text encoder of "
            f"{painter.name!r} reads; shorten it"
        )
    return Worded(prompt[:end].rstrip(",，、;； "), how, prompt[end:].strip(",，、;； "))
