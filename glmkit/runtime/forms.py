"""What an answer is kept to: the grammar, what stands before it, and who reads what is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError
from ..models.formats import ChatFormat, Reader, Verbatim
from ..models.formats.forced import text
from ..models.formats.tools import Tool, offered
from ..structured import ResponseFormat
from ..types import GenerationOptions, Message, ToolCall
from .guidance import rules_of


@dataclass(frozen=True)
class Form:
    """What an answer is kept to."""

    grammar: str
    """In llguidance's kind of Lark."""
    opening: str = ""
    """What is put behind the prompt, as if the model had written it."""
    lead: str = ""
    """What the vocabulary puts before the answer, and is none of it."""
    calls: bool = False
    """Whether it may be a call, so that the format's reader has to look at it."""
    behind: str | None = None
    """Where it may be a call or the form: what the vocabulary puts before the form."""

    def reader(self, messages: Sequence[Message], chat_format: ChatFormat) -> Reader:
        """Return what reads the answer to a conversation."""
        if not self.calls:
            return Verbatim()
        reader = chat_format.reader(messages)
        if self.behind is None or not chat_format.opening:
            return reader
        return FormReader(reader, chat_format.opening, self.behind)


class FormReader:
    """Shows a form as it is, where what was written is no call.

    :param reader: reads calls.
    :param opening: what stands before a form, and before no call.
    :param lead: what the vocabulary puts between the opening and the form.
    """

    def __init__(self, reader: Reader, opening: str, lead: str) -> None:
        self.calls: tuple[ToolCall, ...] = ()
        self._reader, self._opening, self._lead = reader, opening, lead
        self._held = ""
        self._says: bool | None = None
        """Whether it is the form; None: not known yet."""

    def push(self, text: str) -> str:
        """Take text that the model wrote; return what can be shown of it by now."""
        if self._says is not None:
            return text if self._says else self._reader.push(text)
        self._held += text
        begun = self._held.removeprefix(" ")  # see the grammar of both
        behind = begun.removeprefix(self._opening)
        if begun.startswith(self._opening) and (behind or not self._lead):
            self._says = True
            return behind.removeprefix(self._lead)
        if not self._opening.startswith(begun) and begun != self._opening:
            self._says = False
            return self._reader.push(self._held)
        return ""

    def finish(self) -> str:
        """Return what is left to show; the answer is over."""
        if self._says is not False:
            return ""
        shown = self._reader.finish()
        self.calls = self._reader.calls
        return shown


def form_of(
    messages: Sequence[Message], options: GenerationOptions, chat_format: ChatFormat, lead: str
) -> Form | None:
    """Return what the answer to a conversation is kept to; None where it is free.

    :param lead: what the vocabulary puts before the first word of a text.
    :raises UsageError: if a call is required, and there is none to make or to read.
    """
    wanted, tools = options.response_format, offered(messages)
    if options.tool_choice == "required":
        return Form(f"start: calls\n{_calls(tools, chat_format)}", calls=True)
    if wanted is None:
        return None
    rules = rules_of(wanted, lead)
    if not tools or chat_format.calls is None or chat_format.told is not None:
        return Form(f"start: form\n{rules}", chat_format.opening, _lead(wanted, lead))
    opening = f'" "? {text(chat_format.opening)} ' if chat_format.opening else ""
    grammar = f"start: {opening}form | calls\n{rules}\n{_calls(tools, chat_format)}"
    behind = _lead(wanted, lead)
    return Form(grammar, lead="" if opening else behind, calls=True, behind=behind)


def told_of_tools(messages: Sequence[Message], chat_format: ChatFormat) -> list[Message]:
    """Return a conversation whose answer must be a call, for a model that was never taught any.

    Its system message tells of the tools; for a model that was, nothing is changed.
    """
    if chat_format.told is None:
        return [*messages]
    texts = [each.content for each in messages if each.role == "system" and each.content]
    told = Message("system", "\n\n".join([*texts, chat_format.told(offered(messages))]))
    return [told, *(each for each in messages if each.role != "system")]


def form_of_text(options: GenerationOptions) -> Form | None:
    """Return what the text that goes on with another is kept to; None where it is free.

    :raises UsageError: if a call is required.
    """
    if options.tool_choice == "required":
        raise UsageError("a text is gone on with, so there is no tool to call; ask a conversation")
    wanted = options.response_format
    if wanted is None:
        return None
    return Form(f"start: form\n{rules_of(wanted, '')}", lead=_lead(wanted, ""))


def _lead(wanted: ResponseFormat, lead: str) -> str:
    return " " if wanted.json_schema is not None else lead


def _calls(tools: Sequence[Tool], chat_format: ChatFormat) -> str:
    if not tools:
        raise UsageError("tool_choice is required, and no tool is on offer; offer one")
    if chat_format.calls is None:
        raise UsageError(
            "the calls of this model are not read here, so none can be required; use ChatGLM3, "
            "GLM-4, or a model whose chat template has <tool_call>"
        )
    return chat_format.calls(tools)
