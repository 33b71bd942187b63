"""The third-party plugin in examples/: installed by pip, used through the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "plugins" / "glmkit-glossary"


@pytest.fixture(scope="module")
def glmkit(tmp_path_factory):
    """Return a function that runs glmkit with the example plugin installed."""
    target = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "plugin"
    copy_tree(EXAMPLE, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--target", str(target), str(source)],
        check=True,
        capture_output=True,
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}

    def run(*arguments, **more):
        return subprocess.run(
            [sys.executable, "-m", "glmkit", *arguments],
            env={**environment, **more},
            capture_output=True,
            text=True,
            encoding="utf-8",
        )

    return run


def copy_tree(source, target):
    for file in source.rglob("*"):
        if file.is_file() and "egg-info" not in str(file) and "__pycache__" not in str(file):
            (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / file.relative_to(source)).write_bytes(file.read_bytes())


def test_its_app_runs_and_its_hooks_are_shown(glmkit):
    listed = glmkit("run", "--list").stdout
    assert "glossary" in listed
    assert glmkit("run", "glossary", "什么是LoRA？").stdout.startswith("LoRA: Low-Rank")
    shown = glmkit("plugins", "show", "glossary").stdout
    assert "glmkit-glossary 0.1.0" in shown
    assert "extra_context, register_apps, startup" in shown
    assert glmkit("plugins", "doctor").returncode == 0


def test_the_allow_list_and_no_plugins_leave_it_out(glmkit):
    assert "glossary" not in glmkit("run", "--list", GLMKIT_PLUGINS="knowledge").stdout
    assert "glossary" not in glmkit("--no-plugins", "run", "--list").stdout
    missing = glmkit("--no-plugins", "run", "glossary")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "unknown app 'glossary'" in missing.stderr


def test_its_definitions_travel_with_a_question(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from glmkit_glossary import plugin

    from glmkit.testing import EchoModel, make_app

    app = make_app(tmp_path, glossary=plugin)
    reply = app.chat(EchoModel()).reply("What is LoRA?")
    assert [(source.path, source.location) for source in reply.sources] == [("glossary", "LoRA")]
    assert app.chat(EchoModel()).reply("What is a cat?").sources == ()


def test_a_wrong_setting_is_one_line_and_exit_2(glmkit, tmp_path):
    (tmp_path / "glmkit.toml").write_text("[plugins.glossary]\nfiel = 'x'\n")
    done = glmkit("--config", str(tmp_path / "glmkit.toml"), "run", "glossary")
    assert done.returncode == 2
    assert done.stderr.startswith("error: [plugins.glossary]")
    assert done.stderr.count("\n") == 1
