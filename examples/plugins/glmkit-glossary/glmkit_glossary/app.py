"""``glmkit run glossary``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .terms import Glossary

if TYPE_CHECKING:
    from glmkit import Glmkit


@click.command()
@click.argument("text", required=False)
@click.pass_obj
def glossary(app: Glmkit, text: str | None) -> None:
    """Explain the terms that TEXT uses, or list them all."""
    found = Glossary.read(app.plugin_config("glossary").get("file"))
    for term, meaning in found.meanings.items() if text is None else found.used_in(text):
        click.echo(f"{term}: {meaning}")
