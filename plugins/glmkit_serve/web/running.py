"""From what was asked for to a page that is served."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmkit import MissingExtraError
from glmkit.feedback import FeedbackStore, default_path
from glmkit.live import Live

from ..limits import check_exposure, is_local, own_names
from ..options import address_of, listening
from ..settings import Settings
from .drawing import Drawing
from .library import Library
from .page import Page
from .settings import WebSettings
from .tabs import tabs_of
from .talk import Talk
from .visits import Visits
from .voices import Voice, Voices
from .words import Words

if TYPE_CHECKING:
    from fastapi import FastAPI

    from glmkit import ChatModel, Glmkit


@dataclass(frozen=True)
class Wishes:
    """What the command line asked for."""

    model: str | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)
    """The other parameters of ``Glmkit.load_model``."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    bases: Mapping[str, Path] = field(default_factory=dict)
    """Folders by name."""
    image_models: tuple[str, ...] = ()
    loras: Mapping[str, Path] = field(default_factory=dict)
    """Paths of LoRAs for drawing by name."""
    keys: tuple[str, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`~.settings.WebSettings`; None: as configured."""
    show: bool = False


def run(app: Glmkit, wishes: Wishes) -> None:
    """Serve the page until it is interrupted.

    :raises UsageError: if others could reach it without a key, or the port is taken.
    :raises MissingExtraError: if the page's libraries are not installed.
    """
    table = app.plugin_config("serve")
    keys = (*Settings.of(table).api_keys, *app.config.api_keys, *wishes.keys)
    settings = WebSettings.of(table.get("web", {}), **wishes.flags)
    check_exposure(settings.host, keys)
    _check_installed()
    with listening(settings.host, settings.port) as door, _live(app, wishes, settings) as model:
        page = page_of(app, settings, voices_of(model, wishes.adapters), wishes)
        built = site_of(page, keys)
        door.listen()  # from now on browsers wait rather than being refused
        address = address_of(door)
        click.echo(f"glmkit is on {address} (Ctrl-C ends it)", err=True)
        if wishes.show:
            click.launch(address)
        _serve(built, door)


def _check_installed() -> None:
    for package in ("fastapi", "gradio", "uvicorn"):
        if find_spec(package) is None:
            raise MissingExtraError("the web page", package, "serve")


@contextmanager
def _live(app: Glmkit, wishes: Wishes, settings: WebSettings) -> Iterator[Live]:
    model = app.load_model(wishes.model, adapters=wishes.adapters, **wishes.loading)
    with Live(model, queue=settings.concurrency) as live:
        yield live


def voices_of(model: ChatModel, adapters: Iterable[str]) -> Voices:
    """Return what visitors choose from: the model alone first, then with each adapter."""
    bare = Voice(model.name, model, "" if adapters else None)
    return Voices([bare, *(Voice(f"{model.name} + {each}", model, each) for each in adapters)])


def page_of(
    app: Glmkit,
    settings: WebSettings,
    voices: Voices,
    wishes: Wishes,
) -> Page:
    """Return what the tabs are built from; in English."""
    home = app.config.home
    library = Library(app.knowledge_model, fixed=wishes.bases, shelf=home / "web" / "bases")
    drawn: list[str | None] = list(wishes.image_models)
    if not drawn and app.image_models.names():
        drawn = [None]
    return Page(
        app=app,
        words=Words("en"),
        settings=settings,
        talk=Talk(voices, library, settings),
        visits=Visits(on_end=lambda visit: library.remove(visit.documents)),
        store=FeedbackStore(settings.feedback or default_path(home)),
        drawing=Drawing(app, drawn, wishes.loras),
    )


def site_of(page: Page, keys: tuple[str, ...]) -> FastAPI:
    """Return the site with the tabs of plugins."""
    from .site import site

    settings = page.settings
    local = is_local(settings.host) and not keys
    hosts = own_names(settings.host, settings.hosts) if local else None
    return site(page, tabs_of(page.app), keys=keys, hosts=hosts)


def _serve(site: FastAPI, door: socket.socket) -> None:
    import uvicorn

    config = uvicorn.Config(
        site, log_level="warning", ws="none", timeout_graceful_shutdown=5, server_header=False
    )
    uvicorn.Server(config).run(sockets=[door])
