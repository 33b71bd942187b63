"""DreamBooth's forecast of memory: what a step holds, told before it is taken."""

from __future__ import annotations

import pytest
import torch
from tiny_pictures import tiny_picture_model

from glmkit import OutOfMemoryError
from glmkit.training.learner import computing_in
from glmkit_drawing.dreambooth import memory
from glmkit_drawing.dreambooth.config import DreamboothConfig
from glmkit_drawing.dreambooth.learner import Nets, PictureLearner
from glmkit_drawing.dreambooth.lora import dress
from glmkit_drawing.dreambooth.recipe import dreambooth

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    """Return a tiny net and text encoder with LoRAs, as a run has them before its first step."""
    from diffusers import StableDiffusionPipeline

    folder = tiny_picture_model(tmp_path_factory.mktemp("model"))
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    nets = Nets(pipeline.unet, pipeline.text_encoder)
    dress(nets, DreamboothConfig(model="m", output="o", dropout=0.1, targets=("all",)))
    texts = torch.arange(8).reshape(2, 4)
    return PictureLearner(nets, texts, None, pipeline.scheduler).eval()


def stepped(learner, latents):
    """Take the step for real; return the most bytes that were alive at once."""
    counted = memory.LiveBytes()
    learner.train()
    shows = torch.zeros(latents[0], dtype=torch.int64)
    with counted, computing_in(learner.computing, torch.device("cpu")):
        found = learner.model.unet(
            torch.zeros(latents), shows, encoder_hidden_states=learner.embedded()[shows]
        ).sample
        found.float().square().mean().backward()
    learner.zero_grad()
    learner.eval()
    return counted.peak


def test_a_step_holds_what_was_foretold(learner):
    """And nothing of the learner changes by foretelling it."""
    before = {name: each.clone() for name, each in learner.state_dict().items()}
    state = torch.get_rng_state()
    learner.training = True  # as modules are made; what is in it was loaded to answer
    foretold = memory.step_bytes(learner, (2, 4, 8, 8), "cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(each.grad is None for each in learner.parameters())
    assert [each for each in learner.modules() if each.training] == [learner]
    after = learner.state_dict()
    assert all(torch.equal(after[name], each) for name, each in before.items())
    assert foretold == pytest.approx(stepped(learner, (2, 4, 8, 8)), rel=0.02)


def test_blocks_that_are_worked_out_again_hold_less(learner):
    unet, latents = learner.model.unet, (6, 4, 8, 8)
    plain = stepped(learner, latents)
    unet.enable_gradient_checkpointing()
    try:
        foretold = memory.step_bytes(learner, latents, "cpu")
        assert foretold == pytest.approx(stepped(learner, latents), rel=0.02)
    finally:
        unet.disable_gradient_checkpointing()
    assert foretold < 0.8 * plain


def test_what_does_not_fit_is_refused_with_what_helps(learner, monkeypatch):
    config = DreamboothConfig(
        model="m", output="o", batch_size=4, gradient_accumulation=2, train_text_encoder=True
    )
    monkeypatch.setattr(memory, "step_bytes", lambda *_: 1 << 20)
    assert memory.check(learner, (4, 4, 8, 8), config).startswith("memory: a step takes about ")
    monkeypatch.setattr(memory, "memory_of", lambda device: 1000)
    with pytest.raises(OutOfMemoryError) as caught:
        memory.check(learner, (4, 4, 8, 8), config)
    said = str(caught.value)
    assert "and 1000 bytes are free on cpu" in said
    for help_ in (
        "--gradient-checkpointing",
        "--batch-size 1 --gradient-accumulation 8",
        "leaving out --train-text-encoder",
        "a smaller --resolution",
        "--no-memory-check",
    ):
        assert help_ in said


def test_a_run_is_refused_before_its_first_step(tmp_path, photographs, monkeypatch):
    folder = tiny_picture_model(tmp_path / "model")
    config = DreamboothConfig(
        model=str(folder),
        data=(str(photographs),),
        prompt="a photo of sks dog",
        output=str(tmp_path / "run"),
        max_steps=1,
        eval_steps=0,
        report_to=(),
    )
    monkeypatch.setattr(memory, "memory_of", lambda device: 1000)
    monkeypatch.setattr(memory, "step_bytes", lambda *_: 1 << 20)
    with pytest.raises(OutOfMemoryError, match="--no-memory-check tries all the same"):
        list(dreambooth.run(config))
    monkeypatch.undo()
    notes = [each.note for each in dreambooth.run(config)]
    assert any(each.startswith("memory: a step takes about ") for each in notes if each)
