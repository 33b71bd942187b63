"""Keeping an answer to a grammar: which tokens may come next, by the library llguidance.

It is imported when an answer with a form is first asked for, never before. V is the vocabulary.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import MissingExtraError, UsageError
from ..models.formats.forced import json_of, text
from ..models.tokenizers import Tokenizer
from ..structured import ResponseFormat

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_KEPT = 64
"""Grammars of one model that are kept ready: rows of a batch mostly share theirs."""
_KEPT_LENGTH = 1 << 20
"""Characters of these together: one may take 80 bytes of memory for each."""
# Every spelling of a forced text is allowed: models pick the one that they were taught.
_HEAD = '%llguidance {"no_forcing": true}\n'


class Guide:
    """Follows one answer through its grammar.

    :param matcher: at the beginning of the answer; nobody else has it.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def over(self) -> bool:
        """Whether the answer is complete and nothing may follow."""
        return self._matcher.is_stopped()

    def mask(self, scores: Tensor) -> Tensor:
        """Return scores with minus infinity for what may not come next.

        :param scores: (V,), float32 on the processor.
        :raises UsageError: if the grammar has become too complex, or no token may come next.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed = np.unpackbits(bits, count=len(scores), bitorder="little")
        if not allowed.any():
            raise UsageError(_DEAD_END)
        left = scores.numpy().copy()  # numpy takes a third of the time that torch does
        np.copyto(left, -np.inf, where=allowed == 0)
        return torch.from_numpy(left)

    def take(self, token: int) -> None:
        """Take note of the token that was picked.

        :raises UsageError: if the grammar has become too complex.
        """
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if not self._matcher.is_error():
            return
        said = _plain(self._matcher)
        if said.startswith("NoExtension"):
            raise UsageError(_DEAD_END)
        raise UsageError(
            f"the response format is too complex for an answer to be kept to it: {said}"
        )


_DEAD_END = (
    "nothing that the model could write goes on with what the response format asks for: the "
    "format has no end, or the vocabulary lacks a character"
)


class Guidance:
    """Makes guides for one model; any thread may ask.

    :param stop_ids: tokens that end an answer, wherever the grammar may end.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Iterable[int]) -> None:
        self._tokenizer, self._stop_ids = tokenizer, sorted(stop_ids)
        self._lock = threading.Lock()
        self._known: LLTokenizer | None = None
        self._made: OrderedDict[str, LLMatcher] = OrderedDict()

    def guide(self, grammar: str) -> Guide:
        """Return a guide through a grammar, whose first rule is ``start``.

        :raises UsageError: if it cannot be compiled; says why.
        :raises MissingExtraError: if llguidance is not installed.
        """
        with self._lock:
            vocabulary = self._vocabulary()
            made = self._made.get(grammar)
        if made is None:  # outside of the lock: others need not wait
            made = _compiled(vocabulary, grammar)
        with self._lock:
            self._made[grammar] = made
            self._made.move_to_end(grammar)
            self._forget()
            return Guide(made.deep_copy())

    def _forget(self) -> None:
        """Let go of what was not asked for the longest, but for the latest one."""
        length = sum(map(len, self._made))
        while len(self._made) > _KEPT or (length > _KEPT_LENGTH and len(self._made) > 1):
            length -= len(self._made.popitem(last=False)[0])

    def _vocabulary(self) -> LLTokenizer:
        if self._known is None:
            try:
                from llguidance import LLTokenizer, TokenizerWrapper
            except ImportError as error:
                raise MissingExtraError("a response format", "llguidance", "structured") from error
            spelt = _Spelt(self._tokenizer, self._stop_ids)
            self._known = LLTokenizer(TokenizerWrapper(spelt), eos_token=spelt.ends)
        return self._known


_STATES = 50_000
"""Of a grammar in the making, 1 or 2 kB each: nobody's schema shall take all memory."""
_SYMBOLS = 10_000
"""Of a grammar, of which a property has four: what has more takes seconds to be made."""


def _compiled(vocabulary: LLTokenizer, grammar: str) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(
        max_lexer_states=_STATES, max_grammar_size=_SYMBOLS, verbose_errors=False
    )
    matcher = LLMatcher(vocabulary, _HEAD + grammar, log_level=0, limits=limits)
    if matcher.is_error():
        raise UsageError(f"the response format cannot be compiled: {_plain(matcher)}")
    _try(matcher, vocabulary)
    return matcher


def _try(matcher: LLMatcher, vocabulary: LLTokenizer) -> None:
    """Take the first steps here: what fails at once shall not do so in the thread that decodes.

    :raises UsageError: if the grammar is too complex, or has no beginning.
    """
    guide = Guide(matcher.deep_copy())
    scores = guide.mask(torch.zeros(vocabulary.vocab_size))
    # Behind the brace, all properties that need not come are open at once.
    opening = [each for each in vocabulary.greedy_tokenize("{") if scores[each] == 0]
    if opening and not guide.over:
        guide.take(opening[0])
        if not guide.over:
            guide.mask(torch.zeros(vocabulary.vocab_size))


def _plain(matcher: LLMatcher) -> str:
    """Return the first words of an error: what follows shows the grammar."""
    said = re.split(r"\n\s*\d+ \|", matcher.get_error())[0].strip()
    return " ".join(said.split(": ", 1)[-1].split())[:_SAID]


_SAID = 300


class _Spelt:
    """A vocabulary as llguidance reads it: what each token is in bytes."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, stop_ids: list[int]) -> None:
        size = max(tokenizer.size, *(each + 1 for each in stop_ids), 0)
        # Scores may be padded, and a stop token lie there.
        spellings = [tokenizer.spelling(each) for each in range(size)]
        for each in stop_ids:
            spellings[each] = None
        self.special_token_ids = [at for at, each in enumerate(spellings) if each is None]
        # A name that no text has; llguidance tells special tokens apart by their ids.
        self.tokens = [b"<%d>" % at if each is None else each for at, each in enumerate(spellings)]
        self.ends = stop_ids[:]
        if not self.ends:  # one that no model picks
            self.ends = [len(self.tokens)]
            self.special_token_ids += self.ends
            self.tokens.append(b"<end>")
        self.eos_token_id = self.ends[0]

    def __call__(self, text: bytes) -> list[int]:
        """Return no tokens: nothing is forced, so nobody asks for the way a text is spelt."""
        return []


def rules_of(form: ResponseFormat, lead: str) -> str:
    """Return the rule ``form``.

    :param lead: what the vocabulary puts before the first word of a text.
    """
    if form.json_schema is not None:
        return f'form: " "? json\njson: {json_of(form.json_schema)}'
    before = f"{text(lead)} " if lead else ""
    if form.choice:
        # A lexeme of its own, which may have thousands of ways; a rule may not.
        return f"form: {before}CHOICE\nCHOICE: {' | '.join(map(text, form.choice))}"
    from llguidance import regex_to_lark

    expression = regex_to_lark(form.regex or "", "d")  # \\d is 0 to 9
    return f"form: {before}expression\nexpression: /{expression}/"
