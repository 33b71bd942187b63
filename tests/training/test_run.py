"""Whole runs on a tiny model: what the folder holds, going on, and what is refused before."""

import json
from pathlib import Path

import pytest
import torch

from glmkit.errors import CheckpointError, DataError, OutOfMemoryError, UsageError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.loading import load_local
from glmkit.training import run as running
from glmkit.training.config import TrainConfig
from glmkit.training.folder import claimed
from glmkit.training.run import train
from glmkit.training.tunings.prefix import PrefixTuning
from glmkit.training.tunings.whole import WholeTuning

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("base"), layout="chatglm3")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"prompt": f"say {each}", "response": str(each) * 3} for each in range(10)]
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return str(file)


@pytest.fixture
def config(base, data, tmp_path):
    def made(**given) -> TrainConfig:
        return TrainConfig(
            **{
                "model": str(base),
                "data": (data,),
                "output": str(tmp_path / "run"),
                "max_steps": 6,
                "learning_rate": 3e-3,
                "save_steps": 2,
                "report_to": ("none",),
                **given,
            }
        )

    return made


def losses(lines) -> list[float]:
    return [each.loss for each in lines if each.loss is not None]


def done(config: TrainConfig, tuning=None) -> list[float]:
    return losses(train(config, tuning or WholeTuning(Path(config.model))))


