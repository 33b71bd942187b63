"""Tools: typed functions that a chat model may ask for. Light floor: no torch, no third party.

A model reads a tool's JSON schema; what it asks for is checked against the schema before the
function runs.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Union

from .errors import UsageError
from .texts import readable

Schema = dict[str, Any]

LONGEST_RESULT = 4000
"""Characters of a result that a model is told; the rest is cut, and that is said."""


@dataclass(frozen=True)
class Tool:
    """A function with what a model has to know to ask for it."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """The JSON schema of an object: one property for each parameter."""
    function: Callable[..., object]
    """Takes the parameters by keyword. A GlmkitError that it raises is told to the model."""

    @classmethod
    def of(cls, function: Callable[..., object], *, name: str | None = None) -> Tool:
        """Describe a function by its signature and docstring.

        The first paragraph of the docstring describes the tool, ``:param name: ...`` a parameter.

        :param function: takes str, int, float, bool, Literal, a dataclass, or lists and optional
            ones of these; every parameter by name.
        :param name: what the model calls it; None: as the function is called.
        :raises UsageError: if a parameter has no annotation, or one of another type.
        """
        said = inspect.getdoc(function) or ""
        called = name or str(getattr(function, "__name__", type(function).__name__))
        hints = _parameters(function, called)
        schema = _object(hints, _defaults(function), _param_docs(said))
        return cls(called, _summary(said), schema, partial(_call_typed, function, hints))

    @property
    def schema(self) -> Schema:
        """What a model reads, in OpenAI's form."""
        described = {"name": self.name, "description": self.description}
        return {"type": "function", "function": described | {"parameters": dict(self.parameters)}}

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Run the function and return what a model is told of its result.

        :param arguments: by parameter name; None for a parameter with a default: not given.
        :raises UsageError: if one is unknown, missing, or not as the schema says.
        """
        needed = self.parameters.get("required", ())
        given = {
            key: value
            for key, value in arguments.items()
            if value is not None or key in needed or key not in self.parameters["properties"]
        }
        check(self.parameters, given, f"tool {self.name!r}")
        return _told(self.function(**given))


def _told(result: object) -> str:
    if result is None:
        return "done"
    if not isinstance(result, str):
        try:
            result = json.dumps(result, ensure_ascii=False, default=_plain)
        except (TypeError, ValueError):  # keys that JSON has not, or circles
            result = str(result)
    text = readable(result)
    if len(text) <= LONGEST_RESULT:
        return text
    return f"{text[:LONGEST_RESULT]}\n[cut: {len(text) - LONGEST_RESULT} more characters]"


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


# From annotations to schemas.

_SIMPLE: Mapping[object, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _parameters(function: Callable[..., object], name: str) -> dict[str, Any]:
    """Return the annotation of each parameter."""
    hints = _annotations(function, name)
    found: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in _BY_NAME or parameter.name not in hints:
            raise UsageError(
                f"parameter {parameter.name!r} of tool {name!r} needs a name and an annotation: "
                "a model gives every argument by name, and has to know its type"
            )
        found[parameter.name] = hints[parameter.name]
    return found


def _annotations(function: Callable[..., object], name: str) -> dict[str, Any]:
    called = function if inspect.isroutine(function) else type(function).__call__
    try:
        return typing.get_type_hints(called)
    except (NameError, TypeError) as error:
        raise UsageError(
            f"the annotations of tool {name!r} cannot be read ({error}); what they name has to be "
            "imported when the tool is made, not under TYPE_CHECKING only"
        ) from error


def _defaults(function: Callable[..., object]) -> dict[str, object]:
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def _object(
    hints: Mapping[str, Any], defaults: Mapping[str, object], docs: Mapping[str, str]
) -> Schema:
    properties = {name: schema_of(hint, name) for name, hint in hints.items()}
    for name, schema in properties.items():
        if docs.get(name):
            schema["description"] = docs[name]
        if defaults.get(name) is not None:
            schema["default"] = json.loads(json.dumps(defaults[name], default=_plain))
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in hints if name not in defaults],
    }


def schema_of(annotation: Any, where: str) -> Schema:  # noqa: ANN401
    """Return the JSON schema of a type.

    :param where: what the message calls the parameter.
    :raises UsageError: if models have no way to write such a value.
    """
    if annotation in _SIMPLE:
        return {"type": _SIMPLE[annotation]}
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return {"type": _kind_of(arguments[0]), "enum": list(arguments)}
    if origin in (list, Sequence) and arguments:
        return {"type": "array", "items": schema_of(arguments[0], where)}
    if _is_optional(annotation):
        return schema_of(_inner(annotation), where)
    if dataclasses.is_dataclass(annotation):
        return _dataclass_schema(annotation, where)
    raise UsageError(
        f"parameter {where!r} has the type {annotation!r}; a tool takes str, int, float, bool, "
        "Literal, dataclasses, and lists and optional ones of these"
    )


def _dataclass_schema(annotation: Any, where: str) -> Schema:  # noqa: ANN401
    hints = typing.get_type_hints(annotation)
    fields = dataclasses.fields(annotation)
    missing = dataclasses.MISSING
    given = {
        each.name: None if each.default is missing else each.default
        for each in fields
        if each.default is not missing or each.default_factory is not missing
    }
    return _object({each.name: hints[each.name] for each in fields}, given, {})


def _kind_of(value: object) -> str:
    return _SIMPLE.get(type(value), "string")


def _is_optional(annotation: Any) -> bool:  # noqa: ANN401
    union = typing.get_origin(annotation) in (Union, types.UnionType)
    arguments = typing.get_args(annotation)
    return union and len(arguments) == 2 and type(None) in arguments


def _inner(annotation: Any) -> Any:  # noqa: ANN401
    return next(each for each in typing.get_args(annotation) if each is not type(None))


def _summary(doc: str) -> str:
    return " ".join(doc.split("\n\n")[0].split(":param")[0].split())


def _param_docs(doc: str) -> dict[str, str]:
    """Return what ``:param name: ...`` says, by name."""
    found: dict[str, str] = {}
    for part in doc.split(":param ")[1:]:
        name, _, text = part.partition(":")
        found[name.split()[-1]] = " ".join(text.split("\n\n")[0].split("\n:")[0].split())
    return found


# From arguments to values.


def check(schema: Mapping[str, Any], value: object, where: str) -> None:
    """Refuse a value that a JSON schema does not allow.

    :raises UsageError: says where, what came and what is allowed.
    """
    kind = schema.get("type")
    if kind in _KINDS and not _is_a(value, str(kind)):
        raise UsageError(f"{where} must be {_KINDS[kind]}, got {_shown(value)}")
    if "enum" in schema and value not in schema["enum"]:
        allowed = ", ".join(map(_shown, schema["enum"]))
        raise UsageError(f"{where} must be one of {allowed}; got {_shown(value)}")
    for place, inner, each in _parts(schema, value, where):
        check(inner, each, place)


_KINDS = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
}


def _is_a(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, _TYPES.get(kind, ()))


_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "array": (list, tuple),
    "object": (Mapping,),
}


def _parts(
    schema: Mapping[str, Any], value: object, where: str
) -> Iterator[tuple[str, Mapping[str, Any], object]]:
    """Yield the place, schema and value of everything inside."""
    if isinstance(value, (list, tuple)) and "items" in schema:
        for number, each in enumerate(value, 1):
            yield f"{where}, item {number}", schema["items"], each
    if not isinstance(value, Mapping) or "properties" not in schema:
        return
    known = schema["properties"]
    for name in schema.get("required", ()):
        if name not in value:
            raise UsageError(f"{where} needs {name!r}; it takes {_listed(known)}")
    for name, each in value.items():
        if name not in known:
            raise UsageError(f"{where} has no parameter {name!r}; it takes {_listed(known)}")
        yield f"{name!r} of {where}", known[name], each


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:80]


def _call_typed(
    function: Callable[..., object],
    hints: Mapping[str, Any],
    **given: Any,  # noqa: ANN401
) -> object:
    return function(**{name: _valued(hints[name], value) for name, value in given.items()})


def _valued(annotation: Any, value: Any) -> Any:  # noqa: ANN401
    """Return a value that was checked as what the function expects."""
    if value is None:
        return None
    if _is_optional(annotation):
        annotation = _inner(annotation)
    if annotation in (int, float):
        return annotation(value)
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        made: Any = annotation
        return made(**{name: _valued(hints[name], each) for name, each in value.items()})
    arguments = typing.get_args(annotation)
    if isinstance(value, (list, tuple)) and arguments:
        return [_valued(arguments[0], each) for each in value]
    return value
