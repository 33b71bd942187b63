"""The application: configuration, plugins and the lookups that need both."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .chat import Chat, Policy
from .config import Config
from .console import drain
from .errors import CheckpointError, PluginError, UnknownNameError, UsageError
from .opening import (
    OPENAI,
    RAY,
    connect,
    offer,
    open_model,
    open_on_cluster,
    refuse_given,
    server_of,
)
from .plugins import Plugins, Registry, Spec, accepting, load_target
from .recipes import Recipe, RecipeSpec
from .servers import Server
from .sharing import Lazy, OneByOne
from .tools import Tool

if TYPE_CHECKING:
    from .pictures import ImageModel
    from .runtime.engines.ray.cluster import Cluster
    from .sources import Located
    from .types import ChatModel, Encoder, GenerationOptions, Progress

    Result = TypeVar("Result")
    Watch = Callable[[Generator[Progress, None, Result]], Result]


@dataclass(frozen=True)
class ModelInfo:
    """What is known about a model before it is loaded."""

    name: str
    languages: frozenset[str] | None
    """ISO 639-1 codes it answers in; None where nobody said."""


class Glmkit:
    """One configured application; programs may hold several.

    :param config: what to be; None reads ``glmkit.toml`` and the environment.
    :param plugins: who extends it; None finds the installed ones.
    :param watch: runs long work (downloads, conversions) to its end; the command line draws it.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        plugins: Plugins | None = None,
        watch: Watch[Any] = drain,
    ) -> None:
        self.config = config or Config.load()
        self.plugins = plugins or Plugins.discover(self.config.plugins_allowed)
        self.watch = watch
        self._shared: dict[str, Lazy[Encoder]] = {}
        self.plugins.startup(self)

    def plugin_config(self, name: str) -> Mapping[str, Any]:
        """Return the ``[plugins.<name>]`` table, empty where there is none."""
        return self.config.plugins.get(name, {})

    @cached_property
    def _models(self) -> Registry[Spec]:
        return self.plugins.models()

    @cached_property
    def _encoders(self) -> Registry[Spec]:
        return self.plugins.encoders()

    @cached_property
    def image_models(self) -> Registry[Spec]:
        """What draws, as plugins registered it."""
        return self.plugins.image_models()

    @cached_property
    def tools(self) -> Registry[Spec]:
        """What chat models may ask for, as plugins registered it."""
        return self.plugins.tools()

    def load_tool(self, name: str) -> Tool:
        """Load a tool for :meth:`chat`.

        :raises UnknownNameError: if nobody registered the name.
        :raises UsageError: if its function has a parameter that a model cannot give.
        """
        spec = self.tools.get(name)
        if spec is None:
            hint = "'glmkit run chat --tools' lists them"
            raise UnknownNameError("tool", name, self.tools.names(), hint=hint)
        found = load_target(spec.loader)(name, self)
        return found if isinstance(found, Tool) else Tool.of(found, name=name)

    @cached_property
    def recipes(self) -> Registry[RecipeSpec]:
        """The ways to train that plugins registered."""
        return self.plugins.recipes()

    def load_recipe(self, name: str) -> Recipe[Any]:
        """Import a way to train.

        :raises UnknownNameError: if nobody registered the name.
        :raises PluginError: if its target leads nowhere, or to something that is no recipe.
        """
        spec = self.recipes.get(name)
        if spec is None:
            hint = "Run: glmkit finetune --list"
            raise UnknownNameError("recipe", name, self.recipes.names(), hint=hint)
        found = load_target(spec.target)
        if not isinstance(found, Recipe):
            raise PluginError(
                f"{spec.target} of plugin {self.recipes.owner(name)!r} is no recipe: it needs a "
                "config_type and run(config)"
            )
        return found

    def locate_model(self, name: str | None = None) -> Located:
        """Return the folder of a model, which is fetched where that is allowed.

        :param name: catalog name, hub id or folder; None: the configured one.
        :raises UnknownNameError: if nobody knows the name.
        :raises SourceError: if it was never pulled.
        """
        return self._locate(name or self.config.model, "model", self._models)

    def describe_model(
        self,
        name: str | None = None,
        *,
        engine: str | None = None,
        server: Server | str | None = None,
    ) -> ModelInfo:
        """Say what a model is without loading it; the parameters are those of :meth:`load_model`.

        :raises UnknownNameError: if nobody knows the name.
        :raises SourceError: if it is known but was never pulled.
        :raises ServerError: if a server has to be asked for its only model and cannot be.
        """
        name = name or self.config.model
        spec = self._models.get(name)
        if spec is not None:
            return ModelInfo(spec.name, spec.languages)
        remote = server_of(self.config, engine, server)
        if remote is not None:
            model = connect(self.config, name, remote, {})
            return ModelInfo(model.name, model.languages)
        located = self._locate(name, "model", self._models)
        return ModelInfo(located.name, located.languages)

    def load_model(
        self,
        name: str | None = None,
        *,
        device: str | None = None,
        max_memory: str | None = None,
        dtype: str | None = None,
        quantize: str | None = None,
        adapter: str | Path | None = None,
        adapter_alpha: float | None = None,
        adapters: Mapping[str, Path] | None = None,
        family: str | None = None,
        engine: str | None = None,
        cluster: Cluster | None = None,
        server: Server | str | None = None,
    ) -> ChatModel:
        """Load a chat model by catalog name, hub id, folder, or the name a plugin gave it.

        :param name: None for the configured one.
        :param device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or several that share the layers:
            ``cuda:0,cuda:1``, ``cuda:0,cpu``; ``auto`` or None picks.
        :param max_memory: most that it may take of each, ``0=10GiB,cpu=30GiB``; None: what is free.
        :param dtype: ``float32``, ``bfloat16``, ``float16``; None keeps what suits file and device.
        :param quantize: ``int4`` or ``int8`` to quantise while loading.
        :param adapter: a LoRA folder or file, or a P-Tuning prefix folder, to put on.
        :param adapter_alpha: LoRA's alpha, for raw files that record none.
        :param adapters: others beside each other, by the names that ``GenerationOptions.adapter``
            may say; who names none is answered without.
        :param family: what the model is (``chatglm2``, ``chatglm3``, ...); None: as its files say.
        :param engine: what runs it: ``local`` for GLMs, ``transformers`` for all others, ``ray``
            for batches on many machines, ``openai`` for what a server runs; None: as configured,
            else the one that suits the folder.
        :param cluster: for the engine ``ray``: where its workers run.
        :param server: for the engine ``openai``, which it implies: the server's address, or all
            about it; None: as configured. The server knows ``name``; with the default model it is
            asked for the only one that it has.
        :raises UnknownNameError: if nobody knows the name.
        :raises SourceError: if it was never pulled.
        :raises CheckpointError: if the files are not a model that can run.
        :raises ServerError: if a server has to be asked for its only model and cannot be.
        :raises UsageError: if options do not go together, or the model takes no adapters.
        """
        name = name or self.config.model
        given: dict[str, Any] = {"device": device, "dtype": dtype, "quantize": quantize}
        given |= {"adapter": adapter, "family": family, "max_memory": max_memory}
        given["adapter_alpha"] = None if adapters else adapter_alpha
        if (engine or (self.config.engine if server is None else OPENAI)) == RAY:
            server_of(self.config, RAY, server)  # which it has none of
            if adapters:
                raise UsageError("the engine 'ray' takes one adapter; name it with adapter=")
            given["device"] = given["device"] or self.config.device
            load = partial(load_on_worker, self.config.portable())
            return open_on_cluster(load, name, cluster, given)
        spec = self._models.get(name)
        if spec is None:
            model = open_model(self, name, engine, server, given)
        else:
            refuse_given(name, {**given, "engine": engine, "server": server})
            model = cast("ChatModel", load_target(spec.loader)(name, self))
        offer(model, adapters or {}, adapter_alpha)
        return model

    def load_encoder(self, name: str | None = None) -> Encoder:
        """Load an encoder by catalog name, hub id, folder, or the name a plugin gave it.

        :raises UnknownNameError: if nobody knows the name.
        :raises SourceError: if it was never pulled.
        :raises CheckpointError: if no loader knows the folder's format.
        """
        name = name or self.config.encoder
        spec = self._encoders.get(name)
        if spec is not None:
            return cast("Encoder", load_target(spec.loader)(name, self))
        located = self._locate(name, "encoder", self._encoders)
        spec = accepting(self._encoders, located.path)
        if spec is not None:
            return cast("Encoder", load_target(spec.loader)(str(located.path), self))
        from .runtime.encoding import load_encoder

        return load_encoder(located.path, device=self.config.first_device, name=located.name)

    def shared_encoder(self, name: str | None = None) -> Encoder:
        """Return the encoder that all users of this application share, loaded by the first.

        Threads may ask it; it answers one at a time. The parameter and errors are those of
        :meth:`load_encoder`.
        """
        name = name or self.config.encoder
        return self._shared.setdefault(name, Lazy(lambda: OneByOne(self.load_encoder(name)))).get()

    def locate_image_model(self, name: str) -> Located:
        """Return the folder of a picture model, which is fetched where that is allowed.

        :param name: hub id or folder.
        :raises UnknownNameError: if nobody knows the name.
        :raises SourceError: if it was never pulled.
        """
        return self._locate(name, "image model", self.image_models)

    def load_image_model(self, name: str | None = None) -> ImageModel:
        """Load what draws, by the name a plugin gave it, hub id or folder.

        :param name: None for the one called ``default``, or else the first that is registered.
        :raises UnknownNameError: if nobody knows the name.
        :raises CheckpointError: if no loader knows the folder's format.
        """
        specs, known = self.image_models, self.image_models.names()
        if name is None and not known:
            raise UsageError(
                "no plugin draws; install one: pip install 'glmkit[drawing]'. "
                "'glmkit plugins' shows what is wrong with those installed"
            )
        name = name or ("default" if "default" in known else known[0])
        spec = specs.get(name)
        if spec is not None:
            return cast("ImageModel", load_target(spec.loader)(name, self))
        path = self.locate_image_model(name).path
        spec = accepting(specs, path)
        if spec is None:
            raise CheckpointError(f"{path} is no picture model that a plugin knows")
        return cast("ImageModel", load_target(spec.loader)(str(path), self))

    def knowledge_model(self, path: Path, model: ChatModel) -> ChatModel:
        """Return a model that answers from the documents at ``path`` and speaks through ``model``.

        :raises UsageError: if no plugin reads them, or there is nothing there.
        """
        found = self.plugins.hook.knowledge_model(path=path, model=model, app=self)
        if found is None:
            raise UsageError(
                f"no plugin answers from {path}; install one: pip install 'glmkit[knowledge]'"
            )
        return cast("ChatModel", found)

    def _locate(self, name: str, kind: str, registry: Registry[Spec]) -> Located:
        from . import sources

        try:
            return cast("Located", self.watch(sources.ensure(name, config=self.config, kind=kind)))
        except UnknownNameError as error:
            from .catalog import names

            raise UnknownNameError(
                kind, name, [*registry.names(), *names(kind)], hint="Run: glmkit models list"
            ) from error

    def chat(
        self,
        model: ChatModel,
        *,
        system: str | None = None,
        tools: Sequence[str | Tool | Mapping[str, Any]] = (),
        options: GenerationOptions | None = None,
        policy: Policy = Policy.OPTIONAL,
        settings: Mapping[str, Any] | None = None,
    ) -> Chat:
        """Begin a conversation that this application's plugins take part in.

        :param tools: functions that the model may ask for: registered ones by name, and all that
            :class:`~glmkit.chat.Chat` takes.
        :raises UnknownNameError: if nobody registered one of the names.
        """
        return Chat(
            model,
            plugins=self.plugins,
            system=system,
            tools=[self.load_tool(each) if isinstance(each, str) else each for each in tools],
            options=options or self.config.generation,
            policy=policy,
            settings=settings,
        )


def load_on_worker(
    config: Mapping[str, Any], name: str, given: Mapping[str, Any], device: str | None
) -> ChatModel:
    """Load a model in another process, possibly on another machine.

    :param config: what :meth:`Config.portable` returned.
    :param given: the options of :meth:`Glmkit.load_model`.
    :param device: what to use if they name none; None picks.
    """
    app = Glmkit(Config(**config, device=device))
    return app.load_model(name, **{key: each for key, each in given.items() if each is not None})
