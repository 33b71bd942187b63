"""glmkit for LangChain: the index as a retriever, any chat model as a chat model.

    from glmkit_knowledge.langchain import GlmkitChatModel, KnowledgeRetriever

    chain = {"context": retriever | join, "question": RunnablePassthrough()} | prompt | model

Importing this module imports langchain-core; nothing else in the plugin does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from glmkit import ChatModel, GenerationOptions, Message, MissingExtraError, Passage

try:
    from langchain_core.callbacks import (
        CallbackManagerForLLMRun,
        CallbackManagerForRetrieverRun,
    )
    from langchain_core.documents import Document
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
    from langchain_core.messages.ai import UsageMetadata
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
    from langchain_core.retrievers import BaseRetriever
except ImportError as error:
    raise MissingExtraError("glmkit_knowledge.langchain", "langchain-core", "knowledge") from error

from pydantic import ConfigDict

from .calibrate import THRESHOLD
from .retrieve import Retriever

Role = Literal["system", "user", "assistant", "tool", "observation"]
_ROLES: dict[str, Role] = {
    "human": "user",
    "ai": "assistant",
    "system": "system",
    "tool": "tool",
    "user": "user",
    "assistant": "assistant",
    "observation": "observation",
}


class KnowledgeRetriever(BaseRetriever):
    """The passages that pass the threshold, as LangChain documents.

    ``metadata`` has ``path``, ``location`` and ``score`` (0..1, see :mod:`.calibrate`).
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    retriever: Retriever
    top_k: int = 5
    """Most documents returned."""
    threshold: float = THRESHOLD
    """Least score of a document, 0..1."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        found = self.retriever.retrieve(query, top_k=self.top_k)
        return [_document(each) for each in found.passages if each.score >= self.threshold]


def _document(passage: Passage) -> Document:
    metadata = {"path": passage.path, "location": passage.location, "score": passage.score}
    return Document(page_content=passage.text, metadata=metadata)


class GlmkitChatModel(BaseChatModel):
    """Any glmkit chat model as a LangChain one: invoke, stream, stop texts and token counts."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: Any
    """A :class:`glmkit.ChatModel`."""
    options: GenerationOptions = GenerationOptions()
    """How to pick tokens, unless a call says otherwise (``model.invoke(..., max_tokens=20)``)."""

    def model_post_init(self, context: Any, /) -> None:  # noqa: ANN401
        """Refuse what is not a chat model.

        :raises TypeError: if ``model`` lacks ``stream``.
        """
        super().model_post_init(context)
        if not isinstance(self.model, ChatModel):
            raise TypeError(f"model must be a glmkit chat model, got {type(self.model).__name__}")

    @property
    def _llm_type(self) -> str:
        return "glmkit"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.model.name}

    def _options(self, stop: list[str] | None, given: dict[str, Any]) -> GenerationOptions:
        changes = {name: value for name, value in given.items() if name in _OPTION_NAMES}
        if stop:
            changes["stop"] = tuple(stop)
        return replace(self.options, **changes)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> ChatResult:
        reply = self.model.reply(_messages(messages), self._options(stop, kwargs))
        message = AIMessage(
            content=reply.text,
            response_metadata={"finish_reason": reply.finish_reason, "model_name": self.model.name},
            usage_metadata=_usage(reply.usage.prompt_tokens, reply.usage.completion_tokens),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in self.model.stream(_messages(messages), self._options(stop, kwargs)):
            message = AIMessageChunk(content=chunk.text)
            if chunk.finish_reason is not None:
                message.response_metadata = {"finish_reason": chunk.finish_reason}
                if chunk.usage is not None:
                    counts = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
                    message.usage_metadata = _usage(*counts)
            generation = ChatGenerationChunk(message=message)
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=generation)
            yield generation


_OPTION_NAMES = frozenset(GenerationOptions.__dataclass_fields__) - {"stop"}


def _usage(prompt: int, completion: int) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=prompt, output_tokens=completion, total_tokens=prompt + completion
    )


def _messages(messages: list[BaseMessage]) -> list[Message]:
    return [Message(_role(each), each.text) for each in messages]


def _role(message: BaseMessage) -> Role:
    named = getattr(message, "role", message.type)
    if named not in _ROLES:
        raise ValueError(f"glmkit knows no message role {named!r}; known: {', '.join(_ROLES)}")
    return _ROLES[named]
