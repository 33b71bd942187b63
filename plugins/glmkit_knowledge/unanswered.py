"""The list of questions that a knowledge base could not answer, for those who maintain it."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from glmkit import DataError

if TYPE_CHECKING:
    from glmkit import Request

    from .retrieve import Retrieval


def log(path: Path, request: Request, found: Retrieval | None) -> None:
    """Append one refused question with its nearest passage.

    :raises DataError: if the file cannot be written.
    """
    best = found.passages[0] if found and found.passages else None
    entry = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "question": request.question,
        "reading": found.reading if found else request.question,
        "nearest": {"path": best.path, "location": best.location, "score": best.score}
        if best
        else None,
    }
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"log_unanswered: cannot write {path}: {error.strerror}") from error
