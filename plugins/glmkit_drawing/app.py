"""``glmkit run draw``: a wish in, pictures out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmkit import (
    LOADING,
    DrawOptions,
    Picture,
    Repl,
    UsageError,
    given_of,
    model_options,
)

from .files import keep, slug
from .settings import Settings, lora_of, size_of

if TYPE_CHECKING:
    from glmkit import ChatModel, Glmkit

    from .painter import Painter
    from .records import Record

_SHOWN = 80
"""Characters of what was cut that are shown; --json tells all."""
_PNG = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("wish", nargs=-1, type=Repl.TEXT)
@click.option("--image-model", help="Name, hub id or diffusers folder; default: the embedded one.")
@click.option("--lora", "loras", metavar="PATH[:WEIGHT]", multiple=True, help="LoRA to draw with.")
@click.option("--negative", type=Repl.TEXT, help="What the picture should not show.")
@click.option("--size", metavar="WxH", help="Pixels, such as 512x768; default: the model's own.")
@click.option("--steps", type=int, help="More are slower and, up to a point, better.")
@click.option("--guidance", type=float, help="How closely the wish is followed; 1: no guidance.")
@click.option("--seed", type=int, help="Same seed, same picture; the next ones count up.")
@click.option("-n", "--count", type=int, help="Pictures; several get a contact sheet.")
@click.option("--out", type=_FOLDER, help="Folder to write to.")
@click.option("--no-expand", is_flag=True, help="Tell the picture model the wish as it is.")
@click.option("--again", metavar="PICTURE", type=_PNG, help="Draw a picture of ours again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@model_options
@click.pass_obj
def draw(
    app: Glmkit,
    /,
    wish: Sequence[str],
    again: Path | None,
    out: Path | None,
    as_json: bool,
    **given: Any,  # noqa: ANN401
) -> None:
    """Draw what WISH says, in English or Chinese.

    The chat model (--model and its options) words the wish for the picture model, where that one
    does not know plain wishes. Each picture's file says how it was drawn: --again PICTURE draws
    the same one, or with other options or another WISH a variation of it.
    """
    settings = Settings.of(app.plugin_config("drawing"))
    text = " ".join(wish).strip()
    if not text and again is None:
        raise UsageError("say what to draw: glmkit run draw 'a red apple', or --again PICTURE")
    work = _Drawing(app, settings, given)
    job = work.again(again, text) if again is not None else work.anew(text)
    paths, sheet = job.keep(out or Path(settings.out))
    if as_json:
        click.echo(json.dumps(job.report(paths, sheet), ensure_ascii=False))
        return
    for path, picture in zip(paths, job.pictures, strict=True):
        click.echo(f"{path}  seed {picture.seed}")
    if sheet is not None:
        click.echo(f"{sheet}  all of them")


@dataclass(frozen=True)
class _Job:
    """Pictures that were drawn, and how."""

    wish: str
    prompt: str
    cut: str
    how: str
    pictures: list[Picture]

    def keep(self, folder: Path) -> tuple[list[Path], Path | None]:
        """Write the pictures and, where there are several, their contact sheet."""
        name = slug(self.wish)
        paths = [keep(folder, f"{name}-{each.seed}", each.png) for each in self.pictures]
        if len(paths) == 1:
            return paths, None
        from .records import sheet_of

        sheet = sheet_of(
            [each.png for each in self.pictures], [f"seed {each.seed}" for each in self.pictures]
        )
        return paths, keep(folder, f"{name}-sheet", sheet)

    def report(self, paths: list[Path], sheet: Path | None) -> dict[str, Any]:
        """Return everything for a program."""
        from .records import read_record

        drawn = [asdict(read_record(each.png)) for each in self.pictures]
        shown = [{"path": str(path), **record} for path, record in zip(paths, drawn, strict=True)]
        told = {"wish": self.wish, "prompt": self.prompt, "cut": self.cut, "how": self.how}
        return told | {"pictures": shown, "sheet": str(sheet) if sheet else None}


class _Drawing:
    """One run of the command."""

    def __init__(self, app: Glmkit, settings: Settings, given: dict[str, Any]) -> None:
        if given["device"] is not None:
            app.config = replace(app.config, device=given["device"])  # of both models
        self._app = app
        self._settings = settings
        self._given = given
        self._options = _options_of(given)  # before any model is loaded, as are these
        self._loras = [_there(*lora_of(each)) for each in given["loras"]]

    def anew(self, wish: str) -> _Job:
        """Draw a wish."""
        painter = self._painter(self._given["image_model"] or self._settings.image_model)
        painter.wear(self._loras)
        return self._drawn(wish, painter, self._options)

    def _drawn(self, wish: str, painter: Painter, options: DrawOptions) -> _Job:
        from .wishes import word

        worded = word(wish, painter, None if self._given["no_expand"] else self._chat)
        click.secho(f"({worded.how})", err=True, dim=True)
        if worded.prompt != wish:
            click.secho(f"prompt: {worded.prompt}", err=True, dim=True)
        if worded.cut:
            cut = f"{worded.cut[:_SHOWN]}{'...' if len(worded.cut) > _SHOWN else ''}"
            click.echo(f"cut, as the text encoder reads {painter.room} tokens: {cut}", err=True)
        drawing = painter.draw(worded.prompt, options, asked=wish)
        pictures: list[Picture] = self._app.watch(drawing)
        return _Job(wish, worded.prompt, worded.cut, worded.how, pictures)

    def again(self, picture: Path, wish: str) -> _Job:
        """Draw a picture again, as its file says and flags, or another wish, override."""
        from .records import read_record

        record = read_record(picture)
        painter = self._painter(self._given["image_model"] or record.model)
        if self._given["image_model"] is None:
            _check_same(painter, record, picture)
        painter.wear(self._loras or [(Path(each.path), each.weight) for each in record.loras])
        if not self._given["loras"]:
            _check_loras(painter, record, picture)
        options = _recorded(record, self._given)
        if wish:
            return self._drawn(wish, painter, options)
        drawing = painter.draw(record.prompt, options, asked=record.wish)
        pictures: list[Picture] = self._app.watch(drawing)
        return _Job(record.wish, record.prompt, "", f"as {picture.name} says", pictures)

    def _painter(self, name: str | None) -> Painter:
        from .painter import Painter

        painter = self._app.load_image_model(name)
        if not isinstance(painter, Painter):
            raise UsageError(f"{name!r} is no model of this plugin, which draws with diffusers")
        painter.name = name or painter.name  # as it was given: a record may travel
        return painter

    def _chat(self) -> ChatModel:
        return self._app.load_model(self._given["model"], **given_of(self._given, LOADING))


def _there(path: Path, weight: float) -> tuple[Path, float]:
    if not path.exists():
        raise UsageError(f"no LoRA {str(path)!r}: there is no such file or folder")
    return path, weight


def _options_of(given: dict[str, Any]) -> DrawOptions:
    size = None if given["size"] is None else size_of(given["size"])
    known = given_of(given, ("negative", "steps", "guidance", "seed", "count"))
    return DrawOptions(size=size, **known)


def _recorded(record: Record, given: dict[str, Any]) -> DrawOptions:
    """Return the options of a record, but for those that were given."""
    said = DrawOptions(record.negative, record.size, record.steps, record.guidance, record.seed)
    asked: dict[str, Any] = given_of(given, ("negative", "steps", "guidance", "seed", "count"))
    if given["size"]:
        asked["size"] = size_of(given["size"])
    return replace(said, **asked)


def _check_same(painter: Painter, record: Record, picture: Path) -> None:
    if painter.fingerprint != record.fingerprint:
        raise UsageError(
            f"{picture} was drawn by {record.model!r} with the fingerprint {record.fingerprint}, "
            f"and {painter.name!r} here has {painter.fingerprint}: it would draw another picture; "
            "name the right one, or this one to draw a variation: --image-model"
        )


def _check_loras(painter: Painter, record: Record, picture: Path) -> None:
    for then, now in zip(record.loras, painter.loras, strict=True):
        if then.sha256 != now.sha256:
            raise UsageError(
                f"{picture} was drawn with another LoRA than {then.path} holds now; name the right "
                "one, or this one to draw a variation: --lora"
            )
