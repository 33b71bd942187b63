"""What the guides say to type is accepted, ours and the commands of other trainers."""

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import glmkit_drawing
import glmkit_finetune
import glmkit_rlhf
from glmkit import UsageError
from glmkit.cli import cli
from glmkit.testing import make_app
from glmkit_finetune import command
from glmkit_finetune.flags import RecipeCommand

ROOT = Path(__file__).parents[3]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
PAGES = [
    *(ROOT / name for name in ("README.md", "README.zh.md")),
    *(ROOT / "docs" / f"{name}.md" for name in ("finetune", "data", "evaluate", "parallel")),
    *GUIDES,
]
OURS = re.compile(r"glmkit (finetune|data|evaluate|plan|adapters|run chat)\b.*")
STARTERS = ("python", "deepspeed", "torchrun", "accelerate")


def lines_of(page):
    """Return the lines of blocks, continuations joined, without comments."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}(.*)$", text, re.MULTILINE)
    spoken = re.findall(r"`(glmkit [^`\n]*)`", text)
    every = [*"\n".join(blocks).splitlines(), *indented, *spoken]
    return dict.fromkeys(re.sub(r"\s+#.*", "", each).strip() for each in every)


def ours():
    for page in PAGES:
        for line in lines_of(page):
            bare = len(line.split()) < 4  # the name of a command, not one to type
            if OURS.fullmatch(line) and "..." not in line and not bare:
                yield pytest.param(line, id=f"{page.name}: {line[:60]}")


def theirs():
    for page in GUIDES:
        for line in lines_of(page):
            words = line.split()
            words = words[1:] if words and "=" in words[0] else words
            script = next((at for at, each in enumerate(words) if each.endswith(".py")), None)
            if script and words[0].startswith(STARTERS) and "..." not in words:
                yield pytest.param(words[script + 1 :], id=f"{page.name}: {words[script + 1]}")


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """Return a function that types a command, which does nothing, and returns a run's config."""
    plugins = {"finetune": glmkit_finetune, "rlhf": glmkit_rlhf, "drawing": glmkit_drawing}
    app, configs = make_app(tmp_path / "home", **plugins), []
    invoke = click.Command.invoke

    def quiet(self, ctx):
        if isinstance(self, (RecipeCommand, click.Group)):
            return invoke(self, ctx)
        return None

    monkeypatch.setattr(click.Command, "invoke", quiet)
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: Path(value))
    monkeypatch.setattr(
        command, "_train", lambda app, recipe, config, **kwargs: configs.append(config)
    )

    def typed(words):
        done = CliRunner().invoke(cli, words, obj=app)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return configs[-1] if configs else None

    return typed


@pytest.mark.parametrize("line", list(ours()))
def test_commands_of_the_pages(typed, line):
    typed(shlex.split(line)[1:])


@pytest.mark.parametrize("words", list(theirs()))
def test_commands_of_other_trainers(typed, words):
    recipe = "ptuning" if "--pre_seq_len" in words else "lora"
    if "--deepspeed" in words:
        recipe = "full"
    if "--finetuning_type" in words:
        recipe = words[words.index("--finetuning_type") + 1]
    if "--do_predict" in words:
        with pytest.raises(UsageError, match="do_predict is another command.*glmkit evaluate"):
            typed(["finetune", recipe, *words])
        return
    if recipe == "full" and "--fp16" in words:  # weights in float16 learn nothing themselves
        with pytest.raises(UsageError, match="give --dtype bfloat16"):
            typed(["finetune", recipe, *words])
        words = [each for each in words if each != "--fp16"]
    config = typed(["finetune", recipe, *words])
    rate = words[words.index("--learning_rate") + 1]
    assert config.learning_rate == float(rate) and config.data


def test_the_pages_are_searched_well():
    assert len(list(ours())) > 40 and len(list(theirs())) >= 6
