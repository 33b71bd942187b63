"""Which columns of a file hold what."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Tags:
    """What the messages of a conversation call their parts; None: as people usually do."""

    role: str | None = None
    """The key of who speaks: ``from`` or ``role``."""
    content: str | None = None
    """The key of what is said: ``value`` or ``content``."""
    user: str | None = None
    """The role of questions: ``human`` or ``user``."""
    assistant: str | None = None
    """The role of answers: ``gpt``, ``assistant``, ..."""
    observation: str | None = None
    """The role of what tools return: ``observation``, ``tool``."""
    function: str | None = None
    """The role of calls of tools: ``function_call``."""
    system: str | None = None
    """The role of system messages."""


@dataclass(frozen=True)
class ColumnNames:
    """The columns of a format, or those that a user names; None: none, or as detected."""

    prompt: str | None = None
    """The question."""
    query: str | None = None
    """More of the question: it follows on a line of its own."""
    response: str | None = None
    """The answer."""
    history: str | None = None
    """Earlier questions and answers: ``[["question", "answer"], ...]``."""
    system: str | None = None
    """The system message."""
    messages: str | None = None
    """A whole conversation."""
    tools: str | None = None
    """The functions that the model may call, as JSON schemas."""
    chosen: str | None = None
    """The better answer; without ``rejected``: several answers, the best first."""
    rejected: str | None = None
    """The worse answer."""
    label: str | None = None
    """Whether the answer is a good one: true or false."""
    tags: Tags = Tags()

    @property
    def named(self) -> dict[str, str]:
        """The columns that have a name, by what they hold."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {key: value for key, value in found.items() if isinstance(value, str)}
