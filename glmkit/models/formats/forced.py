"""Grammars of tool calls: what a model must write so that its reader finds a call.

They are texts in llguidance's kind of Lark, whose rule ``calls`` stands for one call of one tool;
nothing here needs that library.
"""

from __future__ import annotations

import json
import keyword
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unicodedata import normalize

from ...errors import UsageError
from .glm4_tools import BUILT_IN
from .replies import INTERPRETER, TURN
from .tools import Tool, function_of, refuse_deep

Schema = Mapping[str, Any]
Grammar = Callable[[Sequence[Tool]], str]
"""Takes the tools on offer, returns rules of which ``calls`` is one."""
_SAID = frozenset(("type", "title", "description", "default", "examples", "additionalProperties"))
"""Keywords of a schema that need no rule of their own."""
_BOUNDS = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"))
_STRING = r"""/'([^'\\\x00-\x1f\x7f]|\\['\\nt])*'/"""
_GAP = '" "?'
"""Where some vocabularies begin a text with a space."""


def text(value: str) -> str:
    """Return a text as Lark has it, which takes no DEL as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def json_of(schema: Schema) -> str:
    """Return the rule of JSON that fits a schema; no run of blanks in it is endless.

    :raises UsageError: if the schema is no JSON itself.
    """
    told = {**schema, "x-guidance": {"whitespace_pattern": r"[ \t\n]{1,32}"}}
    try:
        return f"%json {json.dumps(told, ensure_ascii=False, allow_nan=False)}"
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"a JSON schema must be JSON: {error}") from error


def parameters_of(tool: Tool) -> Schema:
    """Return the schema of a tool's arguments, an object without others than are listed.

    :raises UsageError: if it is no mapping, or nested too deep.
    """
    schema = function_of(tool).get("parameters") or {}
    refuse_deep(schema)
    if not isinstance(schema, Mapping):
        raise UsageError(f"the parameters of a tool are a JSON schema, got {schema!r:.80}")
    closed = (
        {} if {"patternProperties", "allOf", "anyOf", "oneOf", "$ref"} & set(schema) else _CLOSED
    )
    return _bounded({**closed, **schema, "type": "object"})


def _bounded(schema: Schema) -> Schema:
    """Return a schema whose numbers, where it says that they are, are none too large to be read."""
    told = dict(schema)
    for key in _OF_ONE & set(told):
        told[key] = _bounded_in(told[key])
    for key in _OF_MANY & set(told):
        inner = told[key]
        if isinstance(inner, Mapping):
            told[key] = {name: _bounded_in(each) for name, each in inner.items()}
        elif isinstance(inner, list):
            told[key] = [_bounded_in(each) for each in inner]
    kinds = told.get("type")
    may = "number" in kinds if isinstance(kinds, list) else kinds == "number"
    if may and not (_BOUNDS | {"enum", "const"}) & set(told):
        told |= {"minimum": -_LARGEST, "maximum": _LARGEST}
    return told


def _bounded_in(schema: Any) -> Any:  # noqa: ANN401
    return _bounded(schema) if isinstance(schema, Mapping) else schema


_LARGEST = 10**18
_OF_ONE = frozenset(("items", "additionalProperties"))
_OF_MANY = frozenset(
    ("properties", "patternProperties", "prefixItems", "anyOf", "oneOf", "allOf")
    + ("$defs", "definitions")
)
"""Keywords whose values are schemas, or lists or objects of schemas."""
_CLOSED: Schema = {"properties": {}, "additionalProperties": False}


def name_of(tool: Tool) -> str:
    """Return a tool's name.

    :raises UsageError: if no call of it could be read back.
    """
    name = function_of(tool).get("name")
    if (
        not isinstance(name, str)
        or name != name.strip()
        or "\n" in name
        or TURN in name
        or not name
    ):
        raise UsageError(f"a call of a tool called {name!r:.80} cannot be forced")
    return str(name)


def json_calls(tools: Sequence[Tool]) -> str:
    """Return the grammar of GLM-4's calls: a name, and JSON in the lines below."""
    return _either(tools, lambda tool, rule: f"{rule}: {json_of(parameters_of(tool))}")


def python_calls(tools: Sequence[Tool]) -> str:
    """Return the grammar of ChatGLM3's calls: a name, and ``tool_call(...)`` in Python.

    A tool whose schema says more than Python literals easily can is called with JSON, which is read
    as well.
    """
    return _either(tools, _python)


