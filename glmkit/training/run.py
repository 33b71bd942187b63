"""A whole training run: data, forecast, model, steps, and the folder that it leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..recipes import StepLog
from ..runtime.demand import Job
from ..runtime.devices import devices_of
from ..runtime.loading import DTYPES, load_local
from ..runtime.memory import ran_out, readable
from .card import write_card
from .checkpoint import Checkpoints
from .config import TrainConfig
from .course import begin, follow, trained_share
from .crew import Alone, Crew
from .evaluating import Evaluation, Generating
from .folder import RUN, claimed, clear, described, read, refuse_other, write
from .fusing import fuse
from .generated import overruled, write_generated
from .intake import Intake
from .keeping import freed_memory_kept
from .loop import Work, total_steps
from .optimizers import check_optimizer, optimizer_of, schedule_of
from .parallel import agreed, crew_of, home_of, refuse_carried
from .precision import Precision, quantisation, training_dtype
from .preflight import foresee, job_of, ran_out_in, refuse_too_large
from .processes import Launched, Replicas
from .recording import check_trackers
from .task import NextTokens, Task
from .tuning import Tuning

if TYPE_CHECKING:
    from ..runtime.engines.local import LocalModel


def train(
    config: TrainConfig, tuning: Tuning, *, recipe: str | None = None, task: Task | None = None
) -> Iterator[StepLog]:
    """Train the model in the folder ``config.model``; the run folder is ``config.output``.

    :param recipe: the name that it was registered by; None: as the class of ``config`` says.
    :param task: what is learnt; None: the next tokens of answers.
    :raises UsageError: if the configuration makes no sense, or the run folder is taken.
    :raises DataError: if there is nothing that could be learnt.
    :raises OutOfMemoryError: if it does not fit; names what helps.
    :raises CheckpointError: if the model, or what it should go on from, is damaged.
    """
    settings = {"kind": tuning.kind, "quantize": getattr(config, "quantize", None)}
    with crew_of(config) as crew:
        try:
            name = recipe or type(config).__name__.removesuffix("Config").lower()
            yield from _Run(config, tuning, crew, name, task or NextTokens()).steps()
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            raise ran_out_in(config, settings) from error


@dataclass
class _Run:
    """One process of a run."""

    config: TrainConfig
    tuning: Tuning
    crew: Crew
    recipe: str
    task: Task

    def __post_init__(self) -> None:
        self.leads = self.crew.rank == 0
        self.base = Path(self.config.model)
        self.folder = Path(self.config.output).expanduser()
        alone = self.crew.world == 1
        self.devices = devices_of(self.config.device) if alone else [self.crew.device]
        before, device = self._before(), self.devices[0]
        self.dtype = DTYPES.get(str(before.get("dtype"))) or agreed(
            training_dtype(self.config, self.tuning, device), self.crew
        )
        self.quantize: str | None = before.get(
            "quantize", quantisation(self.config, self.tuning, device, self.dtype)
        )
        self.precision = Precision.of(self.dtype, self.tuning, masters=self.crew.masters)
        self.answers = isinstance(self.crew, (Alone, Replicas))
        """Each process has the whole model, so that it can answer by itself."""
        self.checkpoints = Checkpoints(self.folder, self.tuning, self.config.save_total_limit)

    def _before(self) -> dict[str, Any]:
        """Return what is recorded of a resumed run: ``auto`` may choose otherwise today."""
        if not self.config.resume or not (self.folder / RUN).is_file():
            return {}
        return read(self.folder)

    def steps(self) -> Iterator[StepLog]:
        """Do all of it."""
        with ExitStack() as held:
            if self.devices[0].type == "cpu":
                held.enter_context(freed_memory_kept())
            check_optimizer(self.config)
            check_trackers(self.config.report_to)
            if self.leads:
                held.enter_context(claimed(self.config))
            self.crew.wait()
            with self.crew.first():
                intake = yield from self.task.taken_in(self.config, self.crew.world)
            if said := overruled(self.config):
                yield StepLog(0, 0, note=said)
            yield StepLog(0, 0, note=intake.described)
            run = self._described(intake)
            job = self._job(intake)
            if self.config.memory_check:
                yield StepLog(0, 0, note=self._foresee(job))
            yield StepLog(0, 0, note=f"loading {self.base.name}")
            local = self._loaded(job)
            work = self._work(intake, local)
            yield StepLog(0, work.total, note=trained_share(work, local.config.parameters))
            if self.config.eval_generate and not self.answers:
                yield StepLog(0, work.total, note=_NO_ANSWERS)
            begin(work)
            if self.leads and not self.config.resume:  # only now: nothing more can be refused
                clear(self.folder)
                write(self.folder, run)
                write_generated(self.config, self.folder)
            self.crew.wait()
            drawn, unit = self.task.drawn, self.task.unit
            yield from follow(work, self.base, drawn=drawn, unit=unit, card=self._card)

    def _described(self, intake: Intake) -> dict[str, Any]:
        """Return what the run is, and see that it is the one that it should go on with."""
        run = described(
            self.config,
            recipe=self.recipe,
            data={"fingerprint": intake.fingerprint, "samples": intake.samples},
            world=self.crew.world,
        )
        run["dtype"] = str(self.dtype).removeprefix("torch.")
        run["quantize"] = self.quantize
        if self.config.resume and self.leads:
            refuse_other(read(self.folder), run)
        return run

    def _job(self, intake: Intake) -> Job:
        """Return what the run is to a forecast."""
        return job_of(
            self.config,
            self.tuning,
            tokens=intake.longest,
            # What learns lies in single precision, and so do its gradients.
            dtype=self.dtype if self.precision.computing is None else torch.float32,
            quantize=self.quantize,
            device=self.devices[0],
            parting=self.crew.parting,
        )

    def _foresee(self, job: Job) -> str:
        """Refuse what does not fit; else say what it takes."""
        beside = Launched.here().local_world
        found = foresee(self.base, job, self.devices, self.config, beside=beside)
        refuse_too_large(found)
        uses = found.placement.uses
        return "memory: " + ", ".join(
            f"{readable(each.parts.total)} of {readable(each.device.size)} on {each.device.name}"
            for each in uses
        )

    def _loaded(self, job: Job) -> LocalModel:
        """Load the model and dress it."""
        local = load_local(
            self.base,
            device=home_of(self.config, self.crew, quantize=self.quantize),
            max_memory=self.config.max_memory,
            dtype=str(self.precision.weights).removeprefix("torch."),
            quantize=self.quantize,
            family=self.config.family,
            job=job,
        )
        refuse_carried(local.model)
        torch.manual_seed(self.config.seed)  # new weights are drawn
        self.tuning.dress(local.model)
        self.precision.keep(local.model)
        if self.precision.computing is None:  # else autocast rounds, which our own steps don't ask
            fuse(local.model)
        if self.config.gradient_checkpointing:
            local.model.stack.gradient_checkpointing = True
        return local

    def _work(self, intake: Intake, local: LocalModel) -> Work:
        """Bring everything together."""
        config, model = self.config, local.model
        optimizer = optimizer_of(config, self.tuning.groups(model, config))
        total = total_steps(config, intake.feed.steps())
        plain = self.task.learner(config, local, self.precision.computing)
        learner, prepared = self.crew.prepare(plain, optimizer)
        evaluate = None
        if intake.held is not None:
            more = self._answering(intake, local)
            evaluate = Evaluation(
                learner, intake.held, self.crew, more=more, perplexity=self.task.per_token
            )
        return Work(
            config,
            learner,
            intake.feed,
            self.crew,
            prepared,
            schedule_of(config, prepared, total),
            total,
            self.checkpoints,
            evaluate,
        )

    def _answering(self, intake: Intake, local: LocalModel) -> Generating | None:
        """Return what answers some of the evaluation's samples, where that is asked for."""
        if not self.config.eval_generate or not self.answers:
            return None
        from ..evaluation.scores import Scorer

        return Generating(
            local,
            intake.asked(self.config.eval_generate),
            Scorer(),
            max_new_tokens=self.config.eval_max_tokens,
            computing=self.precision.computing,
        )

    def _card(self, figures: Mapping[str, float]) -> None:
        """Write the model card."""
        whole = self.tuning.kind == "full"
        uses = getattr(self.task, "uses", ())  # where it is no model to chat with
        run = read(self.folder)
        write_card(self.folder, self.base, run=run, figures=figures, whole=whole, uses=uses)


_NO_ANSWERS = (
    "a model that is spread over processes cannot answer while it trains: eval_generate is left "
    "out; run glmkit evaluate afterwards"
)
