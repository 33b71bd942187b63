"""The command line. Groups are lazy, and this is the only place that prints errors."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__
from .errors import GlmkitError, UnknownNameError
from .plugins import Command, load_target

if TYPE_CHECKING:
    from .app import Glmkit
    from .plugins import Registry

COMMANDS = (
    Command("pull", "Fetch a model or encoder.", "glmkit.commands.models:pull"),
    Command(
        "models", "List, inspect and remove models and encoders.", "glmkit.commands.models:models"
    ),
    Command(
        "convert",
        "Write a checkpoint in the other layout: original or Hugging Face's.",
        "glmkit.commands.convert:convert",
    ),
    Command("plan", "Foretell memory, and where layers go.", "glmkit.commands.plan:plan"),
    Command(
        "batch", "Answer a file of prompts into a file of answers.", "glmkit.commands.batch:batch"
    ),
    Command(
        "adapters",
        "Inspect, check and merge LoRA adapters and prefixes.",
        "glmkit.commands.adapters:adapters",
    ),
    Command("plugins", "List, inspect and check plugins.", "glmkit.commands.plugins:plugins"),
    Command("run", "Run an app: chat, knowledge-chat or a plugin's.", "glmkit.cli:run"),
)
APPS = (Command("chat", "Talk to a model.", "glmkit.commands.chat:chat"),)
INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group whose commands are names and targets until one of them runs.

    :param collect: returns the commands of an application.
    :param kind: what a command is called in messages.
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401
        collect: Callable[[Glmkit], Registry[Command]],
        kind: str,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*args, **kwargs)
        self._collect = collect
        self._kind = kind

    def registry(self, ctx: click.Context) -> Registry[Command]:
        """Return the commands known to this run's application."""
        key = f"glmkit.{self._kind}"
        if key not in ctx.find_root().meta:
            ctx.find_root().meta[key] = self._collect(application(ctx))
        found: Registry[Command] = ctx.find_root().meta[key]
        return found

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, our own first."""
        return [*super().list_commands(ctx), *self.registry(ctx).names()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        command = self.registry(ctx).get(cmd_name)
        if command is None:
            return super().get_command(ctx, cmd_name)
        loaded: click.Command = load_target(command.target)
        return loaded

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that ``args`` begin with.

        :raises UnknownNameError: if there is none; mentions plugins that failed to load.
        """
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None and not ctx.resilient_parsing:
            failed = [info.name for info in application(ctx).plugins.failures()]
            hint = f"Some plugins failed to load: {', '.join(failed)}." if failed else ""
            raise UnknownNameError(self._kind, name, self.list_commands(ctx), hint=hint)
        return (name if command else None), command, args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any of them."""
        rows = [(each.name, each.help) for each in self.registry(ctx)]
        own = ((name, super(LazyGroup, self).get_command(ctx, name)) for name in self.commands)
        rows += [(name, command.get_short_help_str()) for name, command in own if command]
        if rows:
            with formatter.section(f"{self._kind.capitalize()}s"):
                formatter.write_dl(rows)


def application(ctx: click.Context) -> Glmkit:
    """Return this run's application, made on first use from the options of the root command.

    Options before the command are parsed first (they are eager), so that ``--help`` lists what a
    run with these options would have.
    """
    root = ctx.find_root()
    if root.obj is None:
        from .app import Glmkit
        from .config import Config
        from .console import show_progress

        flags = root.meta.get("glmkit.flags", {})
        config = Config.load(
            flags.get("config"),
            flags={key: value for key, value in flags.items() if key != "config"},
        )
        root.obj = Glmkit(config, watch=show_progress)
        _warn_of_failures(root.obj)
    app: Glmkit = root.obj
    return app


def _warn_of_failures(app: Glmkit) -> None:
    for info in app.plugins.failures():
        _complain("warning", f"plugin {info.name!r} is not in use: {info.error}")


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> Any:  # noqa: ANN401
    if value is not None and param.name:
        ctx.find_root().meta.setdefault("glmkit.flags", {})[param.name] = value
    return value


def _no_plugins(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().meta.setdefault("glmkit.flags", {})["plugins_allowed"] = ()


@click.group(
    cls=LazyGroup,
    collect=lambda app: app.plugins.commands(COMMANDS),
    kind="command",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, "-V", "--version", prog_name="glmkit")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_remember,
    help="Configuration file instead of ./glmkit.toml.",
)
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    is_eager=True,
    expose_value=False,
    callback=_remember,
    help="Folder for models and indexes (GLMKIT_HOME).",
)
@click.option(
    "--offline/--online",
    default=None,
    is_eager=True,
    expose_value=False,
    callback=_remember,
    help="Never open, or allow, network connections (GLMKIT_OFFLINE).",
)
@click.option(
    "--no-plugins",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_no_plugins,
    help="Load no plugin, ours included.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run, extend and train the ChatGLM / GLM family.

    First steps: glmkit run knowledge-chat --kb docs/ --ask "a question"
    """
    application(ctx)


def _list_apps(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    for app in application(ctx).plugins.apps(APPS):
        click.echo(f"{app.name:<20} {app.help}")
    ctx.exit()


@click.group(
    cls=LazyGroup,
    collect=lambda app: app.plugins.apps(APPS),
    kind="app",
    no_args_is_help=True,
)
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_apps,
    help="List the apps.",
)
def run() -> None:
    """Run an app: glmkit's own or a plugin's."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    That is 0 done, 1 failed, 2 wrong usage, 130 interrupted (Ctrl-C).
    """
    _take_any_text()
    try:
        code = cli.main(args=args, prog_name="glmkit", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except GlmkitError as error:
        _complain("error", str(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        _complain("interrupted", str(error) or "nothing more was done")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left; say nothing more, not even at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _complain("error", f"the disk is full: {error}; free some space and run this again")
        return 1


def _take_any_text() -> None:
    """Replace what a terminal's encoding cannot show or read instead of failing on it."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _complain(kind: str, message: str) -> None:
    click.echo(f"{click.style(kind, fg='red', bold=True)}: {message}", err=True)
