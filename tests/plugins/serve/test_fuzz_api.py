"""Requests that a machine makes up from the API's own description: none of them is a 5xx."""

from __future__ import annotations

import os

import pytest
from api_plugin import Plugin, Scripted
from api_server import serving_of
from hypothesis import HealthCheck, given, settings

from glmkit.live import Live
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.loading import load_local
from glmkit.testing import EchoModel
from glmkit_serve.api.app import build
from glmkit_serve.api.served import Served

CASES = int(os.environ.get("GLMKIT_FUZZ", "6"))
"""Of each route."""


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    import schemathesis  # takes seconds, also where other tests are collected

    serving = serving_of(
        tmp_path_factory.mktemp("home"),
        EchoModel(),
        max_tokens=8,
        plugins={"mine": Plugin()},
        config={"encoder": "hashes"},
        hosts=("testserver",),
    )
    serving.models["scripted"] = Served("scripted", "chat", Live(Scripted()))
    # Known to tools, and what takes the default: prompts, tokens and sampling are tried, too.
    glm = Live(load_local(tiny_checkpoint(tmp_path_factory.mktemp("glm"), layout="chatglm3")))
    serving.models["default"] = Served("default", "chat", glm)
    yield schemathesis.openapi.from_asgi("/openapi.json", build(serving))
    serving.close()
    serving.live.close()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_request_makes_the_server_fail(described, method):
    from schemathesis.checks import not_a_server_error

    asked = 0

    def ask(case):
        nonlocal asked
        asked += 1
        case.call_and_validate(checks=[not_a_server_error])

    for found in described.get_all_operations():
        operation = found.ok()
        if operation.method.upper() == method:
            LIGHTLY(given(case=operation.as_strategy())(ask))()
    assert asked >= 4


LIGHTLY = settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
