"""The index as a retriever and a chat model as a chat model, in one LCEL chain."""

import pytest
from memory_base import MemoryBase

from glmkit import GenerationOptions
from glmkit.testing import EchoModel, HashEncoder
from glmkit_knowledge.retrieve import Retriever

pytest.importorskip("langchain_core")

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage  # noqa: E402
from langchain_core.output_parsers import StrOutputParser  # noqa: E402
from langchain_core.prompts import ChatPromptTemplate  # noqa: E402
from langchain_core.runnables import RunnablePassthrough  # noqa: E402

from glmkit_knowledge.langchain import GlmkitChatModel, KnowledgeRetriever  # noqa: E402

DOCUMENTS = {"rivers.md": "The Nile is 6,650 km long.", "bread.md": "Knead the dough well."}


@pytest.fixture
def retriever() -> KnowledgeRetriever:
    encoder = HashEncoder()
    return KnowledgeRetriever(retriever=Retriever(MemoryBase.of(DOCUMENTS, encoder), encoder))


def test_documents_carry_where_they_come_from(retriever):
    [document] = retriever.invoke("How long is the Nile in km?")
    assert document.page_content == "The Nile is 6,650 km long."
    assert document.metadata["path"] == "rivers.md"
    assert retriever.threshold <= document.metadata["score"] <= 1
    assert retriever.invoke("Who composed Carmen?") == []


def test_both_in_one_chain(retriever):
    echo = EchoModel()
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Answer from: {context}"), ("human", "{question}")]
    )
    context = retriever | (lambda found: "\n".join(each.page_content for each in found))
    chain = (
        {"context": context, "question": RunnablePassthrough()}
        | prompt
        | GlmkitChatModel(model=echo)
        | StrOutputParser()
    )
    assert chain.invoke("How long is the Nile in km?") == "How long is the Nile in km?"
    system, user = echo.seen[0]
    assert (system.role, system.content) == ("system", "Answer from: The Nile is 6,650 km long.")
    assert "".join(chain.stream("How long is the Nile in km?")) == "How long is the Nile in km?"


def test_usage_reason_and_options_reach_both_sides():
    model = GlmkitChatModel(
        model=EchoModel("one two three"), options=GenerationOptions(max_tokens=2)
    )
    answer = model.invoke(
        [SystemMessage("s"), HumanMessage("a"), AIMessage("b"), HumanMessage("c")]
    )
    assert answer.text == "one two "
    assert answer.usage_metadata["output_tokens"] == 2
    assert answer.response_metadata["finish_reason"] == "length"
    assert model.invoke("hi", max_tokens=5).text == "one two three"
    whole = None
    for chunk in model.stream("hi", max_tokens=5):
        whole = chunk if whole is None else whole + chunk
    assert whole.text == "one two three"
    assert whole.usage_metadata["total_tokens"] == 4


def test_stop_texts_are_passed_on():
    seen = []

    class Recording(EchoModel):
        def stream(self, messages, options=None):
            seen.append(options)
            return super().stream(messages, options)

    GlmkitChatModel(model=Recording()).invoke("hi", stop=["\n"])
    assert seen[0].stop == ("\n",)


def test_what_is_no_chat_model_is_refused():
    with pytest.raises(TypeError, match="chat model"):
        GlmkitChatModel(model="default")
