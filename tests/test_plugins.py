"""Plugins: discovery, isolation, registries, and one test per hook."""

import sys
from importlib.metadata import EntryPoint
from inspect import signature
from pathlib import Path

import pytest

import glmkit.plugins
from glmkit import (
    CheckpointError,
    ImageModel,
    Picture,
    PluginError,
    Plugins,
    Spec,
    UnknownNameError,
    UsageError,
    hookimpl,
    hookspecs,
)
from glmkit.plugins import Command, Registry, load_target
from glmkit.testing import EchoModel, HashEncoder, make_app

DOCS = Path(__file__).parent.parent / "docs" / "plugins.md"
HOOKS = sorted(name for name, value in vars(hookspecs).items() if hasattr(value, "glmkit_spec"))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Return a function that installs modules as plugins, by name and source text."""
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = []

    def install(name, source, *, module=None):
        module = module or f"plugin_{name}"
        (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
        entries.append(EntryPoint(name, module, "glmkit"))
        monkeypatch.setattr(glmkit.plugins, "entry_points", lambda group: entries)

    yield install
    for entry in entries:
        sys.modules.pop(entry.module, None)


GOOD = """
from glmkit import hookimpl

@hookimpl
def register_commands(register):
    register("{name}", "Do it.", "somewhere:thing")
