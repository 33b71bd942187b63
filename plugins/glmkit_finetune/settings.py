"""Settings of a recipe: its config dataclass, read as flags, keys of a file and their help.

The docstring of an attribute is its help, its annotation says what values it takes, and a comment
``# --- name ---`` in the class begins a group. All of it is read from the source text.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from glmkit import UsageError
from glmkit.training.config import RunConfig, TrainConfig

_GROUP = re.compile(r"\s*#\s*-{3}\s*(.+?)\s*-{3}\s*$")
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True)
class Setting:
    """One attribute of a recipe's config."""

    name: str
    help: str
    group: str
    kind: type
    """``str``, ``int``, ``float``, ``bool``, or ``tuple`` for several texts."""
    default: Any
    optional: bool = False
    """None is a value, too."""

    @property
    def flag(self) -> str:
        """How it is written on the command line."""
        return "--" + self.name.replace("_", "-")

    def read(self, value: object, said: str) -> Any:  # noqa: ANN401
        """Return a value of a flag or a file as the config wants it.

        :param said: what the message calls it.
        :raises UsageError: if it is none of its values.
        """
        if value is None and self.optional:
            return None
        if self.optional and isinstance(value, str) and value.lower() in ("none", "null"):
            return None
        try:
            return _READERS[self.kind](value)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{said} must be {_EXPECTED[self.kind]}, got {value!r}") from error


def settings_of(config_type: type[Any]) -> list[Setting]:
    """Return the settings of a config dataclass, in its order, those of its bases first.

    :raises UsageError: if an attribute has a type that no flag can say.
    """
    hints = get_type_hints(config_type)
    texts: dict[str, tuple[str, str]] = {}
    for each in reversed(config_type.__mro__):
        for name, (help, group) in _texts(each).items():
            texts[name] = help, group or texts.get(name, ("", ""))[1]
    return [_setting(config_type, each, hints, texts) for each in fields(config_type) if each.init]


def _setting(
    config_type: type[Any],
    each: Field[Any],
    hints: dict[str, Any],
    texts: dict[str, tuple[str, str]],
) -> Setting:
    kind, optional = _kind(hints[each.name])
    if kind not in _READERS:
        raise UsageError(
            f"{config_type.__name__}.{each.name} is a {hints[each.name]}; a setting is str, int, "
            "float, bool, a tuple of str, or one of these or None"
        )
    help, group = texts.get(each.name, ("", ""))
    default = each.default
    if default is MISSING:
        default = None if each.default_factory is MISSING else each.default_factory()
    return Setting(each.name, help, group or "this recipe", kind, default, optional)


def _kind(hint: Any) -> tuple[type, bool]:  # noqa: ANN401
    """Return the type that values are read as, and whether None is one of them."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        others = [each for each in get_args(hint) if each is not type(None)]
        return (_kind(others[0])[0] if len(others) == 1 else type(None)), True
    return (tuple if origin is tuple else hint), False


def _texts(config_type: type[Any]) -> dict[str, tuple[str, str]]:
    """Return help and group of the attributes that a class itself defines."""
    try:
        source = textwrap.dedent(inspect.getsource(config_type))
    except (OSError, TypeError):  # no source, as of built-in classes: no help
        return {}
    body = ast.parse(source).body[0]
    if not isinstance(body, ast.ClassDef):
        return {}
    groups = _groups(source)
    nodes = list(zip(body.body, [*body.body[1:], None], strict=True))
    return {
        node.target.id: (_docstring(after), _group(groups, node.lineno))
        for node, after in nodes
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _docstring(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return " ".join(str(node.value.value).split())
    return ""


def _groups(source: str) -> list[tuple[int, str]]:
    found = ((at, _GROUP.match(line)) for at, line in enumerate(source.splitlines(), 1))
    return [(at, match[1]) for at, match in found if match]


def _group(groups: list[tuple[int, str]], line: int) -> str:
    return next((name for at, name in reversed(groups) if at < line), "")


# ------------------------------------------------------------------------------------------ values


def _text(value: object) -> str:
    if isinstance(value, (bool, dict, list)) or value is None:
        raise ValueError("no text")
    return str(value)


def is_true(value: object) -> bool:
    """Tell whether a switch is on, however that is written."""
    return str(value).strip().lower() in TRUE


def _flag(value: object) -> bool:
    if str(value).strip().lower() not in (*TRUE, *FALSE):
        raise ValueError("neither true nor false")
    return is_true(value)


def _whole(value: object) -> int:
    number = _number(value)
    if number != int(number):
        raise ValueError("no whole number")
    return int(number)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("no number")
    number = float(value)
    if number != number or abs(number) == float("inf"):
        raise ValueError("no number")
    return number


def _texts_of(value: object) -> tuple[str, ...]:
    """Read several texts: a list, or one text with commas between."""
    parts = list(value) if isinstance(value, (list, tuple)) else [_text(value)]
    split = [piece.strip() for each in parts for piece in _text(each).split(",")]
    return tuple(each for each in split if each)


_READERS: dict[type, Callable[[object], Any]] = {
    str: _text,
    bool: _flag,
    int: _whole,
    float: _number,
    tuple: _texts_of,
}
_EXPECTED = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: "texts, as a list or separated by commas",
}


def grouped(settings: list[Setting]) -> Iterator[tuple[str, list[Setting]]]:
    """Yield groups with their settings: what a recipe adds of its own, on what, and how."""
    every, (what, *how) = (
        dict.fromkeys(each.group for each in settings_of(kind)) for kind in (TrainConfig, RunConfig)
    )
    ranks = dict.fromkeys(every, 2) | {what: 1} | dict.fromkeys(how, 3)
    order = dict.fromkeys(each.group for each in settings)
    for name in sorted(order, key=lambda name: ranks.get(name, 0)):
        yield name, [each for each in settings if each.group == name]
