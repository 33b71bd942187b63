"""Rewards of answers: plain functions, found by name, in a module or in a file. No torch.

A reward is any function ``reward(answer, *, question, row) -> float``: ``answer`` is the text that
the model wrote, ``question`` the last thing that it was asked, ``row`` the columns of the file's
row, and under ``reference`` the answer that the file gives, where it gives one.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from glmkit import GlmkitError, PluginError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from glmkit import Plugins

REFERENCE = "reference"
"""What rewards find the file's own answer under, in the columns of its row."""


LARGEST = 1e15
"""What no reward reaches: sums of its square must be numbers in single precision."""


class Reward(Protocol):
    """Says how good an answer is: any finite number, the higher the better."""

    def __call__(self, answer: str, *, question: str, row: Mapping[str, Any]) -> float:
        """Return the reward of an answer to a question."""
        ...


@dataclass(frozen=True)
class RewardSpec:
    """A reward by name, before it is imported."""

    name: str
    help: str
    """One line."""
    target: str
    """``"module:function"`` of a :class:`Reward`, imported when it is asked for."""
    argument: str = ""
    """What stands behind a colon after the name, for a person: ``CHARACTERS``. The target then is
    a function that takes this text and returns the reward."""


RegisterReward = Callable[[RewardSpec], None]


@dataclass(frozen=True)
class Weighted:
    """A reward, and how much it counts."""

    name: str
    """As the user wrote it."""
    weight: float
    function: Reward
    number: int = 1
    """Which it is of those whose names would look alike in figures."""

    @property
    def title(self) -> str:
        """What figures call it: letters, digits and underscores; of a path the end, which tells."""
        return titled(self.name) + (f"_{self.number}" if self.number > 1 else "")


def titled(name: str) -> str:
    """Return a name as figures have it."""
    plain = "".join(each if each.isalnum() else "_" for each in name)
    return "_".join(part for part in plain.split("_") if part)[-40:].lstrip("_")


def registered(plugins: Plugins) -> dict[str, RewardSpec]:
    """Return the rewards that plugins offer, by name.

    :raises PluginError: if two claim one name; names both. If one fails; names it.
    """
    found: dict[str, RewardSpec] = {}
    owners: dict[str, str] = {}

    def add(owner: str, spec: RewardSpec) -> None:
        if spec.name in found:
            raise PluginError(
                f"the reward {spec.name!r} of plugin {owner!r} is already registered by "
                f"{owners[spec.name]!r}; rename one, or block one with GLMKIT_PLUGINS"
            )
        found[spec.name], owners[spec.name] = spec, owner

    caller = getattr(plugins.hook, "register_rewards", None)
    for each in caller.get_hookimpls() if caller is not None else ():
        owner = each.plugin_name

        def register(spec: RewardSpec, owner: str = owner) -> None:
            add(owner, spec)

        try:
            each.function(register)
        except GlmkitError:
            raise
        except Exception as error:  # noqa: BLE001 -- a plugin may fail in any way
            raise PluginError(
                f"plugin {owner!r} failed in register_rewards ({type(error).__name__}: {error}); "
                "mend it, or block it with GLMKIT_PLUGINS"
            ) from error
    return found


def opened(
    names: Sequence[str], weights: Sequence[float], known: Mapping[str, RewardSpec]
) -> list[Weighted]:
    """Return the rewards that somebody named.

    :param names: a registered name, with what it takes behind a colon (``length:20``),
        ``module:function``, or ``file.py:function``.
    :param weights: one for each name; empty: all count 1.
    :raises UsageError: if a name leads nowhere, or to something that is no reward.
    """
    if weights and len(weights) != len(names):
        raise UsageError(
            f"there are {len(names)} rewards and {len(weights)} weights; give one weight for each"
        )
    shares = list(weights) or [1.0] * len(names)
    titles = [titled(name) for name in names]
    return [
        Weighted(name, share, _opened(name, known), titles[: at + 1].count(titles[at]))
        for at, (name, share) in enumerate(zip(names, shares, strict=True))
    ]


def _opened(name: str, known: Mapping[str, RewardSpec]) -> Reward:
    first, colon, rest = name.partition(":")
    spec = known.get(first)
    if spec is not None:
        return _registered(spec, rest, given=bool(colon))
    module, colon, attribute = name.rpartition(":")
    if not colon or not attribute.isidentifier():
        hint = "A function of yours: module:function or file.py:function"
        raise UnknownNameError("reward", first, known, hint=hint)
    found = _attribute(_module(module, name), attribute, name)
    return _checked(found, name)


def _registered(spec: RewardSpec, argument: str, *, given: bool) -> Reward:
    module, _, attribute = spec.target.partition(":")
    try:
        found = _attribute(import_module(module), attribute, spec.target)
    except ImportError as error:
        raise PluginError(
            f"the reward {spec.name!r} is to be found at {spec.target!r}, which cannot be imported "
            f"({error}); mend the plugin's target"
        ) from error
    if not spec.argument:
        if given:
            raise UsageError(f"the reward {spec.name} takes nothing behind a colon; got {argument}")
        return _checked(found, spec.name)
    if not argument:
        raise UsageError(f"the reward {spec.name} is written {spec.name}:{spec.argument}")
    try:
        made = found(argument)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"the reward {spec.name} cannot be made with {argument!r} ({error}); it is written "
            f"{spec.name}:{spec.argument}"
        ) from error
    return _checked(made, f"{spec.name}:{argument}")


def _module(name: str, said: str) -> ModuleType:
    """Import what a user named: a module, or a file by its path."""
    if name.endswith(".py"):
        return _of_file(Path(name).expanduser(), said)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise UsageError(
            f"the reward {said!r}: there is no module {name!r}; a file is named with its ending: "
            "rewards.py:function"
        ) from error


def _of_file(path: Path, said: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"the reward {said!r}: {path} is not a file")
    name = f"glmkit_reward_{path.stem}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"the reward {said!r}: {path} cannot be imported")
    module = module_from_spec(spec)
    sys.modules[name] = module  # as dataclasses and pickles in there expect
    spec.loader.exec_module(module)
    return module


def _attribute(module: ModuleType, name: str, said: str) -> Any:  # noqa: ANN401
    if not hasattr(module, name):
        functions = [each for each in vars(module) if not each.startswith("_")]
        raise UsageError(
            f"the reward {said!r}: {module.__name__} has no {name!r}; it has "
            f"{', '.join(functions[:10]) or 'nothing'}"
        )
    return getattr(module, name)


def _checked(found: object, said: str) -> Reward:
    """Refuse what cannot be called as a reward."""
    if not callable(found):
        raise UsageError(f"the reward {said!r} is {found!r:.60}, and a function is wanted")
    try:
        inspect.signature(found).bind("", question="", row={})
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"the reward {said!r} must be a function (answer, *, question, row) -> float: {error}"
        ) from error
    return cast(Reward, found)


def rated(rewards: Sequence[Weighted], answer: str, question: str, row: Mapping[str, Any]) -> Rated:
    """Ask all rewards about one answer.

    :raises RewardError: if one fails, or gives what is no finite number; says which.
    """
    values = [_asked(each, answer, question, row) for each in rewards]
    total = sum(each.weight * value for each, value in zip(rewards, values, strict=True))
    return Rated(total, {each.title: value for each, value in zip(rewards, values, strict=True)})


@dataclass(frozen=True)
class Rated:
    """What an answer is worth."""

    total: float
    """Each reward times its weight."""
    parts: Mapping[str, float]
    """Each reward without its weight, by its title."""


class RewardError(Exception):
    """A reward that is none; says which and why, the answer is added by who asked."""


def _asked(reward: Weighted, answer: str, question: str, row: Mapping[str, Any]) -> float:
    try:
        value = reward.function(answer, question=question, row=row)
    # A user's function may fail in any way, and what was learnt until then must be kept.
    except Exception as error:  # noqa: BLE001
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise RewardError(f"the reward {reward.name} failed: {said}") from error
    if isinstance(value, bool) or hasattr(value, "item"):  # comparisons, numpy and torch
        value = float(value)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RewardError(f"the reward {reward.name} is {value!r:.60}")
    return float(value)
