"""Steps of fixed shapes, recorded and replayed, say what other steps say.

Only CUDA records for real; here a function that runs again stands in for a recorded step.
"""

import numpy as np
import pytest
import torch

from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.decode import columns
from glmkit.runtime.loading import load_local
from glmkit.runtime.rows import Row


@pytest.fixture(scope="module", params=["hub", "chatglm3-prefix", "chatglm"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    layout, _, prefix = request.param.partition("-")
    checkpoint = tiny_checkpoint(folder, layout=layout, prefix=3 if prefix else 0)
    return load_local(checkpoint, dtype="float32").model


class Tape:
    """Records nothing, but runs the very same step again, over its own tensors."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, run):
        run()
        self.recorded += 1

        def replay():
            self.replayed += 1
            run()

        return replay


def text(model, length, seed):
    ids = np.random.default_rng(seed).integers(3, 250, length).tolist()
    return ids if model.REUSABLE else [*ids, model.config.gmask, model.config.bos]


def said(model, lengths, tokens, **how):
    rows = [Row(text(model, each, each), tokens + each % 5) for each in lengths]
    for _ in columns(model, rows, **how):
        pass
    return [row.new for row in rows]


def test_recorded_steps_say_the_same(model):
    """Rows leave and join, prompts come in in pieces, and the cache moves on the way."""
    lengths = (4, 9, 300, 5, 17, 6)
    tape = Tape()
    assert said(model, lengths, 30, slots=4, record=tape) == said(model, lengths, 30, slots=4)
    assert tape.replayed > 3 * tape.recorded > 0


def test_a_row_alone_is_recorded_once_for_many_steps(model):
    tape = Tape()
    assert said(model, [5], 60, record=tape) == said(model, [5], 60)
    assert tape.recorded <= 2
    assert tape.replayed > 50


def test_what_cannot_be_recorded_runs_all_the_same(model, caplog):
    def refuse(run):
        raise RuntimeError("operation not permitted when stream is capturing\ndetails")

    assert said(model, [5, 8], 10, slots=2, record=refuse) == said(model, [5, 8], 10, slots=2)
    assert "not recorded" in caplog.text
    assert "details" not in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_say_the_same(tmp_path):
    on_card = load_local(tiny_checkpoint(tmp_path), device="cuda", dtype="float32").model
    here = load_local(tiny_checkpoint(tmp_path), device="cpu", dtype="float32").model
    lengths = (4, 9, 40, 5)
    assert said(on_card, lengths, 30, slots=3) == said(here, lengths, 30, slots=3)
