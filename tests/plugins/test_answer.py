"""Who answers: the languages of the question and of what was found decide."""

from types import SimpleNamespace

import pytest

from glmkit import Message, Passage
from glmkit.testing import EchoModel, HashEncoder
from glmkit_knowledge.answer import AnsweringModel
from glmkit_knowledge.sentences import SentenceVectors

ENGLISH = Passage("The Nile is 6,650 kilometres long.", "rivers.md", "line 1", 0.9)
CHINESE = Passage("贝加尔湖最深处有 1642 米。", "lakes.md", "line 1", 0.8)


class Speaker(EchoModel):
    """Says the same always, and remembers the passages that it was given."""

    languages = frozenset({"en"})

    def stream(self, messages, options=None):
        self.given = Message.of(messages[-1]).passages
        return super().stream(messages, options)


def answerer(answer="auto", languages=frozenset({"en"})):
    model = Speaker("The Nile is 6,650 kilometres long.")
    model.languages = languages
    sentences = SentenceVectors(HashEncoder())
    query = SimpleNamespace(last=None, retriever=SimpleNamespace(sentences=sentences))
    info = SimpleNamespace(name="speaker", languages=languages)
    return model, AnsweringModel(lambda: model, info=info, query=query, answer=answer)


@pytest.mark.parametrize(
    ("question", "passages", "mode", "said"),
    [
        ("How long is the Nile?", (ENGLISH, CHINESE), "generate", None),
        ("How deep is Lake Baikal?", (CHINESE, ENGLISH), "extract", "Chinese, the language of the"),
        ("尼罗河有多长?", (ENGLISH,), "extract", "does not speak Chinese;"),
    ],
)
def test_the_model_speaks_only_where_it_can_read(question, passages, mode, said):
    _, model = answerer()
    model.reply([Message("user", question, passages)])
    assert model.mode == mode
    why = model.why_not_generated(question, passages)
    assert why is None if said is None else said in why


def test_a_model_of_every_language_and_one_that_is_told_to_generate():
    for given in ({"languages": None}, {"answer": "generate"}):
        _, model = answerer(**given)
        model.reply([Message("user", "贝加尔湖有多深?", (CHINESE,))])
        assert model.mode == "generate"


def test_what_the_model_cannot_read_is_left_out_and_numbers_stay_those_of_the_sources():
    speaker, model = answerer(answer="generate")
    reply = model.reply([Message("user", "How long is the Nile?", (CHINESE, ENGLISH))])
    assert speaker.given == (ENGLISH,)
    assert reply.text == "The Nile is 6,650 kilometres long. [2]"
    model.reply([Message("user", "How deep is it?", (CHINESE,))])
    assert speaker.given == (CHINESE,)
