"""The queue beside the API: the same server, the same models, one worker among the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from .database import open_queue
from .http import add_queue
from .store import Store
from .worker import Worker

if TYPE_CHECKING:
    from fastapi import FastAPI

    from glmkit import GenerationOptions

    from ..api.served import Served
    from .settings import QueueSettings


@contextmanager
def answering(
    web: FastAPI, settings: QueueSettings, models: Mapping[str, Served], options: GenerationOptions
) -> Iterator[None]:
    """Serve the queue's routes from ``web``, and answer its questions, while the block runs.

    :param models: who answers, by the name that is asked; the first where a question names none.
    """
    with closing(open_queue(settings)) as database:
        add_queue(web, Store(database, settings), settings, models=list(models))
        worker = Worker(database, settings, models, options=options)
        thread = threading.Thread(target=worker.run, name="queue")
        thread.start()
        try:
            yield
        finally:
            worker.stop()
            thread.join()
