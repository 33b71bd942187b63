"""``glmkit finetune``: one command for each recipe, with its settings as flags."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import glmkit
from glmkit.training.config import TrainConfig

from .aliases import aliases_of
from .flags import RecipeCommand, config_of, given_of, normal
from .settings import settings_of

if TYPE_CHECKING:
    from glmkit import Glmkit, Recipe

_PARAMS = (
    click.Option(
        ["--set", "pairs"], multiple=True, metavar="KEY=VALUE", help="Any setting; repeatable."
    ),
    click.Option(
        ["--config", "config_file"],
        type=click.Path(path_type=Path, dir_okay=False),
        help="Settings in TOML, YAML or JSON; flags and --set go before them.",
    ),
    click.Option(["--json", "as_json"], is_flag=True, help="Print the log as JSON lines."),
    click.Option(
        ["--show-config", "show_config"],
        is_flag=True,
        help="Print the files for accelerate and DeepSpeed that this comes to, and train nothing.",
    ),
)


class Recipes(click.Group):
    """The recipes of all plugins, each imported only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of recipes."""
        return _app(ctx).recipes.names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a recipe.

        :raises UnknownNameError: if nobody registered it.
        """
        return _command(_app(ctx), cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the recipes without importing any of them."""
        with formatter.section("Recipes"):
            formatter.write_dl([(each.name, each.help) for each in _app(ctx).recipes])


def _app(ctx: click.Context) -> Glmkit:
    app: Glmkit = ctx.find_root().obj
    return app


def _command(app: Glmkit, name: str) -> click.Command:
    recipe = app.load_recipe(name)
    spec = next(each for each in app.recipes if each.name == name)

    def callback(**parsed: Any) -> None:  # noqa: ANN401
        config = config_of(
            recipe.config_type,
            name,
            flags=given_of(parsed),
            pairs=parsed["pairs"],
            file=parsed["config_file"],
        )
        if parsed["show_config"]:
            if not isinstance(config, TrainConfig):
                raise glmkit.UsageError(f"{name} trains in one process, which needs no such files")
            _show_config(config)
            return
        _train(app, recipe, config, as_json=parsed["as_json"])

    return RecipeCommand(
        name,
        callback=callback,
        help=f"Train a model with the recipe {name}: {spec.help}",
        params=_PARAMS,
        settings=settings_of(recipe.config_type),
        aliases=aliases_of(recipe.config_type),
        context_settings={
            "token_normalize_func": normal,
            "help_option_names": ["-h", "--help"],
            "max_content_width": 110,
        },
    )


def _list(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    recipes = _app(ctx).recipes
    for each in recipes:
        owner = recipes.owner(each.name)
        click.echo(f"{each.name:<12} {each.help}{'' if owner == 'finetune' else f' ({owner})'}")
    ctx.exit()


@click.group(cls=Recipes, no_args_is_help=True)
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list,
    help="List the recipes.",
)
def finetune() -> None:
    """Train a model on data of yours.

    First steps: glmkit finetune lora --model M --data D --output DIR
    """


def _show_config(config: Any) -> None:  # noqa: ANN401
    from glmkit.training.generated import shown

    click.echo(shown(config))


def _train(app: Glmkit, recipe: Recipe[Any], config: Any, *, as_json: bool) -> None:  # noqa: ANN401
    """Find the model, start other processes where they are asked for, train, show."""
    from glmkit.training.launch import launch, needed

    from .showing import show

    config = _prepared(app, recipe, config)
    if isinstance(config, TrainConfig) and needed(config):
        launch(sys.argv[1:], config.nproc, device=config.device)
        return
    logs = recipe.run(config)
    if _is_first():
        show(logs, as_json=as_json)
    else:
        deque(logs, maxlen=0)


def _prepared(app: Glmkit, recipe: Recipe[Any], config: Any) -> Any:  # noqa: ANN401
    """Return a config with what is found on this machine: the model's folder, the cache."""
    own = getattr(recipe, "prepared", None)
    if own is not None:
        return own(config, app)
    if not isinstance(config, TrainConfig):
        return config
    if not config.data:
        raise glmkit.UsageError("nothing to train on: give --data FILE, several times if need be")
    located = app.locate_model(None if config.model == "default" else config.model)
    cache = config.cache or str(app.config.home / "cache" / "tokens")
    return replace(config, model=str(located.path), cache=cache)


def _is_first() -> bool:
    """Tell whether this process is the one that speaks, of those that train together."""
    from accelerate.utils import get_int_from_env

    return int(get_int_from_env(["RANK"], 0)) == 0
