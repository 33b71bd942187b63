"""A glossary for glmkit: the terms that a question uses travel with it as context.

The whole plugin is this file, an app and a table of terms. ``[plugins.glossary] file = "my.toml"``
names another table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glmkit import ConfigError, Passage, hookimpl

if TYPE_CHECKING:
    from glmkit import Glmkit, Request

    from .terms import Glossary


class GlossaryPlugin:
    """Holds the table between ``startup`` and the questions."""

    def __init__(self) -> None:
        self.glossary: Glossary | None = None

    @hookimpl
    def startup(self, app: Glmkit) -> None:
        """Read the table named in the configuration, or the one that ships with the plugin."""
        from .terms import Glossary

        table = app.plugin_config("glossary")
        if set(table) - {"file"}:
            raise ConfigError(f"[plugins.glossary] knows the key 'file', got {sorted(table)}")
        self.glossary = Glossary.read(table.get("file"))

    @hookimpl
    def register_apps(self, register) -> None:  # noqa: ANN001
        """Add ``glmkit run glossary``."""
        register("glossary", "Look up terms.", "glmkit_glossary.app:glossary")

    @hookimpl
    def extra_context(self, request: Request) -> list[Passage] | None:
        """Offer the definitions of the terms that the question uses."""
        if self.glossary is None:
            return None
        return [
            Passage(f"{term}: {meaning}", path="glossary", location=term, origin="glossary")
            for term, meaning in self.glossary.used_in(request.question)
        ]


plugin = GlossaryPlugin()
