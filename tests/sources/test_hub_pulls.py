"""Pulling from a stand-in for the hubs."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from source_parts import ID, NEEDED, WEIGHTS, hf, in_store, loopback, make_model, pull
from stand_in import REVISION, Fault, model_files, serve

from glmkit import sources, store
from glmkit.errors import SourceError, UsageError


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
