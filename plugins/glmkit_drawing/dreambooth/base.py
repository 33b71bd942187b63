"""The picture model that is taught: found, loaded, and drawn with.

Letters: N pictures, T tokens, D size of their embeddings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glmkit import CheckpointError, UsageError

from ..opening import INDEX, open_pipeline

if TYPE_CHECKING:
    from PIL import Image

    from glmkit import Glmkit

KIND = "StableDiffusionPipeline"


def located(name: str, app: Glmkit) -> Path:
    """Return the folder of a picture model.

    :param name: ``default``, a folder or a hub id.
    :raises UnknownNameError: if nobody knows the name.
    """
    if name == "default":
        from ..picture_model import folder

        return folder()
    return app.locate_image_model(name).path


def check(folder: Path) -> None:
    """See that a folder holds a model that can be taught.

    :raises CheckpointError: if it holds none, or one of another kind.
    """
    file = folder / INDEX
    try:
        kind = json.loads(file.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is no picture model in diffusers' format: {INDEX} is missing or "
            "damaged; name one with --model"
        ) from error
    if kind != KIND:
        raise CheckpointError(
            f"{folder} is a {kind}; DreamBooth teaches {KIND} (Stable Diffusion 1 and 2, and the "
            "embedded picture model)"
        )


def loaded(folder: Path) -> Any:  # noqa: ANN401
    """Return the pipeline of a picture model in single precision, on the processor.

    :raises CheckpointError: if its files are damaged, or it is none that can be taught.
    """
    check(folder)
    pipeline = open_pipeline(folder, "cpu")
    if "beta_schedule" not in pipeline.scheduler.config:
        name = type(pipeline.scheduler).__name__
        raise CheckpointError(
            f"{folder} has the scheduler {name}, which adds noise in a way of "
            "its own; DreamBooth here knows those of Stable Diffusion"
        )
    if pipeline.safety_checker is not None:  # what it keeps back is black, and would be learnt
        pipeline.register_modules(safety_checker=None)
    return pipeline


def side_of(pipeline: Any, wanted: int = 0) -> int:  # noqa: ANN401
    """Return the width and height of pictures.

    :param wanted: 0: the model's own.
    :raises UsageError: if the net cannot halve it as often as it has to.
    """
    config = pipeline.unet.config
    size = config.sample_size if isinstance(config.sample_size, int) else max(config.sample_size)
    side: int = wanted or size * pipeline.vae_scale_factor
    part = pipeline.vae_scale_factor * 2 ** (len(config.block_out_channels) - 1)
    if side % part:
        raise UsageError(
            f"resolution must be a multiple of {part} for this model, got {side}; "
            f"--resolution {max(part, round(side / part) * part)} is the nearest"
        )
    return side


def ids_of(pipeline: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:  # noqa: ANN401
    """Return tokens of prompts (N, T), and their mask where the text encoder takes one.

    :raises UsageError: if one is empty, or longer than the text encoder reads.
    """
    tokenizer = pipeline.tokenizer
    most = tokenizer.model_max_length
    for prompt in prompts:
        count = len(tokenizer(prompt).input_ids)
        if not prompt.strip():
            raise UsageError("a prompt is empty; say what the photographs show with --prompt")
        if count > most:
            raise UsageError(
                f"the prompt {prompt!r} has {count} tokens, and the text encoder reads {most}; "
                "make it shorter"
            )
    found = tokenizer(
        list(prompts), padding="max_length", max_length=most, truncation=True, return_tensors="pt"
    )
    masked = getattr(pipeline.text_encoder.config, "use_attention_mask", False)
    return found.input_ids, found.attention_mask if masked else None


def rare_words(pipeline: Any, prompt: str, class_prompt: str | None) -> list[str]:  # noqa: ANN401
    """Return the words of a prompt that the model has hardly met.

    A word of several tokens was too rare for one. Large vocabularies have tokens for rare words,
    too; they are numbered as they were learnt, the frequent ones first. What the class is called is
    not rare.
    """
    tokenizer = pipeline.tokenizer
    common = set((class_prompt or "").lower().split())
    ends = set(tokenizer.all_special_ids)
    found = []
    for word in prompt.split():
        ids = [each for each in tokenizer(word).input_ids if each not in ends]
        rare = len(ids) != 1 or ids[0] > max(_LARGE, len(tokenizer)) // 2
        if rare and word.lower() not in common:
            found.append(word)
    return found


_LARGE = 20_000
"""Tokens; a vocabulary of fewer has single tokens for frequent words only."""


def draw(
    pipeline: Any,  # noqa: ANN401
    prompt: str,
    seeds: Sequence[int],
    *,
    side: int,
    steps: int,
    guidance: float,
    computing: torch.dtype | None = None,
) -> list[Image.Image]:
    """Draw a picture for each seed; a picture does not depend on those beside it.

    :param computing: what products are taken in.
    """
    device = pipeline.unet.device
    generators = [torch.Generator().manual_seed(each) for each in seeds]
    rounded = nullcontext() if computing is None else torch.autocast(device.type, dtype=computing)
    with torch.no_grad(), rounded:
        drawn = pipeline(
            prompt,
            num_images_per_prompt=len(seeds),
            generator=generators,
            height=side,
            width=side,
            num_inference_steps=steps,
            guidance_scale=guidance,
        )
    images: list[Image.Image] = drawn.images
    return images
