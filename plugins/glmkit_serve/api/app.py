"""The application: routes, what stands before them, and what is measured of them."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI

import glmkit

from ..http import guard
from . import chatting, others
from .meter import Meter

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .served import Serving

log = logging.getLogger("glmkit.serve")


def build(serving: Serving) -> FastAPI:
    """Return the application that serves ``serving``, which whoever opened it closes."""
    app = FastAPI(title="glmkit", version=glmkit.__version__, docs_url=None, redoc_url=None)
    meter = Meter(serving)
    app.include_router(chatting.router(serving, meter))
    app.include_router(others.router(serving, meter))
    routes = APIRouter()
    serving.app.plugins.hook.register_routes(router=routes, serving=serving)
    app.include_router(routes)
    guard(app, serving.settings.door)
    app.add_middleware(_Measured, meter=meter)
    return app


class _Measured:
    """Counts requests, and writes one line for each into the log: never what was asked."""

    def __init__(self, app: ASGIApp, meter: Meter) -> None:
        self.app, self.meter = app, meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 499

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            seconds = time.perf_counter() - begun
            route = getattr(scope.get("route"), "path", "other")
            self.meter.request(route, status, seconds)
            log.info("%s %s %d %.2f s", scope["method"], route, status, seconds)
