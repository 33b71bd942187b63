"""The floors of the house: what may import what, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import glmkit

ROOT = Path(__file__).parent.parent
PLUGINS = sorted((ROOT / "plugins").glob("glmkit_*"))
LIGHT = ["glmkit", "glmkit.app", "glmkit.cli", "glmkit.chat", "glmkit.config", "glmkit.plugins"]
LIGHT += ["glmkit.catalog", "glmkit.sources", "glmkit.testing", "glmkit.repl", "glmkit_knowledge"]
LIGHT += ["glmkit.servers", "glmkit.remote.model", "glmkit.dataset", "glmkit_finetune.data"]
HEAVY = ("torch", "transformers", "numpy", "faiss", "jieba", "huggingface_hub", "rich", "langchain")


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", LIGHT)
def test_the_light_floor_imports_nothing_heavy(module):
    loaded = run(f"import sys, {module}; print(*sys.modules)").split()
    assert not set(loaded) & set(HEAVY)


def test_help_loads_nothing_heavy_and_no_command_module():
    code = "import sys; from glmkit.cli import main; main(['--help']); print(*sys.modules)"
    loaded = run(code).split()
    assert not set(loaded) & set(HEAVY)
    assert not [name for name in loaded if name.startswith("glmkit.commands.")]


RUNTIME = """
import sys
import glmkit.runtime.encoding
print(*sys.modules)
import glmkit.runtime.loading, glmkit.runtime.engines.local
print(*sys.modules)
import glmkit
print(*[getattr(glmkit, name) and name for name in glmkit.__all__ if name in dir(glmkit)])
"""


@pytest.fixture(scope="module")
def grown():
    """Return what a fresh process has loaded by and by, as torch is dear to import."""
    return [set(line.split()) for line in run(RUNTIME).splitlines()]


def test_encoding_reaches_no_upper_floor(grown):
    bad = {"transformers", "tokenizers", "glmkit.app", "glmkit.config", "glmkit.cli"}
    assert "torch" in grown[0] and not grown[0] & bad


def test_the_runtime_costs_no_transformers(grown):
    assert not grown[1] & {"transformers", "gguf", "peft", "click"}


def test_the_public_names_are_exactly_all(grown):
    assert grown[2] == set(glmkit.__all__)
    source = ast.parse((ROOT / "glmkit" / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.asname or alias.name
        for node in ast.walk(source)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert typed | {"__version__"} == set(glmkit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        glmkit.nonsense  # noqa: B018


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_plugins_import_only_public_names(plugin):
    allowed = {"glmkit", "glmkit.testing"}
    libraries = ("glmkit.dataset", "glmkit.training", "glmkit.evaluation")  # open to plugins, whole
    allowed |= {"glmkit.pictures", "glmkit.feedback", "glmkit.live", "glmkit.stopping"}
    allowed |= {"glmkit.sharing", "glmkit.disk", "glmkit.thumbs"}
    for file in plugin.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
                if node.module == "glmkit":
                    assert {alias.name for alias in node.names} <= set(glmkit.__all__), file
            else:
                continue
            for name in names:
                if name.split(".")[0] == "glmkit":
                    open_ = name.startswith(libraries)
                    assert name in allowed or open_, f"{file} imports {name}"
                others = {each.name for each in PLUGINS} - {plugin.name}
                assert name.split(".")[0] not in others, f"{file} imports another plugin"


def test_only_config_reads_the_environment():
    for file in [*(ROOT / "glmkit").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        if file.name != "config.py":
            text = file.read_text(encoding="utf-8")
            assert "os.environ" not in text and "getenv" not in text, file


def test_the_import_contracts_hold():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout
