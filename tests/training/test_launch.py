"""``--nproc N``: processes start, the first one speaks, and all end together."""

import gc
import os
import signal
import time
import warnings
from pathlib import Path

import pytest

from glmkit.errors import UsageError, WorkerLostError
from glmkit.training.config import TrainConfig
from glmkit.training.launch import Nodes, launch, needed

HERE = Path(__file__).parent
pytestmark = pytest.mark.usefixtures("socket_enabled")


@pytest.fixture(autouse=True)
def swept():
    """Close what torch leaves open: the files that it keeps words in."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def near(monkeypatch):
    """Let processes find the module that they run."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))


@pytest.fixture
def cluster(monkeypatch):
    """Set what launchers set; nothing else of it is there."""
    for name in ("WORLD_SIZE", "RANK", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)

    def given(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return given


def test_only_the_first_process_speaks(near, capfd):
    launch(["hello"], 2, module="speaking")
    assert capfd.readouterr().out == "process 0 of 2: hello\n"


def test_one_that_fails_ends_the_others_and_its_words_are_told(near, capfd):
    before = signal.getsignal(signal.SIGINT)
    began = time.monotonic()
    with pytest.raises(WorkerLostError) as failed:
        launch(["fail 1"], 2, module="speaking")
    assert time.monotonic() - began < 20
    assert "process 1 failed with exit code 1" in str(failed.value)
    assert str(failed.value).endswith("Error: so it was asked")
    assert capfd.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) is before


def test_the_first_process_says_its_error_itself(near, capfd):
    with pytest.raises(WorkerLostError, match="process 0 failed .* above"):
        launch(["fail 0"], 2, module="speaking")
    assert capfd.readouterr().err == "Error: so it was asked\n"


def test_more_processes_than_cards_are_refused_unless_they_take_none(monkeypatch, near, capfd):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UsageError, match="this machine has 1 card, .* --device cpu"):
        launch(["hello"], 2, module="speaking")
    launch(["hello"], 2, device="cpu", module="speaking")
    assert capfd.readouterr().out == "process 0 of 2: hello\n"


def test_a_process_is_needed_once(cluster):
    assert needed(TrainConfig(nproc=2))
    assert not needed(TrainConfig())
    cluster(NNODES=2, MASTER_ADDR="host")
    assert needed(TrainConfig())
    cluster(WORLD_SIZE=2)
    assert not needed(TrainConfig(nproc=2))


def test_nodes_are_read_from_what_clusters_set(cluster):
    assert Nodes.here() == Nodes(1, 0, "127.0.0.1", 29500)
    cluster(NNODES=2, NODE_RANK=1, MASTER_ADDR="host", MASTER_PORT=7)
    assert Nodes.here() == Nodes(2, 1, "host", 7)
    cluster(NODE_RANK=2)
    with pytest.raises(UsageError, match="NODE_RANK must be 0 to 1"):
        Nodes.here()
    cluster(NODE_RANK="x")
    with pytest.raises(UsageError, match="are numbers"):
        Nodes.here()
    cluster(NODE_RANK=0, MASTER_ADDR="")
    with pytest.raises(UsageError, match="MASTER_ADDR does not say"):
        Nodes.here()


_MAIN = """
import sys
from glmkit.training.launch import launch
try:
    launch(["wait"], 2, module="speaking")
except KeyboardInterrupt:
    sys.stdout.write("stopped")
"""


def test_ctrl_c_stops_all(forks):
    path = f"import os; os.environ['PYTHONPATH'] = {str(HERE)!r}"
    main = forks.start(path + _MAIN)
    while not main.out.exists() or "process 0 of 2: wait" not in main.said():
        time.sleep(0.05)
    children = Path(f"/proc/{main.pid}/task/{main.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(main.pid, signal.SIGINT)
    assert main.wait() == 0
    assert main.said().endswith("stopped")
    assert not any(os.path.exists(f"/proc/{each}") for each in children)
