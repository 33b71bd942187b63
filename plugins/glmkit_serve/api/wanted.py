"""What an answer must look like, in the words of OpenAI's API and of vLLM's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from glmkit import ResponseFormat, UsageError

from ..http import UnsupportedError

Json = dict[str, Any]
_WAYS = {"json": "json_schema", "regex": "regex", "choice": "choice"}
"""vLLM's name -> ours."""


def wanted_format(
    response_format: Json | None, structured: Json | None, guided: Mapping[str, Any]
) -> ResponseFormat | None:
    """Return what an answer must look like; None where nothing is said.

    :param response_format: OpenAI's field.
    :param structured: vLLM's ``structured_outputs``.
    :param guided: vLLM's older fields, without ``guided_`` before their names.
    :raises UsageError: if it is no such thing, or two of them say something.
    :raises UnsupportedError: if it is something of vLLM's that is not known here.
    """
    both = {**guided, **(structured or {})}
    told = {name: each for name, each in both.items() if each is not None and each is not False}
    if not told:
        return ResponseFormat.of(response_format)
    if response_format is not None and response_format.get("type") != "text" or len(told) > 1:
        raise UsageError("an answer has one format; say response_format or structured_outputs once")
    (name, value), *_ = told.items()
    if name == "json_object":
        return ResponseFormat.of({"type": "json_object"})
    if name not in _WAYS:
        raise UnsupportedError(
            f"structured_outputs.{name!a:.40}", f"known are json_object, {', '.join(_WAYS)}"
        )
    return ResponseFormat.of({_WAYS[name]: _parsed(value) if name == "json" else value})


def _parsed(schema: object) -> object:
    """Return a schema that may come as a text."""
    if not isinstance(schema, str):
        return schema
    try:
        return json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the JSON schema is no JSON: {error}") from error