"""


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("import no_such_module_anywhere", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        (
            "from glmkit import hookimpl\n@hookimpl\ndef extra_context(request, wrong): ...",
            "wrong",
        ),
        (
            "from glmkit import hookimpl\n@hookimpl\ndef extra_contxt(request): ...",
            "unknown hook 'extra_contxt'; did you mean 'extra_context'",
        ),
    ],
)
def test_a_bad_plugin_is_recorded_and_the_others_work(installed, source, reason):
    installed("bad", source)
    installed("good", GOOD.format(name="good"))
    plugins = Plugins.discover()
    (failure,) = plugins.failures()
    assert failure.name == "bad"
    assert reason in failure.error
    assert "\n" not in failure.error
    assert plugins.commands().names() == ["good"]


def test_a_plugin_failing_in_a_register_hook_costs_only_its_own_names(installed):
    installed("bad", "from glmkit import hookimpl\n@hookimpl\ndef register_commands(register): 1/0")
    installed("good", GOOD.format(name="good"))
    plugins = Plugins.discover()
    assert plugins.commands().names() == ["good"]
    assert "ZeroDivisionError" in plugins.failures()[0].error


def test_two_plugins_claiming_one_name_are_both_named(installed):
    installed("one", GOOD.format(name="same"))
    installed("two", GOOD.format(name="same"))
    plugins = Plugins.discover()
    assert len(plugins.commands().names()) == 1
    reason = plugins.failures()[0].error
    assert "'one'" in reason and "'two'" in reason


def test_the_allow_list_loads_nothing_else_and_names_what_is_missing(installed):
    installed("bad", "raise RuntimeError")
    installed("good", GOOD.format(name="good"))
    plugins = Plugins.discover(["good", "absent"])
    assert {info.name: bool(info.error) for info in plugins.infos()} == {
        "good": False,
        "absent": True,
    }
    assert Plugins.discover([]).infos() == []


def test_a_plugin_may_specify_hooks_that_others_implement(installed):
    installed(
        "host",
        "from glmkit import hookspec\n@hookspec\ndef register_readers(register): ...",
    )
    installed(
        "a_guest",
        "from glmkit import hookimpl\n@hookimpl\ndef register_readers(register): register('x')",
    )
    plugins = Plugins.discover()
    assert plugins.failures() == []
    seen = []
    plugins.hook.register_readers(register=seen.append)
    assert seen == ["x"]


def test_registering_by_hand_is_undone_and_checked():
    plugins = Plugins()
    with plugins.using(EchoContext(), name="mine"):
        assert plugins.infos()[0].hooks == ("extra_context",)
        with pytest.raises(PluginError, match="already registered"):
            plugins.register(EchoContext(), name="mine")
    assert plugins.infos() == []
    with pytest.raises(PluginError, match="unknown hook 'startupp'"):
        plugins.register(Misspelt(), name="misspelt")
    assert plugins.infos() == []


class EchoContext:
    @hookimpl
    def extra_context(self, request):
        return None


class Misspelt:
    @hookimpl
    def startupp(self, app): ...


def test_registries_keep_order_aliases_and_owners():
    registry = Registry("model")
    spec = Spec("m", "a model", "x:y", aliases=("n",))
    registry.add(spec, owner="me")
    assert registry.get("n") is spec
    assert registry.names() == ["m", "n"]
    assert list(registry) == [spec]
    with pytest.raises(PluginError, match="'me'"):
        registry.add(Spec("n", "", "x:y"), owner="you")
    assert registry.owner("n") == "me"


@pytest.mark.parametrize("target", ["nothing", "glmkit:missing", "glmkit.cli:main.missing"])
def test_a_target_that_leads_nowhere_is_a_plugin_error(target):
    with pytest.raises(PluginError):
        load_target(target)


# One test per hook: test_every_hook_is_documented_and_tested fails where one is missing.


def test_hook_startup(tmp_path):
    class Plugin:
        @hookimpl
        def startup(self, app):
            self.table = app.plugin_config("mine")

    plugin = Plugin()
    make_app(tmp_path, {"plugins": {"mine": {"key": 1}}}, mine=plugin)
    assert plugin.table == {"key": 1}


def test_hook_register_commands(tmp_path):
    class Plugin:
        @hookimpl
        def register_commands(self, register):
            register("greet", "Say hello.", "module:greet")

    app = make_app(tmp_path, mine=Plugin())
    assert app.plugins.commands().get("greet") == Command("greet", "Say hello.", "module:greet")


def test_hook_register_apps(tmp_path):
    class Plugin:
        @hookimpl
        def register_apps(self, register):
            register("party", "Have one.", "module:party")

    assert make_app(tmp_path, mine=Plugin()).plugins.apps().names() == ["party"]


def load_echo(name, app):
    return EchoModel(name=name)


def load_hash(name, app):
    return HashEncoder(16)


def test_hook_register_models(tmp_path):
    class Plugin:
        @hookimpl
        def register_models(self, register):
            register(
                Spec("parrot", "repeats", f"{__name__}:load_echo", languages=frozenset({"en"}))
            )

    app = make_app(tmp_path, mine=Plugin())
    assert app.load_model("parrot").reply([{"role": "user", "content": "hi"}]).text == "hi"
    assert app.describe_model("parrot").languages == {"en"}


def test_hook_register_encoders(tmp_path):
    class Plugin:
        @hookimpl
        def register_encoders(self, register):
            register(Spec("hash", "hashes", f"{__name__}:load_hash"))

    assert make_app(tmp_path, mine=Plugin()).load_encoder("hash").dimensions == 16


class Brush:
    name = "brush"

    def draw(self, wish, options=None):
        yield from ()
        return [Picture(b"png", wish, 0)]


def load_brush(name, app):
    brush = Brush()
    brush.name = name
    return brush


def test_hook_register_image_models(tmp_path):
    class Plugin:
        @hookimpl
        def register_image_models(self, register):
            loader = f"{__name__}:load_brush"
            register(Spec("brush", "Paints.", loader, accepts=lambda path: path.suffix == ".ink"))

    app = make_app(tmp_path, mine=Plugin())
    (tmp_path / "black.ink").mkdir()
    for name in (None, "brush", str(tmp_path / "black.ink")):
        assert isinstance(app.load_image_model(name), ImageModel)
    with pytest.raises(CheckpointError, match="no picture model that a plugin knows"):
        app.load_image_model(str(tmp_path))
    with pytest.raises(UnknownNameError, match="unknown image model 'brash'"):
        app.load_image_model("brash")
    with pytest.raises(UsageError, match="no plugin draws"):
        make_app(tmp_path).load_image_model()


def test_the_image_model_called_default_is_the_default_whoever_came_first(tmp_path):
    class Plugin:
        @hookimpl
        def register_image_models(self, register):
            for name in ("brush", "default"):
                register(Spec(name, "Paints.", f"{__name__}:load_brush"))

    assert make_app(tmp_path, mine=Plugin()).load_image_model().name == "default"


def test_hook_knowledge_model(tmp_path):
    class Plugin:
        @hookimpl
        def knowledge_model(self, path, model, app):
            return EchoModel(f"{model.name} read {path.name}") if path.is_dir() else None

    app = make_app(tmp_path / "home", mine=Plugin())
    reply = app.knowledge_model(tmp_path, EchoModel()).reply([{"role": "user", "content": "?"}])
    assert reply.text == f"echo read {tmp_path.name}"
    with pytest.raises(UsageError, match="no plugin answers from"):
        app.knowledge_model(tmp_path / "absent", EchoModel())


def load_roll(name, app):
    def roll(sides: int = 6) -> str:
        """Roll a die."""
        return f"{sides} of {sides} at {app.config.home.name}"

    return roll


def test_hook_register_tools(tmp_path):
    class Plugin:
        @hookimpl
        def register_tools(self, register):
            register(Spec("roll", "Roll a die.", f"{__name__}:load_roll"))

    app = make_app(tmp_path / "home", mine=Plugin())
    assert app.tools.names() == ["roll"]
    tool = app.load_tool("roll")
    assert tool.description == "Roll a die."
    assert tool.call({"sides": 20}) == "20 of 20 at home"
    chat = app.chat(EchoModel(), tools=["roll"])
    chat.reply("hello")
    assert chat.model.seen[0][0].tools == (tool.schema,)
    with pytest.raises(UnknownNameError, match="did you mean 'roll'"):
        app.load_tool("rol")


def test_hook_register_recipes(tmp_path):
    from glmkit import RecipeSpec

    spec = RecipeSpec("gentle", "Trains little.", "module:recipe")

    class Plugin:
        @hookimpl
        def register_recipes(self, register):
            register(spec)

    app = make_app(tmp_path, mine=Plugin())
    assert list(app.recipes) == [spec]
    assert app.recipes.owner("gentle") == "mine"
    app.plugins.register(Plugin(), name="yours")
    assert app.plugins.recipes().names() == ["gentle"]
    reason = next(info.error for info in app.plugins.infos() if info.name == "yours")
    assert "'mine'" in reason and "'yours'" in reason


def test_hook_load_adapter(tmp_path):
    import torch

    from glmkit import Adapter, LowRank
    from glmkit.models.tiny import tiny_checkpoint

    stem = "transformer.encoder.layers.{}.mlp.dense_4h_to_h"
    asked = []

    class Plugin:
        @hookimpl
        def load_adapter(self, path, model, alpha):
            asked.append((path.name, model.name, alpha))
            if path.suffix != ".mine":
                return None
            parts = {
                stem.format(layer): LowRank(torch.ones(1, 96), torch.ones(64, 1), alpha or 1.0)
                for layer in range(2)
            }
            return Adapter("ones", "lora", "mine", parts)

    base = tiny_checkpoint(tmp_path / "base")
    app = make_app(tmp_path / "home", mine=Plugin())
    model = app.load_model(str(base), adapter=tmp_path / "x.mine", adapter_alpha=2)
    assert model.active_adapters == {"ones": 1.0}
    assert asked == [("x.mine", "base", 2)]
    with pytest.raises(CheckpointError, match="no such file or folder"):  # ours is asked last
        model.load_adapter(tmp_path / "absent")
    assert asked[1:] == [("absent", "base", None)]


def test_hook_extra_context(tmp_path):
    class Plugin:
        @hookimpl
        def extra_context(self, request):
            from glmkit import Passage

            return [Passage(f"about {request.question}", "mine")]

    reply = make_app(tmp_path, mine=Plugin()).chat(EchoModel()).reply("cats")
    assert reply.sources[0].text == "about cats"


def test_hook_response_done(tmp_path):
    class Plugin:
        @hookimpl
        def response_done(self, reply):
            self.reply = reply

    plugin = Plugin()
    reply = make_app(tmp_path, mine=plugin).chat(EchoModel()).reply("cats")
    assert plugin.reply == reply


def test_every_hook_is_documented_and_tested():
    text = DOCS.read_text(encoding="utf-8")
    for name in HOOKS:
        arguments = ", ".join(signature(getattr(hookspecs, name)).parameters)
        assert f"`{name}({arguments})`" in text, f"docs/plugins.md lacks {name}({arguments})"
        assert f"test_hook_{name}" in globals(), f"no test_hook_{name}"
