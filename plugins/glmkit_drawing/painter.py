"""A pipeline of diffusers as an image model: checked options, seeds, progress, records."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from glmkit import DrawOptions, Picture, Progress, UsageError

from .lora import read_lora
from .opening import About, memory_watched
from .records import Record, WornLora, png_of, versions
from .running import PictureError, steps_of
from .wearing import wear

if TYPE_CHECKING:
    from numpy import ndarray

_SEEDS = 2**63
_TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


@dataclass(frozen=True)
class _Plan:
    """A picture to draw, all settled but its seed."""

    prompt: str
    wish: str
    negative: str
    size: tuple[int, int]
    steps: int
    guidance: float | None


class Painter:
    """Draws with a pipeline of diffusers; threads may share it and wait for each other.

    :param pipeline: a text-to-image pipeline, loaded.
    :param name: what to load again, for records.
    :param about: what it was trained for.
    :param fingerprint: tells its weights from others.
    """

    def __init__(
        self,
        pipeline: Any,  # noqa: ANN401
        *,
        name: str,
        about: About | None = None,
        fingerprint: str = "",
    ) -> None:
        self.name = name
        self.about = about or About()
        self.fingerprint = fingerprint
        self.pipeline = pipeline
        self.loras: tuple[WornLora, ...] = ()
        self._lock = Lock()
        self._takes = inspect.signature(pipeline.__call__).parameters

    def wear(self, loras: Sequence[tuple[Path, float]]) -> None:
        """Draw with these LoRAs from now on, each with its weight, and with no other.

        :raises CheckpointError: if one cannot be read or does not fit; the key is named, and no
            LoRA is on afterwards.
        """
        read = [(read_lora(path), weight) for path, weight in loras]
        with self._lock:
            self.loras = ()
            wear(self.pipeline, read)
            self.loras = tuple(
                WornLora(str(path), weight, lora.sha256)
                for (path, weight), (lora, _) in zip(loras, read, strict=True)
            )

    @property
    def room(self) -> int | None:
        """Tokens of a prompt that the text encoder reads; None: nobody knows."""
        return self._reader()[1]

    def count(self, text: str) -> int:
        """Return the tokens of a prompt, those around it included."""
        return len(self._reader()[0](text, truncation=False, verbose=False).input_ids)

    def _reader(self) -> tuple[Any, int | None]:
        """Return the tokenizer whose encoder reads most of a prompt, and how much that is."""
        own = [getattr(self.pipeline, each, None) for each in _TOKENIZERS]
        tokenizers = [each for each in own if each is not None]
        said = self._takes.get("max_sequence_length")
        if not tokenizers:
            return None, None
        if said is not None and isinstance(said.default, int):
            return tokenizers[-1], said.default  # a T5 beside CLIP reads on where that ends
        config = getattr(getattr(self.pipeline, "text_encoder", None), "config", None)
        limits = (
            getattr(tokenizers[0], "model_max_length", None),
            getattr(config, "max_position_embeddings", None),
        )
        known = [each for each in limits if isinstance(each, int) and 0 < each < 1 << 20]
        return tokenizers[0], min(known, default=None)

    def draw(
        self, wish: str, options: DrawOptions | None = None, *, asked: str | None = None
    ) -> Generator[Progress, None, list[Picture]]:
        """Draw what ``wish`` says; picture i of several is the one that seed + i draws alone.

        :param asked: the words that ``wish`` was made from, for the record.
        :raises UsageError: if the pipeline cannot draw so, or the wish is too long.
        :raises PictureError: if a picture comes out black or not at all.
        """
        options = options or DrawOptions()
        plan = self._plan(wish, options, asked)
        first = secrets.randbelow(2**32) if options.seed is None else options.seed
        if first + options.count > _SEEDS:
            raise UsageError(f"seed {first} leaves no room for {options.count} pictures")
        pictures = []
        for number in range(options.count):
            with self._lock:
                pixels = yield from self._paint(plan, first + number, number, options.count)
                record = self._record(plan, first + number)
            pictures.append(Picture(png_of(pixels, record), plan.prompt, first + number))
        return pictures

    def _plan(self, wish: str, options: DrawOptions, asked: str | None) -> _Plan:
        self._check_length(wish, "the wish")
        self._check_length(options.negative, "the negative wish")
        guidance = self._setting(options.guidance, self.about.guidance, "guidance_scale")
        self._refuse("guidance", options.guidance, "guidance_scale")
        self._refuse("negative", options.negative or None, "negative_prompt")
        self._refuse("steps", options.steps, "num_inference_steps")
        self._refuse("size", options.size, "width")
        if options.negative and guidance is not None and guidance <= 1:
            raise UsageError(
                f"a negative wish works through guidance, which is off at {guidance}; give a "
                "guidance above 1"
            )
        steps = self._setting(options.steps, self.about.steps, "num_inference_steps")
        size = self._size(options.size)
        return _Plan(wish, asked or wish, options.negative, size, int(steps or 1), guidance)

    def _setting(self, given: Any, own: Any, parameter: str) -> Any:  # noqa: ANN401
        """Return what was given, or suits the model, or its pipeline takes by default."""
        if parameter not in self._takes:
            return None
        default = self._takes[parameter].default
        return next((each for each in (given, own) if each is not None), default)

    def _refuse(self, name: str, given: object, parameter: str) -> None:
        if given is not None and parameter not in self._takes:
            kind = type(self.pipeline).__name__
            raise UsageError(f"{kind} knows no {name}; draw without it")

    def _check_length(self, text: str, what: str) -> None:
        if self.room is not None and self.count(text) > self.room:
            raise UsageError(
                f"{what} has {self.count(text)} tokens and the text encoder of {self.name!r} reads "
                f"{self.room}; shorten it"
            )

    def _size(self, given: tuple[int, int] | None) -> tuple[int, int]:
        factor = getattr(self.pipeline, "vae_scale_factor", 8)
        if given is None:
            net = getattr(self.pipeline, "unet", None) or getattr(
                self.pipeline, "transformer", None
            )
            side = getattr(getattr(net, "config", None), "sample_size", None)
            side = getattr(self.pipeline, "default_sample_size", side) or 64
            height, width = (side, side) if isinstance(side, int) else side
            return (width * factor, height * factor)
        if any(each % factor for each in given):
            raise UsageError(
                f"size must be multiples of {factor} for {self.name!r}, got {given[0]}x{given[1]}"
            )
        return given

    def _paint(
        self, plan: _Plan, seed: int, number: int, count: int
    ) -> Generator[Progress, None, ndarray]:
        """Draw one picture; return its pixels, (H, W, 3), 0 to 1."""
        note = f"picture {number + 1} of {count}" if count > 1 else ""
        before, total = number * plan.steps, count * plan.steps
        yield Progress("drawing", before, total, note=note)
        running = steps_of(self.pipeline, self._arguments(plan, seed))
        sides = "x".join(map(str, plan.size))
        try:
            while True:
                with memory_watched(f"drawing {sides}", "a smaller --size, or --device cpu"):
                    step = min(next(running), plan.steps)
                yield Progress("drawing", before + step, total, note=note)
        except StopIteration as stop:
            return _checked(stop.value)
        except ValueError as error:  # what each pipeline asks of its arguments, it checks itself
            kind = type(self.pipeline).__name__
            raise UsageError(f"{kind} cannot draw so: {' '.join(str(error).split())}") from error
        finally:
            running.close()

    def _arguments(self, plan: _Plan, seed: int) -> dict[str, Any]:
        """Return what the pipeline is called with, as far as it takes it."""
        import torch

        arguments: dict[str, Any] = {
            "prompt": plan.prompt,
            "width": plan.size[0],
            "height": plan.size[1],
            "num_inference_steps": plan.steps,
            "guidance_scale": plan.guidance,
            # On the CPU everywhere: the same seed begins with the same noise on every device.
            "generator": torch.Generator("cpu").manual_seed(seed),
            "output_type": "np",
            "clean_caption": False,  # else what is drawn depends on which packages are there
        }
        if plan.negative:  # without one, pipelines begin differently: with None, or with ""
            arguments["negative_prompt"] = plan.negative
        return {name: each for name, each in arguments.items() if name in self._takes}

    def _record(self, plan: _Plan, seed: int) -> Record:
        scheduler = type(self.pipeline.scheduler).__name__
        return Record(
            wish=plan.wish,
            prompt=plan.prompt,
            negative=plan.negative,
            model=self.name,
            fingerprint=self.fingerprint,
            pipeline=type(self.pipeline).__name__,
            size=plan.size,
            steps=plan.steps,
            guidance=plan.guidance,
            seed=seed,
            scheduler=scheduler,
            loras=self.loras,
            dtype=str(self.pipeline.dtype).removeprefix("torch."),
            device=self.pipeline.device.type,
            versions=versions(),
        )


def _checked(output: Any) -> ndarray:  # noqa: ANN401
    """Return the pixels of a pipeline's output.

    :raises PictureError: if they are not finite, all black, or a safety checker kept them back.
    """
    import numpy as np

    pixels: ndarray = output.images[0]
    if any(getattr(output, "nsfw_content_detected", None) or ()):
        raise PictureError(
            "the model's safety checker kept the picture back; wish for another, or another --seed"
        )
    if not np.isfinite(pixels).all():
        raise PictureError(
            "the picture holds numbers that are not finite: its decoder overflowed; draw on the "
            "CPU (--device cpu), where it computes in float32"
        )
    if not pixels.any():
        raise PictureError(
            "the picture is all black: its decoder overflowed, or the model refused; draw on the "
            "CPU (--device cpu), or with another --seed"
        )
    return pixels
