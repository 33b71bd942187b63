"""A tiny picture model with random weights, in diffusers' format: 16x16 pictures, 200 kilobytes.

Equal seeds give equal weights. Call :func:`tiny_picture_model` for its folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

WORDS = ("a", "photo", "of", "dog", "cat", "red", "apple", "green", "in", "the", "rain")
"""Words that are one token each; all else is a token a letter."""
TOKENS = 32
"""That a prompt may have, with the two around it."""
SIDE = 16
"""Pixels."""


def tiny_picture_model(
    folder: Path, *, seed: int = 0, prediction: str = "epsilon", alike: bool = True
) -> Path:
    """Write a StableDiffusionPipeline of random weights into a folder; return the folder.

    :param prediction: what the net foretells: ``epsilon``, ``v_prediction`` or ``sample``.
    :param alike: every block of the net has attention; False: only the last.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=tiny_vae(),
            text_encoder=tiny_text_encoder(),
            tokenizer=tiny_clip_tokenizer(),
            unet=_unet(alike),
            scheduler=_scheduler(prediction),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def tiny_clip_tokenizer(words: Iterable[str] = WORDS):
    """Return a CLIP tokenizer of single bytes and a few words."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(f"{each}</w>" for each in letters)]
    merges: list[tuple[str, str]] = []
    for word in words:
        whole = word[0] if len(word) > 1 else f"{word}</w>"
        for at, letter in enumerate(word[1:], 2):
            piece = letter if at < len(word) else f"{letter}</w>"
            if (whole, piece) not in merges:
                merges.append((whole, piece))
                names.append(whole + piece)
            whole += piece
    names += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: at for at, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def tiny_vae(**more):
    """Return an autoencoder that halves the sides."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=SIDE,
        **more,
    )


def tiny_text_encoder():
    """Return CLIP's text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel

    size = len(tiny_clip_tokenizer())
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=size - 1,
        )
    ).eval()


def _unet(alike: bool):
    from diffusers import UNet2DConditionModel

    first = (
        ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if alike else ("DownBlock2D", "UpBlock2D")
    )
    return UNet2DConditionModel(
        sample_size=SIDE // 2,
        block_out_channels=(8, 16),
        down_block_types=(first[0], "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", first[1]),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=4,
    ).eval()


def _scheduler(prediction: str):
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )
