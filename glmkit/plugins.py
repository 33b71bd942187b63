"""Finding, loading and asking plugins.

Entry points of the group ``glmkit`` are loaded one by one, because pluggy's own loader stops at the
first broken one. A failure is recorded and shown by ``glmkit plugins``; it never stops the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

import pluggy

from . import builtin, hookspecs
from .errors import PluginError, nearest
from .recipes import RecipeSpec

GROUP = "glmkit"


@dataclass(frozen=True)
class Command:
    """A command or app: what to show, and where it is."""

    name: str
    help: str
    target: str
    """``"module:attribute"`` of a click command, imported when it runs."""


@dataclass(frozen=True)
class Spec:
    """A model, encoder or tool that a plugin can load."""

    name: str
    help: str
    loader: str
    """``"module:function"``; the function takes ``(name_or_path, app)`` and returns the thing."""
    aliases: tuple[str, ...] = ()
    languages: frozenset[str] | None = None
    accepts: Callable[[Path], bool] | None = None
    """For loaders of a whole format: whether this local folder is theirs."""


RegisterCommand = Callable[[str, str, str], None]
RegisterSpec = Callable[[Spec], None]
RegisterRecipe = Callable[[RecipeSpec], None]


@dataclass(frozen=True)
class PluginInfo:
    """What is known about one plugin."""

    name: str
    origin: str
    """``distribution version`` that brought it, or where it was registered from."""
    hooks: tuple[str, ...] = ()
    load_ms: float = 0.0
    error: str | None = None
    """Why it is not in use; None when all is well."""
    entry: EntryPoint | None = None


Named = TypeVar("Named", Command, Spec, RecipeSpec)


class Registry(Generic[Named]):
    """Names that plugins claim, each by one owner."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, Named] = {}
        self._owners: dict[str, str] = {}

    def add(self, item: Named, *, owner: str) -> None:
        """Add ``item`` under its name and aliases.

        :raises PluginError: if a name is taken; names both owners.
        """
        names = (item.name, *getattr(item, "aliases", ()))
        for name in names:
            if name in self._items:
                raise PluginError(
                    f"{self.kind} {name!r} of plugin {owner!r} is already registered by "
                    f"{self._owners[name]!r}; rename one, or block one with GLMKIT_PLUGINS"
                )
        for name in names:
            self._items[name] = item
            self._owners[name] = owner

    def get(self, name: str) -> Named | None:
        """Return what is registered under ``name`` (or alias), or None."""
        return self._items.get(name)

    def owner(self, name: str) -> str:
        """Return the plugin that registered ``name``."""
        return self._owners[name]

    def names(self) -> list[str]:
        """Return every name and alias, in order of registration."""
        return list(self._items)

    def __iter__(self) -> Iterator[Named]:
        return iter(dict.fromkeys(self._items.values()))


