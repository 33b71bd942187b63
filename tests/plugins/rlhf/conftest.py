"""What the tests of recipes share."""

import pytest
from pair_rows import write_pairs

import glmkit_rlhf
from glmkit.models.tiny import tiny_checkpoint
from glmkit.testing import make_app
from glmkit.training.recording import Record


@pytest.fixture(scope="module")
def quick(one_thread):
    """Compute with one thread, and draw no curves: that takes longer than training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Record, "draw", lambda self, *told: None)
        patch.setattr("glmkit_rlhf.online_task.draw_curves", lambda folder: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a file of preferences that are easily told apart."""
    return write_pairs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """Return glmkit with this plugin alone."""
    return make_app(tmp_path_factory.mktemp("home"), rlhf=glmkit_rlhf)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return a tiny model of its own for each file."""
    return tiny_checkpoint(tmp_path_factory.mktemp("base") / "hub")
