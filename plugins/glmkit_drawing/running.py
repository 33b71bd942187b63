"""A pipeline's call as a generator of its steps."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from inspect import signature
from queue import SimpleQueue
from threading import Event
from typing import Any

from glmkit import GlmkitError


class PictureError(GlmkitError):
    """A picture came out as no picture."""


class _LeftError(Exception):
    """Whoever wanted the picture has left."""


def steps_of(
    pipeline: Any,  # noqa: ANN401
    arguments: Mapping[str, Any],
) -> Generator[int, None, Any]:
    """Call a pipeline, yield the number of each step when it is done, return its output.

    Closing the generator stops the pipeline after the step that it is at. A pipeline reports
    through a callback only, so it runs in a thread that lives as long as the generator.

    :raises PictureError: if the numbers of a step are not finite.
    """
    left, said = Event(), SimpleQueue[int | None]()
    reports = "callback_on_step_end" in signature(pipeline.__call__).parameters

    def after(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
        if left.is_set():
            raise _LeftError
        _check_finite(tensors.get("latents"), step)
        said.put(step + 1)
        return tensors

    def finished(future: Future[Any]) -> None:
        said.put(None)

    with ThreadPoolExecutor(1, "drawing") as pool:
        try:
            more = {"callback_on_step_end": after} if reports else {}
            running = pool.submit(pipeline, **arguments, **more)
            running.add_done_callback(finished)
            while (step := said.get()) is not None:
                yield step
        finally:
            left.set()
        return running.result()


def _check_finite(latents: Any, step: int) -> None:  # noqa: ANN401
    if latents is not None and not bool(latents.isfinite().all()):
        raise PictureError(
            f"the picture model computed numbers that are not finite in step {step + 1}; its "
            "weights or a LoRA are damaged or too strong: draw without --lora, with a lower "
            "--guidance, or on the CPU"
        )
