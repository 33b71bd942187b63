"""Write the trained networks as a folder that diffusers loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..opening import WORDS
from .captions import known_words
from .networks import new_scheduler
from .stages import Studio, text_encoder_of, unet_of, vae_of

STEPS, GUIDANCE = 20, 2.0
"""What suits the model, for those who ask for nothing else."""


def export(studio: Studio, folder: Path) -> int:
    """Write the model in half precision into ``folder``; return the size of its files in bytes.

    Other files in the folder, such as the model card, stay.

    :raises UsageError: if a stage has not been trained.
    """
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=vae_of(studio),
        text_encoder=text_encoder_of(studio),
        tokenizer=studio.tokenizer,
        unet=unet_of(studio),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder)
    # Transformers opens the text encoder then as diffusers opens the rest: in single precision.
    _rewrite(folder / "text_encoder" / "config.json", dtype="float32")
    _rewrite(folder / "tokenizer" / "tokenizer.json")
    about = {
        "languages": ["en", "zh"],
        "plain": True,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "lora_targets": ["all"],  # it has attention in one place only
    }
    (folder / "glmkit.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
    words = "\n".join(known_words(studio.learned))
    (folder / WORDS).write_text(f"{words}\n", encoding="utf-8")
    return size_of(folder)


def _rewrite(file: Path, **changes: str) -> None:
    """Write a JSON file without line breaks, with some of its values changed."""
    said = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":"))
    file.write_text(f"{text}\n", encoding="utf-8")


def size_of(folder: Path) -> int:
    """Return the size of a folder's files, in bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
