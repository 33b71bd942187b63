"""What the tests of batches share: rows in, rows out, a model that fails on some."""

import json

from glmkit.batch.job import Job, run_job
from glmkit.batch.rows import Reading, read_rows
from glmkit.console import drain
from glmkit.errors import UsageError
from glmkit.testing import EchoModel
from glmkit.types import Message


def jsonl(path, rows):
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows), "utf-8")
    return path


def written(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def asked(path, **reading):
    return [each.messages for each in read_rows(path, Reading(**reading))]


class Fussy(EchoModel):
    """Fails on some prompts, as a model does that has no room for them."""

    def stream(self, messages, options=None):
        if Message.of(messages[-1]).content.startswith("bad"):
            raise UsageError("too long")
        return super().stream(messages, options)


def ran(source, output, model=None, **job):
    return drain(run_job(model or Fussy(), Job(source, output, "echo", **job)))
