"""Files for accelerate and DeepSpeed, read as these read them; what a launcher decides."""

import json
import os

import pytest
import torch

from glmkit.training.config import TrainConfig
from glmkit.training.generated import ACCELERATE, DEEPSPEED, generated, overruled, shown
from glmkit.training.processes import Launched
from glmkit.training.shards import Sharding
from glmkit.training.zero_config import Filling, zero_plugin


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """Be nobody's process; what a test sets goes again."""
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_")) or name in _RANKS:
            monkeypatch.delenv(name)


_RANKS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NNODES", "NODE_RANK")


def loaded(config: TrainConfig, folder):
    from accelerate.commands.config.config_args import load_config_from_file

    file = folder / ACCELERATE
    file.write_text(generated(config)[ACCELERATE], encoding="utf-8")
    return load_config_from_file(str(file))


@pytest.fixture
def launched_with(monkeypatch):
    """Return what accelerate's launcher would tell the processes by a file."""
    monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda port: False)
    return told_by


def told_by(file) -> dict[str, str]:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    args = launch_command_parser().parse_args(["--config_file", str(file), "train.py"])
    return prepare_multi_gpu_env(_validate_launch_command(args)[0])


def test_one_process_needs_no_files():
    assert generated(TrainConfig()) == {}
    assert "needs no configuration" in shown(TrainConfig(parallel="fsdp"))


@pytest.mark.parametrize(
    ("parallel", "kind"), [("ddp", "MULTI_GPU"), ("fsdp", "FSDP"), ("zero3", "DEEPSPEED")]
)
def test_accelerate_reads_its_file(tmp_path, parallel, kind):
    found = loaded(TrainConfig(nproc=3, parallel=parallel, output=str(tmp_path)), tmp_path)
    assert found.distributed_type == kind
    assert (found.num_processes, found.num_machines, found.mixed_precision) == (3, 1, "no")
    if parallel == "zero3":
        assert found.deepspeed_config["deepspeed_config_file"] == str(tmp_path / DEEPSPEED)


def test_several_machines_are_in_the_file(tmp_path, monkeypatch):
    for name, value in {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node0"}.items():
        monkeypatch.setenv(name, value)
    found = loaded(TrainConfig(nproc=4), tmp_path)
    assert (found.num_processes, found.num_machines, found.machine_rank) == (8, 2, 1)
    assert (found.main_process_ip, found.main_process_port) == ("node0", 29500)


@pytest.mark.parametrize("offload", [False, True])
def test_fsdp_under_accelerates_launcher_is_what_the_flags_said(
    tmp_path, monkeypatch, launched_with, offload
):
    config = TrainConfig(
        nproc=2, parallel="fsdp", offload=offload, gradient_checkpointing=not offload
    )
    loaded(config, tmp_path)
    for name, value in launched_with(tmp_path / ACCELERATE).items():
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(name, value)
    launched = Launched.here()
    assert launched.fsdp
    assert Sharding.of(TrainConfig(), launched) == Sharding(
        reshard=True, offload=offload, checkpointing=not offload
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert generated(config) == {}
    said = overruled(TrainConfig(nproc=4))
    assert "2 processes on this machine, not --nproc 4" in said
    assert f"FSDP (offload: {'yes' if offload else 'no'}, reshard: yes), not --parallel ddp" in said


def test_nothing_is_said_where_nothing_is_decided():
    assert overruled(TrainConfig(nproc=2, parallel="zero2")) == ""


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_is_described(stage):
    config = TrainConfig(parallel=f"zero{stage}", offload=stage > 1)
    zero = json.loads(generated(config)[DEEPSPEED])["zero_optimization"]
    assert zero["stage"] == stage
    assert ("offload_optimizer" in zero, "offload_param" in zero) == (stage > 1, stage == 3)


def test_a_configuration_of_ones_own_is_shown_without_what_is_ours(tmp_path):
    own = tmp_path / "ds.json"
    own.write_text(json.dumps({"optimizer": {"type": "Adam"}, "zero_optimization": {"stage": 1}}))
    config = TrainConfig(deepspeed=str(own))
    assert json.loads(generated(config)[DEEPSPEED]) == {"zero_optimization": {"stage": 1}}


@pytest.mark.parametrize("parallel", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize("offload", [False, True])
def test_deepspeed_parses_what_is_generated(parallel, offload):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed (glmkit[deepspeed])")
    from deepspeed.runtime.config import DeepSpeedConfig

    config = TrainConfig(parallel=parallel, offload=offload, batch_size=3, gradient_accumulation=2)
    filling = Filling(config, 1, 64, torch.bfloat16)
    found = DeepSpeedConfig(filling.filled(zero_plugin(config, Launched())))
    assert found.zero_optimization_stage == int(parallel[-1])
    assert found.train_batch_size == 6 and found.gradient_accumulation_steps == 2
    assert (found.zero_config.offload_optimizer is not None) is offload
    assert (found.zero_config.offload_param is not None) is (offload and parallel == "zero3")
