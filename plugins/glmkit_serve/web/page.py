"""What a tab of the page is built from. Light: no web framework."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glmkit import ChatModel, Glmkit
    from glmkit.feedback import FeedbackStore

    from .drawing import Drawing
    from .settings import WebSettings
    from .talk import Talk
    from .visits import Visits
    from .words import Words


@dataclass(frozen=True)
class Page:
    """What a tab is built from."""

    app: Glmkit
    words: Words
    settings: WebSettings
    talk: Talk
    visits: Visits
    store: FeedbackStore
    drawing: Drawing

    @property
    def language(self) -> str:
        """``"en"`` or ``"zh"``."""
        return self.words.language

    @property
    def model(self) -> ChatModel:
        """Who answers where nobody chooses; any thread may ask."""
        return self.talk.voices.of(None).model
