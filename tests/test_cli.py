"""The command line: lazy groups, errors in one line, exit codes, the chat app."""

import io
import json
import os
import subprocess
import sys

import pytest

import glmkit.cli
from glmkit import GlmkitError, Plugins, Spec, hookimpl
from glmkit.cli import main
from glmkit.testing import EchoModel


class Parrot:
    """Registers the echo model, a command that fails, and one that is interrupted."""

    @hookimpl
    def register_models(self, register):
        register(Spec("parrot", "repeats", f"{__name__}:load_parrot"))

    @hookimpl
    def register_commands(self, register):
        register("fail", "Fail on purpose.", f"{__name__}:FAIL")
        register("full", "Fill the disk.", f"{__name__}:FULL")


def load_parrot(name, app):
    return EchoModel(name=name)


def _command(error):
    import click

    @click.command()
    def command():
        raise error

    return command


FAIL = _command(GlmkitError("nothing works; try again"))
FULL = _command(OSError(28, "No space left on device"))


@pytest.fixture
def parrot(monkeypatch, tmp_path):
    """Make the command line find the parrot plugin alone, in an empty folder."""

    def discover(allowed=None):
        plugins = Plugins()
        if allowed is None:
            plugins.register(Parrot(), name="parrot")
        return plugins

    monkeypatch.setattr(Plugins, "discover", discover)
    monkeypatch.chdir(tmp_path)


def piped(monkeypatch, text):
    stdin = io.StringIO(text)
    monkeypatch.setattr(sys, "stdin", stdin)


def test_help_lists_our_commands_and_the_plugins(parrot, capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in ("pull", "models", "plugins", "run", "fail"):
        assert f"\n  {name} " in out


def test_options_before_help_count(parrot, capsys):
    main(["--no-plugins", "--help"])
    assert "fail" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pluggins"], "unknown command 'pluggins'; did you mean 'plugins'?"),
        (["run", "chta"], "unknown app 'chta'; did you mean 'chat'?"),
        (["plugins", "show", "parot"], "unknown plugin 'parot'; did you mean 'parrot'?"),
        (["--config", "nowhere.toml", "run", "chat"], "no configuration file 'nowhere.toml'"),
        (["run", "chat", "--model", "parot", "--ask", "hi"], "did you mean 'parrot'"),
        (["run", "chat", "--model", "parrot", "--top-p", "7", "--ask", "x"], "top_p must be"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(parrot, capsys, arguments, said):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_a_wrong_option_is_exit_2(parrot, capsys):
    assert main(["run", "chat", "--nonsense"]) == 2
    assert "No such option" in capsys.readouterr().err


def test_a_failure_is_one_line_and_exit_1(parrot, capsys):
    assert main(["fail"]) == 1
    assert capsys.readouterr().err == "error: nothing works; try again\n"


def test_a_full_disk_is_one_line_and_exit_1(parrot, capsys):
    assert main(["full"]) == 1
    assert "the disk is full" in capsys.readouterr().err


def test_chat_answers_one_question(parrot, capsys):
    assert main(["run", "chat", "--model", "parrot", "--ask", "你好 world"]) == 0
    assert capsys.readouterr().out == "你好 world\n"


@pytest.mark.parametrize("option", ["--ask", "--system"])
def test_bytes_that_are_no_text_are_replaced(parrot, capsys, option):
    typed = os.fsdecode(b"a\xffb")
    rest = ["--ask", "c"] if option == "--system" else []
    assert main(["run", "chat", "--model", "parrot", option, typed, *rest]) == 0
    assert capsys.readouterr().out == ("c\n" if rest else "a\ufffdb\n")


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_piped_bytes_that_are_no_text_are_replaced(parrot, capsys, monkeypatch, errors):
    stdin = io.TextIOWrapper(io.BytesIO(b"a\xffb\nc\n"), encoding="utf-8", errors=errors)
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["run", "chat", "--model", "parrot"]) == 0
    assert capsys.readouterr().out == "a\ufffdb\nc\n"


def test_chat_works_piped_and_knows_its_commands(parrot, capsys, monkeypatch):
    piped(monkeypatch, "one\n\n/reset\n/nonsense\ntwo\n/quit\nthree\n")
    assert main(["run", "chat", "--model", "parrot"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "one\ntwo\n"
    assert "unknown command /nonsense" in captured.err


def test_max_tokens_and_configuration_reach_the_model(parrot, capsys, tmp_path):
    (tmp_path / "glmkit.toml").write_text("[generation]\nmax_tokens = 2\n")
    main(["run", "chat", "--model", "parrot", "--ask", "a b c d"])
    main(["run", "chat", "--model", "parrot", "--max-tokens", "3", "--ask", "a b c d"])
    assert capsys.readouterr().out.split("\n")[:2] == ["a b ", "a b c "]


def test_plugins_list_and_show(parrot, capsys):
    main(["plugins", "list", "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["error"]) == ("parrot", None)
    main(["plugins", "show", "parrot"])
    out = capsys.readouterr().out
    assert "register_commands, register_models" in out
    assert "fail, full" in out


def test_doctor_fails_on_a_table_that_nobody_reads(parrot, capsys, tmp_path):
    (tmp_path / "glmkit.toml").write_text("[plugins.knowlege]\ntop_k = 3\n")
    assert main(["plugins", "doctor"]) == 1
    assert "[plugins.knowlege]" in capsys.readouterr().out


def test_a_plugin_that_fails_at_import_costs_one_warning_line(monkeypatch, tmp_path, capsys):
    from importlib.metadata import EntryPoint

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_plugin.py").write_text("raise ImportError('no luck')")
    entry = EntryPoint("broken", "broken_plugin", "glmkit")
    monkeypatch.setattr(glmkit.plugins, "entry_points", lambda group: [entry])
    assert main(["run", "--list"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "warning: plugin 'broken' is not in use: ImportError: no luck\n"
    assert captured.out.startswith("chat")
    assert main(["plugins", "doctor"]) == 1
    assert main(["plgins"]) == 2
    assert "Some plugins failed to load: broken." in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error(parrot):
    done = subprocess.run(
        f"{sys.executable} -m glmkit --help | head -c 1",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""


def test_the_terminal_may_be_too_narrow_for_the_text():
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-m", "glmkit", "run", "chta你"],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