def _either(tools: Sequence[Tool], arguments: Callable[[Tool, str], str]) -> str:
    """Return the grammar of a line with a name and what is said to it."""
    calls, rules = [], []
    for at, tool in enumerate(tools):
        name = name_of(tool)
        if name in BUILT_IN or name == INTERPRETER:
            raise UsageError(f"{name!r} is a tool of the model's own, whose call cannot be forced")
        line = text(f"{name}\n")
        calls.append(f"{_GAP} {line} {_GAP} call_{at}")
        rules.append(arguments(tool, f"call_{at}"))
    return "\n".join([f"calls: {' | '.join(calls)}", *rules])


def _python(tool: Tool, rule: str) -> str:
    schema, rules = parameters_of(tool), _Literals(rule)
    inner = rules.listed(schema, "{}=") if _named(schema.get("properties", {})) else None
    if inner is None:
        return f"{rule}: {json_of(schema)}"
    opening, closing = text("```python\ntool_call("), text(")\n```")
    return "\n".join([f"{rule}: {opening} {inner} {closing}", *rules.made])


class _Literals:
    """Makes rules of Python literals that fit a schema.

    :param prefix: what the names of the rules begin with.
    """

    def __init__(self, prefix: str) -> None:
        self.made: list[str] = []
        self._prefix = prefix

    def listed(self, schema: Schema, named: str) -> str | None:
        """Return the rule of an object's values, each behind its name; None where it is none.

        :param named: how a name is written, with ``{}`` in its place.
        """
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not set(schema) <= _SAID | {"properties", "required"}:
            return None
        others = schema.get("additionalProperties", False)
        if others is not False or not isinstance(properties, Mapping) or not _texts(required):
            return None
        values = {name: self.value(each) for name, each in properties.items()}
        if None in values.values() or not set(required) <= set(values):
            return None
        # From the last to the first: what may follow where nothing has been written yet, or has.
        first = rest = '""'
        for name, value in reversed(values.items()):
            item = f"{text(named.format(name))} {value}"
            begun = [f"{item} {rest}", *([] if name in required else [first])]
            after = [f'", " {item} {rest}', *([] if name in required else [rest])]
            first, rest = self._rule(begun), self._rule(after)
        return first

    def value(self, schema: object) -> str | None:
        """Return the rule of one value; None where literals say too little."""
        if not isinstance(schema, Mapping):
            return None
        kinds = schema.get("type")
        if "enum" in schema or "const" in schema:
            return self._chosen(schema)
        if isinstance(kinds, list):
            # Each once: said twice on every level, a few levels would make millions of rules.
            once = dict.fromkeys(kinds) if _texts(kinds) else ()
            return self._either([self._typed(schema, each) for each in once])
        return self._typed(schema, kinds)

    def _chosen(self, schema: Schema) -> str | None:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        scalars = isinstance(values, (list, tuple)) and all(map(_is_scalar, values))
        known = values and set(schema) <= _SAID | {"enum", "const"}
        return self._rule([text(repr(each)) for each in values]) if scalars and known else None

    def _typed(self, schema: Schema, kind: object) -> str | None:
        extra = set(schema) - _SAID
        if kind in ("integer", "number") and extra <= _BOUNDS:
            return self._rule([json_of({**schema, "type": kind})])
        if kind == "array" and extra <= {"items"}:
            item = self.value(schema.get("items"))
            return item and self._rule([f'"[" ({item} (", " {item})*)? "]"'])
        if kind == "object" and "properties" in schema:
            inner = self.listed(schema, "'{}': ") if _plain(schema["properties"]) else None
            return inner and self._rule([f'"{{" {inner} "}}"'])
        return None if extra - _BOUNDS or not isinstance(kind, str) else _SIMPLE.get(kind)

    def _either(self, rules: Sequence[str | None]) -> str | None:
        known = [each for each in rules if each is not None]
        return self._rule(known) if known and len(known) == len(rules) else None

    def _rule(self, ways: Sequence[str]) -> str:
        name = f"{self._prefix}_{len(self.made)}"
        self.made.append(f"{name}: {' | '.join(ways)}")
        return name


_SIMPLE = {
    "string": f"({_STRING})",
    "boolean": '("True" | "False")',
    "null": '"None"',
}


def _texts(values: object) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(each, str) for each in values)


def _is_scalar(value: object) -> bool:
    """Tell whether Python's literal of a value is read back, which that of infinity is not."""
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, int))


def _named(names: object) -> bool:
    """Tell whether all can be written before a ``=``."""
    if not isinstance(names, Mapping) or not _texts([*names]):
        return False
    same = all(normalize("NFKC", each) == each for each in names)  # Python would write it so
    return same and all(each.isidentifier() and not keyword.iskeyword(each) for each in names)


def _plain(names: object) -> bool:
    """Tell whether all can be written between quotes."""
    if not isinstance(names, Mapping) or not _texts([*names]):
        return False
    return all(each.isprintable() and not set("'\\") & set(each) for each in names)
