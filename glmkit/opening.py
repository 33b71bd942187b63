"""Opening a chat model: in this process, through a server, or on a cluster's workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .errors import UnknownNameError, UsageError
from .plugins import load_target
from .servers import Server

if TYPE_CHECKING:
    from .app import Glmkit
    from .config import Config
    from .runtime.adapters import Adapter
    from .runtime.engines.local import LocalModel
    from .runtime.engines.ray.cluster import Cluster
    from .types import ChatModel

RAY = "ray"
OPENAI = "openai"


def open_model(
    app: Glmkit,
    name: str,
    engine: str | None,
    server: Server | str | None,
    given: dict[str, Any],
) -> ChatModel:
    """Load a model that no plugin registered into this process, or that of its server.

    :param given: the other options of :meth:`Glmkit.load_model`.
    """
    config = app.config
    remote = server_of(config, engine, server)
    if remote is not None:
        return connect(config, name, remote, given)
    located = app.locate_model(name)
    given["device"] = given["device"] or config.device
    given["max_memory"] = given["max_memory"] or config.max_memory
    if name == config.model:
        given["family"] = given["family"] or config.family
    load = _engine(engine or config.engine, located.path)

    def read(path: Path, model: LocalModel, alpha: float | None) -> Adapter:
        """Let the plugins read an adapter, ours last."""
        hook = app.plugins.hook.load_adapter
        return cast("Adapter", hook(path=path, model=model, alpha=alpha))

    known: dict[str, Any] = {"name": located.name, "languages": located.languages}
    return load(located.path, reader=read, **known, **given)


def _engine(name: str | None, folder: Path) -> Callable[..., ChatModel]:
    """Return what loads a folder: the engine asked for, or the one that suits it."""
    from .runtime.engines import ENGINES, suited

    name = name or suited(folder)
    if name not in ENGINES:
        raise UnknownNameError("engine", name, [*ENGINES, RAY])
    return cast("Callable[..., ChatModel]", load_target(ENGINES[name]))


def open_on_cluster(
    load: Callable[..., ChatModel], name: str, cluster: Cluster | None, given: dict[str, Any]
) -> ChatModel:
    """Return a model that workers load as this application would, each where it runs.

    :param load: takes a model's name, ``given`` and a worker's device; can be pickled.
    """
    from .runtime.engines.ray.model import NO_CHAT, RayModel

    if cluster is None:
        raise UsageError(NO_CHAT)
    if given["device"] == "cpu" and cluster.gpus_per_worker is None:
        cluster = replace(cluster, gpus_per_worker=0)
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        name = str(folder.resolve())  # workers do not run in this folder
    return RayModel(partial(load, name, given), name=name, cluster=cluster)


def server_of(config: Config, engine: str | None, server: Server | str | None) -> Server | None:
    """Return the server that shall answer; None where this machine does.

    :raises UsageError: if the engine asks no server and one is named.
    """
    engine = engine or (config.engine if server is None else OPENAI)
    if engine == OPENAI:
        own = config.openai
        return replace(own, base_url=server) if isinstance(server, str) else server or own
    if server is not None:
        raise UsageError(f"the engine {engine!r} asks no server; leave --base-url out, or --engine")
    return None


def connect(config: Config, name: str, server: Server, given: Mapping[str, Any]) -> ChatModel:
    """Return a model that a server runs."""
    from .runtime.engines import ENGINES

    to_server = cast("Callable[..., ChatModel]", load_target(ENGINES[OPENAI]))
    known = None if name == "default" else name
    return to_server(known, server, offline=config.offline, **given)


def offer(model: Any, adapters: Mapping[str, Path], alpha: float | None) -> None:  # noqa: ANN401
    """Load adapters beside each other into ``model``, which goes on without any.

    :raises UsageError: if it takes none.
    """
    for name, path in adapters.items():
        if not hasattr(model, "load_adapter"):
            raise UsageError(f"the model {model.name!r} takes no adapters; leave {name!r} out")
        model.load_adapter(path, name, alpha=alpha)
    if adapters:
        model.set_adapter(None)


def refuse_given(name: str, given: Mapping[str, object]) -> None:
    """Refuse loading options for a plugin's model rather than ignore them."""
    for option, value in given.items():
        if value is not None:
            raise UsageError(
                f"model {name!r} comes from a plugin, which takes no {option} (got {value!r}); "
                "leave it out and configure the plugin instead"
            )