def test_run_leaves_a_model_and_its_record(config, base, tmp_path):
    told = config(
        **{"epochs": 20.0, "max_steps": 0, "save_steps": 30, "report_to": ("tensorboard",)},
        **{"val_size": 2, "eval_steps": 20, "eval_generate": 2, "eval_max_tokens": 3},
    )
    found = done(told)
    assert found[-1] < 0.6 * found[0]
    folder = tmp_path / "run"
    run = json.loads((folder / "run.json").read_text())
    assert run["config"]["learning_rate"] == 3e-3 and run["versions"]["torch"] == torch.__version__
    lines = [json.loads(each) for each in (folder / "trainer_log.jsonl").read_text().splitlines()]
    assert [each["loss"] for each in lines if "loss" in each] == found
    measured = [each for each in lines if "eval_loss" in each]
    assert len(measured) == 2 and all("eval_rouge-l" in each for each in measured)
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == len(found)
    assert (folder / "training_loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "runs").glob("events*"))
    assert "loss" in (folder / "README.md").read_text()
    tuned, plain = (load_local(each, dtype="float32") for each in (folder, base))
    ids = torch.tensor([[5, 6, 7, 8]])
    assert not torch.equal(tuned.logits(ids), plain.logits(ids))


def test_resumed_run_has_the_losses_of_an_uninterrupted_one(config, tmp_path):
    whole = done(config(output=str(tmp_path / "whole")))
    lines = train(config(), WholeTuning(Path(config().model)))
    first = [next(each for each in lines if each.step == step) for step in (1, 2, 3, 4, 5)]
    assert losses(first) == whole[:5]
    lines.close()  # behind checkpoint-4
    assert done(config(resume=True)) == whole[4:]
    text = (tmp_path / "run/trainer_log.jsonl").read_text()
    logged = [json.loads(each) for each in text.splitlines()]
    assert [each["loss"] for each in logged if "loss" in each] == whole


def test_resume_without_checkpoint_begins(config):
    lines = train(config(), WholeTuning(Path(config().model)))
    next(each for each in lines if each.step == 1)
    lines.close()
    assert len(done(config(resume=True))) == 6


def test_overwriting_leaves_nothing_of_the_old_run(config, tmp_path):
    folder = tmp_path / "run"
    done(config(), PrefixTuning(Path(config().model), length=3))
    (folder / "notes.txt").write_text("mine")
    lines = train(config(overwrite=True, learning_rate=1e-3), WholeTuning(Path(config().model)))
    next(each for each in lines if each.step == 3)
    lines.close()
    assert [each.name for each in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (folder / "pytorch_model.bin").exists()
    assert len(done(config(resume=True, learning_rate=1e-3))) == 4
    assert len((folder / "trainer_log.jsonl").read_text().splitlines()) == 9
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "model.safetensors").stat().st_mode & 0o044


def test_refused_start_leaves_the_folder_free(config, monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="optimizer must be one of"):
        done(config(optimizer="adamx"))
    with monkeypatch.context() as patched, pytest.raises(OutOfMemoryError):
        patched.setattr("glmkit.training.preflight.memory_of", lambda device: 200_000)
        done(config())
    nowhere = {"init_adapter": str(tmp_path / "nowhere")}
    with pytest.raises(CheckpointError):
        done(config(**nowhere), PrefixTuning(Path(config().model), length=3))
    assert len(done(config(max_steps=1))) == 1


def test_resumed_before_its_first_checkpoint_begins_with_its_adapter(config, tmp_path):
    base = Path(config().model)
    done(config(output=str(tmp_path / "before")), PrefixTuning(base, length=3))
    told = {"init_adapter": str(tmp_path / "before"), "save_steps": 6}
    lines = train(config(**told), PrefixTuning(base, length=3))
    first = next(each.loss for each in lines if each.step == 1)
    lines.close()
    assert done(config(resume=True, **told), PrefixTuning(base, length=3))[0] == first


def test_trained_model_trained_further_has_its_own_record(config, tmp_path):
    done(config(output=str(tmp_path / "first"), max_steps=2))
    further = config(model=str(tmp_path / "first"), max_steps=3, learning_rate=1e-4)
    done(further)
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["config"]["learning_rate"] == 1e-4 and run["dtype"] == "float32"
    assert len((tmp_path / "run/trainer_log.jsonl").read_text().splitlines()) == 5


def test_resume_names_what_differs(config, data, tmp_path):
    done(config(max_steps=2))
    other = tmp_path / "other.jsonl"
    other.write_text(Path(data).read_text().replace("say 1", "tell 1"))
    changed = {"learning_rate": 1e-5, "data": (str(other),), "batch_size": 3, "resume": True}
    with pytest.raises(UsageError) as refused:
        done(config(max_steps=2, **changed))
    said = str(refused.value)
    for each in (
        "learning_rate was 0.003, now 1e-05",
        "the data was changed",
        "4 samples",
        "now 3",
    ):
        assert each in said

    class PrefixConfig(TrainConfig):
        """Of another recipe."""

    told = PrefixConfig(**vars(config(max_steps=2, resume=True)))
    with pytest.raises(UsageError, match="recipe was train, now prefix"):
        done(told, PrefixTuning(Path(told.model), length=3))


def test_folder_in_use_or_full_is_refused(config, tmp_path):
    folder = tmp_path / "run"
    with claimed(config()), pytest.raises(UsageError, match="another training runs"):
        done(config())
    with pytest.raises(UsageError, match="holds no run"):
        done(config(resume=True))
    folder.joinpath("mine.txt").write_text("kept")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds 1 files.*another --output"):
            done(config(overwrite=overwrite))
    assert [each.name for each in folder.iterdir() if each.name[0] != "."] == ["mine.txt"]
    with pytest.raises(UsageError, match="is a file"):
        done(config(output=str(folder / "mine.txt")))


def test_nothing_to_learn_is_said(config, tmp_path):
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    with pytest.raises(DataError, match="empty"):
        done(config(data=(str(empty),)))
    with pytest.raises(UsageError, match="--data"):
        done(config(data=()))
    with pytest.raises((DataError, UsageError), match="max_length is 8"):
        done(config(max_length=8, overlong="skip"))


def test_too_large_a_training_is_refused_before_loading(config, monkeypatch):
    monkeypatch.setattr("glmkit.training.preflight.memory_of", lambda device: 200_000)
    monkeypatch.setattr(running, "load_local", None)
    with pytest.raises(OutOfMemoryError, match="does not fit.*--no-memory-check"):
        done(config())


def test_memory_that_runs_out_names_what_helps(config, monkeypatch):
    def full(*given, **named):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("glmkit.training.learner.Learner.forward", full)
    with pytest.raises(OutOfMemoryError, match="--batch-size 2 --gradient-accumulation 2"):
        done(config())


def test_unknown_tracker_and_scheduler(config):
    with pytest.raises(UsageError, match="report_to must be of"):
        done(config(report_to=("tensorbord",)))
    for name in ("cosin", "reduce_lr_on_plateau"):
        with pytest.raises(UsageError, match="scheduler must be one of"):
            done(config(scheduler=name))
    with pytest.raises(UsageError, match="pip install wandb"):
        done(config(report_to=("wandb",)))
    with pytest.raises(UsageError, match="early_stopping 2 needs something"):
        config(early_stopping=2)
