"""Tabs that plugins add to the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from glmkit import PluginError

if TYPE_CHECKING:
    from collections.abc import Callable

    from glmkit import Glmkit

    RegisterTab = Callable[["Tab"], None]


@dataclass(frozen=True)
class Tab:
    """A tab of the web page."""

    name: str
    target: str
    """``"module:function"``; called with a :class:`~glmkit_serve.web.page.Page` inside the tab, it
    puts Gradio components there. It is called once for each language of the page."""
    titles: Mapping[str, str] = field(default_factory=dict)
    """By language, ``{"en": "Glossary", "zh": "术语"}``; else the English one, else
    the name."""

    def title(self, language: str) -> str:
        """Return what stands on the tab."""
        return self.titles.get(language) or self.titles.get("en") or self.name


_OURS = ("chat", "draw")


def tabs_of(app: Glmkit) -> list[Tab]:
    """Return the tabs that plugins registered.

    :raises PluginError: if two have one name.
    """
    found: dict[str, Tab] = {}

    def add(tab: Tab) -> None:
        if tab.name in found or tab.name in _OURS:
            raise PluginError(f"two tabs of the web page are called {tab.name!r}; rename one")
        found[tab.name] = tab

    hook = getattr(app.plugins.hook, "register_tabs", None)
    if hook is not None:  # an application of the page alone may have no plugins
        hook(register=add)
    return list(found.values())