class Plugins:
    """The plugins of one application."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._manager.register(builtin, name="glmkit")
        self._infos: dict[str, PluginInfo] = {}

    @classmethod
    def discover(cls, allowed: Iterable[str] | None = None) -> Plugins:
        """Load the installed plugins.

        :param allowed: names to load; None loads all of them.
        """
        found = cls()
        wanted = None if allowed is None else set(allowed)
        for entry in sorted(entry_points(group=GROUP), key=lambda each: each.name):
            if wanted is None or entry.name in wanted:
                found._load(entry)
        missing = (wanted or set()) - set(found._infos)
        for name in sorted(missing):
            found._infos[name] = PluginInfo(
                name, "not installed", error="no such plugin is installed"
            )
        found._check_pending()
        return found

    def _load(self, entry: EntryPoint) -> None:
        distribution = entry.dist
        origin = f"{distribution.name} {distribution.version}" if distribution else entry.value
        started = time.perf_counter()
        taken = self._infos.get(entry.name)
        try:
            if taken is not None:
                raise PluginError(f"the name {entry.name!r} is already taken by {taken.origin}")
            self._add(entry.load(), entry.name)
            error = None
        # The one broad except: third-party code may fail in any way, even by leaving.
        except (Exception, SystemExit) as failure:  # noqa: BLE001
            error = _one_line(failure)
        load_ms = (time.perf_counter() - started) * 1000
        key = entry.name if taken is None else f"{entry.name} ({origin})"
        hooks = self._hooks_of(entry.name) if error is None else ()
        self._infos[key] = PluginInfo(entry.name, origin, hooks, load_ms, error, entry)

    def _add(self, plugin: object, name: str) -> None:
        if any(self._manager.parse_hookspec_opts(plugin, each) for each in dir(plugin)):  # type: ignore[arg-type]
            self._manager.add_hookspecs(plugin)  # type: ignore[arg-type]
        try:
            self._manager.register(plugin, name=name)
        except pluggy.PluginValidationError:
            # pluggy keeps a plugin whose signatures it has just refused.
            self._manager.unregister(name=name)
            raise

    def _hooks_of(self, name: str) -> tuple[str, ...]:
        plugin = self._manager.get_plugin(name)
        callers = self._manager.get_hookcallers(plugin) or []
        return tuple(sorted(caller.name for caller in callers))

    def _check_pending(self) -> None:
        """Fail the plugins that implement a hook nobody specified: a misspelling, as a rule."""
        for key, info in list(self._infos.items()):
            if info.error is None and (reason := self._pending(info.name)):
                self._manager.unregister(name=info.name)
                self._infos[key] = PluginInfo(
                    info.name, info.origin, (), info.load_ms, reason, info.entry
                )

    def _pending(self, name: str) -> str | None:
        callers = self._manager.get_hookcallers(self._manager.get_plugin(name)) or []
        for caller in callers:
            if not caller.has_spec():
                known = [each for each in vars(self._manager.hook) if not each.startswith("_")]
                specified = [each for each in known if getattr(self._manager.hook, each).has_spec()]
                close = nearest(caller.name, specified, limit=1)
                said = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(specified)}"
                return f"implements an unknown hook {caller.name!r}; {said}"
        return None

    def register(self, plugin: object, *, name: str) -> None:
        """Add a plugin object by hand, as tests and embedding programs do.

        :raises PluginError: if the name is taken, or a hook is unknown or has a wrong signature.
        """
        if name in self._infos:
            raise PluginError(
                f"plugin {name!r} is already registered by {self._infos[name].origin}"
            )
        try:
            self._add(plugin, name)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"plugin {name!r}: {_one_line(error)}") from error
        if reason := self._pending(name):
            self._manager.unregister(name=name)
            raise PluginError(f"plugin {name!r} {reason}")
        self._infos[name] = PluginInfo(name, "registered in this program", self._hooks_of(name))

    def unregister(self, name: str) -> None:
        """Take a plugin out again."""
        self._manager.unregister(name=name)
        del self._infos[name]

    @contextmanager
    def using(self, plugin: object, *, name: str) -> Iterator[None]:
        """Keep ``plugin`` registered inside a ``with`` block."""
        self.register(plugin, name=name)
        try:
            yield
        finally:
            self.unregister(name)

    @property
    def hook(self) -> Any:  # noqa: ANN401 -- pluggy builds its attributes from the specs
        """The hooks, to be called with keyword arguments."""
        return self._manager.hook

    def infos(self) -> list[PluginInfo]:
        """Return every plugin seen, those that failed too."""
        return list(self._infos.values())

    def failures(self) -> list[PluginInfo]:
        """Return the plugins that are not in use, with the reason."""
        return [info for info in self._infos.values() if info.error is not None]

    def startup(self, app: object) -> None:
        """Call every plugin's ``startup(app)``; what it raises is the user's to see."""
        self.hook.startup(app=app)

    def commands(self, builtin: Iterable[Command] = ()) -> Registry[Command]:
        """Collect the commands of ``glmkit``."""
        return self._collect_commands("register_commands", "command", builtin)

    def apps(self, builtin: Iterable[Command] = ()) -> Registry[Command]:
        """Collect the apps of ``glmkit run``."""
        return self._collect_commands("register_apps", "app", builtin)

    def models(self) -> Registry[Spec]:
        """Collect the models of plugins."""
        return self._collect_specs("register_models", "model")

    def encoders(self) -> Registry[Spec]:
        """Collect the encoders of plugins."""
        return self._collect_specs("register_encoders", "encoder")

    def image_models(self) -> Registry[Spec]:
        """Collect what draws."""
        return self._collect_specs("register_image_models", "image model")

    def tools(self) -> Registry[Spec]:
        """Collect what chat models may ask for."""
        return self._collect_specs("register_tools", "tool")

    def recipes(self) -> Registry[RecipeSpec]:
        """Collect the ways to train."""
        registry: Registry[RecipeSpec] = Registry("recipe")
        self._ask_each("register_recipes", lambda owner, spec: registry.add(spec, owner=owner))
        return registry

    def _collect_commands(
        self, hook: str, kind: str, builtin: Iterable[Command]
    ) -> Registry[Command]:
        registry: Registry[Command] = Registry(kind)
        for command in builtin:
            registry.add(command, owner="glmkit")

        def add(owner: str, name: str, help: str, target: str) -> None:
            registry.add(Command(name, help, target), owner=owner)

        self._ask_each(hook, add)
        return registry

    def _collect_specs(self, hook: str, kind: str) -> Registry[Spec]:
        registry: Registry[Spec] = Registry(kind)
        self._ask_each(hook, lambda owner, spec: registry.add(spec, owner=owner))
        return registry

    def _ask_each(self, hook: str, add: Callable[..., None]) -> None:
        """Call a ``register_*`` hook plugin by plugin, so that each name has an owner.

        A plugin that fails here is recorded; the others still register.
        """
        for implementation in getattr(self.hook, hook).get_hookimpls():
            owner = implementation.plugin_name
            try:
                implementation.function(partial(add, owner))
            except Exception as failure:  # noqa: BLE001 -- as in _load
                self._record(owner, f"{hook}: {_one_line(failure)}")

    def _record(self, name: str, reason: str) -> None:
        info = self._infos[name]
        self._infos[name] = PluginInfo(
            info.name, info.origin, info.hooks, info.load_ms, reason, info.entry
        )


def accepting(specs: Iterable[Spec], path: Path) -> Spec | None:
    """Return the first that loads the folder ``path``."""
    return next((each for each in specs if each.accepts and each.accepts(path)), None)


def load_target(target: str) -> Any:  # noqa: ANN401
    """Import ``"module:attribute"``.

    :raises PluginError: if the text has another form or the attribute is missing.
    """
    module, _, attribute = target.partition(":")
    if not attribute:
        raise PluginError(f"a target is 'module:attribute', got {target!r}")
    found = import_module(module)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise PluginError(f"module {module!r} has no {attribute!r}; mend the plugin's target")
        found = getattr(found, part)
    return found


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
