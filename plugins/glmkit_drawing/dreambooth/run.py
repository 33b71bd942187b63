"""A whole run of DreamBooth: photographs, pictures of the class, latents, steps, the LoRA."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from glmkit import OutOfMemoryError, StepLog, UsageError
from glmkit.training.below import DTYPES, devices_of, ran_out
from glmkit.training.checkpoint import Checkpoints
from glmkit.training.course import begin, follow, trained_share
from glmkit.training.crew import Alone
from glmkit.training.folder import claimed, clear, described, read, refuse_other, write
from glmkit.training.keeping import freed_memory_kept
from glmkit.training.loop import Work, total_steps
from glmkit.training.optimizers import check_optimizer, optimizer_of, schedule_of
from glmkit.training.preflight import out_of_memory
from glmkit.training.processes import Launched
from glmkit.training.recording import check_trackers

from ..opening import read_about
from .base import ids_of, loaded, rare_words, side_of
from .card import write_card
from .classes import class_pictures
from .config import FREE, DreamboothConfig, suited
from .evaluating import Watching
from .feed import Feed
from .latents import encoded
from .learner import Nets, PictureLearner
from .lora import LoraFile, dress
from .memory import check
from .photographs import files_of, fingerprint

RECIPE = "dreambooth"


def train(config: DreamboothConfig) -> Iterator[StepLog]:
    """Teach the picture model in the folder ``config.model``; the run folder is ``config.output``.

    :raises UsageError: if the configuration makes no sense, or the run folder is taken.
    :raises DataError: if there are no photographs, or one cannot be read.
    :raises OutOfMemoryError: if it does not fit; names what helps.
    :raises CheckpointError: if the model, or what it should go on from, is damaged.
    """
    try:
        yield from _Run(config).steps()
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise _too_large(config) from error


@dataclass
class _Run:
    """One run."""

    config: DreamboothConfig

    def __post_init__(self) -> None:
        self.base = Path(self.config.model)
        self.folder = Path(self.config.output).expanduser()
        devices = devices_of(self.config.device)
        if Launched.here().world > 1 or (self.config.device and len(devices) > 1):
            raise UsageError(
                "dreambooth trains in one process on one device; start it by itself, with "
                f"--device {devices[0]}"
            )
        self.device = devices[0]
        self.dtype = _dtype(self.config.dtype, self.device)
        self.computing = None if self.dtype == torch.float32 else self.dtype

    def steps(self) -> Iterator[StepLog]:
        """Do all of it."""
        config = self.config
        with ExitStack() as held:
            if self.device.type == "cpu":
                held.enter_context(freed_memory_kept())
            check_optimizer(config)
            check_trackers(config.report_to)
            if not config.prompt.strip():
                raise UsageError("say what the photographs show: --prompt 'a photo of sks dog'")
            photographs = files_of(self._data())
            held.enter_context(claimed(config))
            yield StepLog(0, 0, note=f"loading {self.base.name}")
            pipeline = loaded(self.base)
            self.config = config = suited(config, read_about(self.base))
            side = side_of(pipeline, config.resolution)
            yield from self._notes(pipeline, len(photographs), side)
            things, classes, run = yield from self._pictures(pipeline, photographs, side)
            work = self._work(pipeline, things, classes, side)
            yield StepLog(0, work.total, note=trained_share(work))
            if config.memory_check:
                yield StepLog(0, work.total, note=self._memory(work, things[0]))
            begin(work)
            if not config.resume:  # only now: nothing more can be refused
                clear(self.folder)
                write(self.folder, run)
                yield from self._first(work)
            yield from follow(
                work,
                self.base,
                drawn=("loss", "eval_loss"),
                unit="squared error",
                card=self._card,
            )

    def _data(self) -> Sequence[str]:
        if not self.config.data:
            raise UsageError("nothing to learn: name a folder of photographs with --data")
        return self.config.data

    def _notes(self, pipeline: Any, count: int, side: int) -> Iterator[StepLog]:  # noqa: ANN401
        """Say what is learnt, and what the user may have meant otherwise."""
        config = self.config
        yield StepLog(0, 0, note=f"{count} photographs, learnt in {side}x{side}: {config.prompt!r}")
        if not rare_words(pipeline, config.prompt, config.class_prompt):
            yield StepLog(
                0,
                0,
                note=f"the prompt {config.prompt!r} has no rare word: all that it names may come "
                "to look like the photographs; 'a photo of sks dog' keeps other dogs apart",
            )
        if config.class_prompt and not config.prior_preservation:
            yield StepLog(0, 0, note="class_prompt is not used without --prior-preservation")

    def _pictures(
        self,
        pipeline: Any,  # noqa: ANN401
        photographs: Sequence[Path],
        side: int,
    ) -> Generator[StepLog, None, tuple[list[Tensor], list[Tensor], dict[str, Any]]]:
        """Return latent photographs and pictures of the class, and what the run is."""
        config = self.config
        pipeline.to(self.device)
        of_class: list[Path] = []
        if config.prior_preservation:
            of_class = yield from class_pictures(pipeline, config, side, self.computing)
        run = self._described(photographs, of_class)
        yield StepLog(0, 0, note=f"encoding {len(photographs) + len(of_class):,} pictures")
        things = encoded(pipeline.vae, photographs, side, crops=config.crops, flip=config.flip)
        classes = encoded(pipeline.vae, of_class, side)
        return things, classes, run

    def _described(self, photographs: Sequence[Path], of_class: Sequence[Path]) -> dict[str, Any]:
        """Return what the run is, and see that it is the one that it should go on with."""
        data = {
            "fingerprint": fingerprint([*photographs, *of_class]),
            "samples": len(photographs),
            "class_pictures": len(of_class),
        }
        run = described(self.config, recipe=RECIPE, data=data, world=1)
        run["dtype"] = str(self.dtype).removeprefix("torch.")
        if self.config.resume:
            refuse_other(read(self.folder), run, free=FREE)
        return run

    def _work(
        self,
        pipeline: Any,  # noqa: ANN401
        things: Sequence[Tensor],
        classes: Sequence[Tensor],
        side: int,
    ) -> Work:
        """Bring everything together."""
        from diffusers import DDPMScheduler

        config = self.config
        noise = DDPMScheduler.from_config(pipeline.scheduler.config)
        nets, learner = self._learner(pipeline, noise)
        about = dress(nets, config)
        if config.gradient_checkpointing:
            _work_again(nets)
        feed = self._feed(things, classes, noise.config.num_train_timesteps)
        learnt = [each for each in learner.parameters() if each.requires_grad]
        optimizer = optimizer_of(config, [{"params": learnt}])
        total = total_steps(config, feed.steps())
        file = LoraFile(about, nested=hasattr(pipeline.text_encoder, "text_model"))
        work = Work(
            config,
            learner,
            feed,
            Alone(self.device),
            optimizer,
            schedule_of(config, optimizer, total),
            total,
            Checkpoints(self.folder, file, config.save_total_limit),
        )
        watching = Watching(work, pipeline, feed, side, self.computing)
        work.evaluate = watching.look
        return work

    def _memory(self, work: Work, picture: Tensor) -> str:
        """Say what a step takes; refuse what does not fit."""
        pictures = self.config.batch_size * (1 + self.config.prior_preservation)
        learner = cast("PictureLearner", work.learner)
        channels, height, width = picture.shape[-3:]
        return check(learner, (pictures, channels, height, width), self.config)

    def _feed(self, things: Sequence[Tensor], classes: Sequence[Tensor], times: int) -> Feed:
        return Feed(
            things,
            classes,
            batch_size=self.config.batch_size,
            accumulation=self.config.gradient_accumulation,
            times=times,
            seed=self.config.seed,
        )

    def _learner(self, pipeline: Any, noise: Any) -> tuple[Nets, PictureLearner]:  # noqa: ANN401
        """Return what is trained, in its precision; and with it, what is learnt."""
        config = self.config
        torch.manual_seed(config.seed)  # new weights are drawn
        prompts = [config.prompt, config.class_prompt or ""][: 1 + config.prior_preservation]
        ids, mask = ids_of(pipeline, prompts)
        texts, mask = ids.to(self.device), None if mask is None else mask.to(self.device)
        encoder = pipeline.text_encoder
        if not config.train_text_encoder:
            with torch.no_grad():
                texts, mask = encoder(texts, attention_mask=mask)[0], None
        if self.computing is not None:
            for each in (pipeline.unet, encoder):
                each.to(self.dtype)
        nets = Nets(pipeline.unet, encoder if config.train_text_encoder else None)
        learner = PictureLearner(
            nets,
            texts if config.train_text_encoder else texts.to(self.dtype),
            mask,
            noise,
            prior_weight=config.prior_weight,
            min_snr=config.min_snr,
            computing=self.computing,
        )
        return nets, learner

    def _first(self, work: Work) -> Iterator[StepLog]:
        """Look at what the model draws before it is taught."""
        if work.evaluate is not None:
            found = dict(work.evaluate())
            work.state.log_history.append({"step": 0, "epoch": 0.0, **found})
            yield StepLog(0, work.total, metrics=found)

    def _card(self, figures: Mapping[str, float]) -> None:
        write_card(self.folder, self.base, run=read(self.folder), figures=figures)


def _dtype(said: str, device: torch.device) -> torch.dtype:
    """Return the precision of the frozen weights."""
    if said != "auto":
        return DTYPES[said]
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if half else torch.float32


def _work_again(nets: Nets) -> None:
    """Work the inside of blocks out again when gradients need it."""
    unet: Any = nets.unet
    unet.enable_gradient_checkpointing()
    if nets.text_encoder is not None:
        encoder: Any = nets.text_encoder
        encoder.gradient_checkpointing_enable()


def _too_large(config: DreamboothConfig) -> OutOfMemoryError:
    helps = ["leaving out --train-text-encoder"] if config.train_text_encoder else []
    return out_of_memory(config, [*helps, "a smaller --resolution"])
