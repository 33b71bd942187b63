"""Citations on generated answers: the right ones, and the same however the text arrives."""

from collections.abc import Iterator

from hypothesis import given, strategies as st

from glmkit import Chunk, Message, Passage, Reply, Usage
from glmkit.testing import EchoModel
from glmkit_knowledge.cite import Citer, CitingModel, support

NILE = Passage("The Nile is 6,650 km long and ends in the Mediterranean.", "rivers.md")
LAKE = Passage("贝加尔湖是世界上最深的湖，最深处 1642 米。", "lakes.md")
PASSAGES = (NILE, LAKE)


def cite(text: str, cuts: list[int] | None = None) -> str:
    citer = Citer(PASSAGES)
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts or [])})
    pieces = [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    return "".join(citer.feed(piece) for piece in pieces) + citer.close()


def test_each_sentence_gets_the_passage_that_backs_it():
    said = "The Nile is 6,650 km long. 贝加尔湖是最深的湖，深 1642 米。Bananas are yellow."
    assert cite(said) == (
        "The Nile is 6,650 km long. [1] 贝加尔湖是最深的湖，深 1642 米。 [2]Bananas are yellow."
    )


def test_a_wrong_number_is_not_backed():
    assert cite("The Nile is 7,000 km long.") == "The Nile is 7,000 km long."
    assert support("The Nile is 6,650 km long.", NILE) == 1.0
    assert support("The Nile is 7,000 km long.", NILE) == 0.0


def test_marks_that_the_model_wrote_are_not_doubled():
    assert cite("The Nile is 6,650 km long [1].") == "The Nile is 6,650 km long [1]."


def test_a_decimal_point_ends_no_sentence():
    passage = Passage("Pi is about 3.14 in value.", "pi.md")
    citer = Citer([passage])
    assert citer.feed("Pi is about 3") + citer.feed(".14 in value") + citer.close() == (
        "Pi is about 3.14 in value [1]"
    )


def test_without_passages_nothing_changes():
    citer = Citer([])
    assert citer.feed("The Nile is long. ") + citer.close() == "The Nile is long. "


WORDS = st.sampled_from(
    [
        "The Nile",
        " is ",
        "6,650 km",
        " long",
        ".",
        "。",
        "!",
        "?\n",
        "\n",
        " ",
        "贝加尔湖",
        "最深",
        "[1]",
    ]
)


@given(st.lists(WORDS, max_size=14).map("".join), st.lists(st.integers(0, 200), max_size=8))
def test_marks_do_not_depend_on_how_the_text_was_cut(text, cuts):
    assert cite(text, cuts) == cite(text)


@given(st.lists(WORDS, max_size=14).map("".join))
def test_marks_are_all_that_is_added(text):
    assert cite(text).replace(" [1]", "").replace(" [2]", "") == text.replace(" [1]", "")


class Teller(EchoModel):
    """Answers letter by letter."""

    def stream(self, messages, options=None) -> Iterator[Chunk]:
        for letter in self.answer:
            yield Chunk(letter)
        yield Chunk("", "stop", Usage(1, 2))


def test_stream_reply_and_batch_carry_the_same_marks():
    model = CitingModel(Teller("The Nile is 6,650 km long. It rains. 贝加尔湖最深"))
    asked = [Message("user", "?", PASSAGES)]
    reply = model.reply(asked)
    assert reply.text == "The Nile is 6,650 km long. [1] It rains. 贝加尔湖最深 [2]"
    assert Reply.join(model.stream(asked)) == reply == next(model.batch([asked]))
    assert reply.usage == Usage(1, 2)
