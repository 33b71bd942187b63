"""The queue beside the API: the same server, the same models, one worker among the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from .database import open_queue
from .http import add_queue
from .store import Store
from .worker import Worker

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ..api.served import Serving
    from .settings import QueueSettings


@contextmanager
def answering(web: FastAPI, settings: QueueSettings, serving: Serving) -> Iterator[None]:
    """Serve the queue's routes from ``web``, and answer its questions, while the block runs.

    :param serving: who answers; its health tells when nobody answers the queue any more.
    """
    models = serving.by_name
    with closing(open_queue(settings)) as database:
        worker = Worker(database, settings, models, options=serving.options)
        worker.announce()  # before anybody may ask for a name
        add_queue(web, Store(database, settings), settings)
        thread = threading.Thread(target=worker.run, name="queue")
        thread.start()
        serving.beside["queue"] = thread.is_alive
        try:
            yield
        finally:
            del serving.beside["queue"]
            worker.stop()
            thread.join()
