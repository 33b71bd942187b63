"""What is left out of conversations that do not fit: always the same, and without much work."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings, strategies as st

from glmkit.errors import UsageError
from glmkit.models.passages import Shortening
from glmkit.models.prompts import FORMATS, Renderer
from glmkit.models.tiny import tiny_checkpoint
from glmkit.models.tokenizers import Tokenizer
from glmkit.types import Message, Passage


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    found = Tokenizer.open(tiny_checkpoint(tmp_path_factory.mktemp("tiny")))
    assert found is not None
    return found


def one_thing_less(messages: list[Message]) -> list[Message] | None:
    """Return the conversation without its weakest passage, or without its oldest turn."""
    holders = [at for at, each in enumerate(messages) if each.passages]
    if holders:
        at = holders[0]
        found = messages[at].passages
        scores = [each.score for each in found]
        weakest = len(scores) - 1 - scores[::-1].index(min(scores))
        kept = replace(messages[at], passages=found[:weakest] + found[weakest + 1 :])
        return [*messages[:at], kept, *messages[at + 1 :]]
    first = 1 if messages[0].role == "system" else 0
    if first >= len(messages) - 1:
        return None
    after = first + 1
    while after < len(messages) - 1 and messages[after].role != "user":
        after += 1
    return [*messages[:first], *messages[after:]]


texts = st.text("ab 你", max_size=12)
passages = st.lists(
    st.builds(Passage, texts, st.just("a.md"), score=st.sampled_from([0.1, 0.5, 0.9])), max_size=3
)
earlier = st.builds(
    Message, st.sampled_from(["user", "assistant", "user", "assistant", "system"]), texts
)
asked = st.builds(Message, st.just("user"), texts, passages.map(tuple))
conversations = st.tuples(st.lists(st.one_of(earlier, asked), max_size=12), asked).map(
    lambda parts: [*parts[0], parts[1]]
)


@settings(max_examples=60, deadline=None)
@given(messages=conversations)
def test_one_thing_goes_after_the_other(messages):
    rest, left = Shortening(messages), messages
    for things in range(rest.most + 1):
        assert rest.without(things) == left
        shorter = one_thing_less(left)
        assert (shorter is None) == (things == rest.most)
        left = shorter or left


@settings(max_examples=60, deadline=None)
@given(messages=conversations, share=st.floats(0, 1.1), name=st.sampled_from(list(FORMATS)))
def test_no_more_is_left_out_than_must_be(tokenizer, messages, share, name):
    """The first of all shortened conversations that fits, looked for one by one."""
    renderer = Renderer(tokenizer, FORMATS[name], system="Be kind.")
    room = int(share * len(renderer.render(messages, room=10**6).ids))
    left: list[Message] | None = messages
    while left is not None and len(renderer.render(left, room=10**6).ids) > room:
        left = one_thing_less(left)
    if left is None:
        with pytest.raises(UsageError, match=f"has room for {room}"):
            renderer.render(messages, room=room)
        return
    found = renderer.render(messages, room=room)
    assert found.ids == renderer.render(left, room=10**6).ids
    assert found.passages == left[-1].passages


@dataclass
class Counted:
    """Stands before a vocabulary or a format, and counts what it is asked to do."""

    done: Counter = field(default_factory=Counter)

    def tokenizer(self, inner: Tokenizer) -> Tokenizer:
        counts = self.done

        class Counting:
            special = inner.special

            def encode(self, text):
                counts["characters"] += len(text)
                return inner.encode(text)

        return Counting()

    def format(self, inner):
        def pieces(messages, system):
            self.done["renderings"] += 1
            self.done["messages"] += len(messages)
            return inner.pieces(messages, system)

        return replace(inner, pieces=pieces)


@pytest.mark.parametrize("name", FORMATS)
def test_thousands_of_messages_are_not_written_thousands_of_times(tokenizer, name):
    """A few times, and all but once only about as much as fits."""
    turns = [Message(("user", "assistant")[at % 2], f"{at} words") for at in range(3001)]
    counted = Counted()
    renderer = Renderer(counted.tokenizer(tokenizer), counted.format(FORMATS[name]))
    whole = len(renderer.render(turns, room=10**6).ids)
    once = dict(counted.done)
    counted.done.clear()
    found = renderer.render(turns, room=whole // 20)
    assert whole // 21 < len(found.ids) <= whole // 20
    assert counted.done["renderings"] <= 20
    assert counted.done["messages"] <= 2 * once["messages"]
    assert counted.done["characters"] <= 2 * once["characters"]
    counted.done.clear()
    with pytest.raises(UsageError, match="the question takes"):
        renderer.render(turns, room=1)
    assert counted.done["renderings"] == 2
