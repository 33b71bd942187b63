"""Where a run stands: what is written is read again, that of earlier versions too."""

import json

import pytest

from glmkit.errors import CheckpointError
from glmkit.evaluation.comparing import Measure
from glmkit.training.state import FILE, TrainerState


def test_what_is_written_is_read_again(tmp_path):
    state = TrainerState(global_step=3, open_figures={"accuracy": Measure(3.0, 4.0)})
    state.write(tmp_path)
    assert TrainerState.read(tmp_path) == state


def test_figures_that_were_bare_sums_are_read(tmp_path):
    TrainerState(open_weight=8.0).write(tmp_path)
    raw = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(raw | {"open_figures": {"accuracy": 3.0}}))
    assert TrainerState.read(tmp_path).open_figures == {"accuracy": Measure(3.0, 8.0)}
    (tmp_path / FILE).write_text(json.dumps(raw | {"open_figures": {"accuracy": [1, 2, 3]}}))
    with pytest.raises(CheckpointError, match="missing or damaged"):
        TrainerState.read(tmp_path)
