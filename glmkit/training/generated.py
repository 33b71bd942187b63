"""The files that other launchers take for the same training, and what theirs decides instead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import TrainConfig
from .processes import Launched

ACCELERATE = "accelerate.yaml"
DEEPSPEED = "ds_config.json"


@dataclass(frozen=True)
class Run:
    """Which processes a configuration is for.

    Before they are started, the configuration and the cluster say it; afterwards, their launcher.
    """

    config: TrainConfig
    launched: Launched
    world: int
    machines: int

    @classmethod
    def of(cls, config: TrainConfig) -> Run:
        """Read it from the environment, and where that says nothing, from the configuration."""
        launched = Launched.here()
        if launched.world > 1:
            machines = max(1, launched.world // launched.local_world)
            return cls(config, launched, launched.world, machines)
        from .launch import Nodes

        machines = Nodes.here().count
        return cls(config, launched, config.nproc * machines, machines)

    @property
    def mode(self) -> str:
        """Say ``ddp``, ``fsdp`` or ``zero``."""
        from .parallel import mode_of

        return mode_of(self.config, self.launched)

    def files(self) -> dict[str, str]:
        """Return texts by file name; where accelerate's launcher has its own, none."""
        if self.launched.fsdp or self.launched.deepspeed:
            return {}
        found = {}
        if self.world > 1:
            found[ACCELERATE] = _yaml(self.accelerate())
        if self.mode == "zero":
            from .zero_config import asked

            found[DEEPSPEED] = json.dumps(asked(self.config), indent=2) + "\n"
        return found

    def accelerate(self) -> dict[str, Any]:
        """Return what ``accelerate launch --config_file`` takes."""
        return {
            "compute_environment": "LOCAL_MACHINE",
            # "Several cards" is what starts several processes, also where there are no cards.
            "distributed_type": _TYPES[self.mode],
            "num_machines": self.machines,
            "num_processes": self.world,
            **self._machine(),
            "rdzv_backend": "static",
            "main_training_function": "main",
            "mixed_precision": "no",  # --dtype says it
            "use_cpu": False,
            **self._section(),
        }

    def _machine(self) -> dict[str, Any]:
        """Say which machine this is, and where the first one is."""
        if self.machines == 1:
            return {"machine_rank": 0}
        from .launch import Nodes

        here = Nodes.here()
        return {
            "machine_rank": here.rank,
            "main_process_ip": here.address,
            "main_process_port": here.port,
        }

    def _section(self) -> dict[str, Any]:
        if self.mode == "fsdp":
            return {
                "fsdp_config": {
                    "fsdp_version": 2,
                    "fsdp_auto_wrap_policy": "NO_WRAP",
                    "fsdp_reshard_after_forward": True,
                    "fsdp_offload_params": self.config.offload,
                    "fsdp_activation_checkpointing": self.config.gradient_checkpointing,
                }
            }
        if self.mode == "zero":
            file = Path(self.config.output).expanduser().absolute() / DEEPSPEED
            said = {"deepspeed_config_file": str(file), "zero3_init_flag": False}
            return {"deepspeed_config": said}
        return {}

    def decided(self) -> Iterator[str]:
        """Yield what a launcher decides instead of the configuration."""
        config, launched = self.config, self.launched
        if launched.world > 1 and config.nproc not in (1, launched.local_world):
            yield f"{launched.local_world} processes on this machine, not --nproc {config.nproc}"
        if launched.deepspeed:
            yield f"DeepSpeed by its own configuration, not {_flags(config)}"
        elif launched.fsdp:
            from .shards import Sharding

            said = Sharding.of(config, launched)
            offload, reshard = (_yes(each) for each in (said.offload, said.reshard))
            yield f"FSDP (offload: {offload}, reshard: {reshard}), not {_flags(config)}"


_TYPES = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "zero": "DEEPSPEED"}


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _flags(config: TrainConfig) -> str:
    """Write what a configuration says of sharing."""
    said = f"--parallel {config.parallel}{' --offload' * config.offload}"
    return f"--deepspeed {config.deepspeed}" if config.deepspeed else said


def _yaml(value: dict[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(value, sort_keys=False)
    return text


def generated(config: TrainConfig) -> dict[str, str]:
    """Return the files of a training by name: none of one process alone.

    :raises ConfigError: if a file that the configuration names is none.
    """
    return Run.of(config).files()


def write_generated(config: TrainConfig, folder: Path) -> None:
    """Write the files into a run folder."""
    for name, text in generated(config).items():
        (folder / name).write_text(text, encoding="utf-8")


def overruled(config: TrainConfig) -> str:
    """Say what a launcher decides instead of the flags; empty: nothing."""
    said = list(Run.of(config).decided())
    return f"the launcher decides: {'; '.join(said)}" if said else ""


def shown(config: TrainConfig) -> str:
    """Return the files of a training for a person to read.

    :raises ConfigError: if a file that the configuration names is none.
    """
    files = generated(config)
    if not files:
        return "one process trains, which needs no configuration; --nproc 2 starts two"
    command = {ACCELERATE: f"accelerate launch --config_file {ACCELERATE} -m glmkit finetune ..."}
    return "\n".join(
        f"# {name}: {command.get(name, f'--deepspeed {name}')}\n{text}"
        for name, text in files.items()
    ).rstrip("\n")
