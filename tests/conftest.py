"""Fixtures: an application of its own per test, and the embedded defaults fetched once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from chat_server import serve
from forks import Forks

from glmkit import Config, Glmkit
from glmkit.errors import SourceError
from glmkit.testing import EchoModel, HashEncoder, make_app

SHARED = Path(__file__).parent.parent.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory):
    """Keep the user's own configuration and caches out of the tests, and the tests out of them."""
    real_home = Config.load().home
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(
                ("GLMKIT_", "HF_", "TRANSFORMERS_", "MODELSCOPE_", "USE_MODELSCOPE", "OPENAI_")
            ):
                patch.delenv(name)
        patch.setenv("GLMKIT_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("GLMKIT_TEST_DEFAULTS", str(real_home))
        yield


@pytest.fixture
def app(tmp_path: Path) -> Glmkit:
    """Return an application with a temporary home and no plugins."""
    return make_app(tmp_path / "home")


@pytest.fixture
def echo() -> EchoModel:
    """Return a model that repeats the question."""
    return EchoModel()


@pytest.fixture
def hash_encoder() -> HashEncoder:
    """Return an encoder that needs no model."""
    return HashEncoder()


def _default(kind: str, home: Path) -> Path:
    try:
        from glmkit.console import drain
        from glmkit.sources import ensure

        return drain(ensure("default", config=Config(home=home, offline=True), kind=kind)).path
    except SourceError as error:
        pytest.skip(f"the embedded default {kind} is not here (make pull fetches it): {error}")


@pytest.fixture(scope="session")
def defaults_home(_own_environment: None) -> Path:
    """Return the home that holds the embedded defaults; ``make test`` fetches them there."""
    return Path(os.environ["GLMKIT_TEST_DEFAULTS"])


@pytest.fixture(scope="session")
def default_model_path(defaults_home: Path) -> Path:
    """Return the folder of the embedded chat model."""
    return _default("model", defaults_home)


@pytest.fixture(scope="session")
def default_encoder_path(defaults_home: Path) -> Path:
    """Return the folder of the embedded encoder."""
    return _default("encoder", defaults_home)


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """Return the folder with reference checkpoints, which is not part of the project."""
    if not (SHARED / "reference").is_dir():
        pytest.skip("no ../shared/reference beside the project: reference outputs are not at hand")
    return SHARED / "reference"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder with public data sets, which is not part of the project."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no ../shared/data beside the project: public data sets are not at hand")
    return SHARED / "data"


@pytest.fixture(scope="session")
def forks(_own_environment: None, tmp_path_factory: pytest.TempPathFactory):
    """Run code in processes of its own, which have imported torch and the runtime already."""
    server = Forks(tmp_path_factory.mktemp("forks"))
    yield server
    server.close()


@pytest.fixture
def server():
    """Run a stand-in for servers that speak OpenAI's protocol."""
    with serve() as state:
        yield state


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch):
    """Ask a server again after milliseconds."""
    from glmkit.remote import patience

    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.005)


@pytest.fixture(scope="module")
def one_thread():
    """Keep tiny matrices off the other cores, where threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def registered(one_thread: None):
    """Give transformers glmkit's models, and let it be quiet."""
    import transformers

    import glmkit.hf

    glmkit.hf.register()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()
