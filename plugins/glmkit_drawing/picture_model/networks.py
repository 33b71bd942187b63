"""The networks of the embedded picture model: how large they are, and how they are built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel


@dataclass(frozen=True)
class Sizes:
    """How large the networks are; the defaults are the embedded model's."""

    picture: int = 64
    """Height and width of a picture, in pixels."""
    latent_channels: int = 8
    vae: tuple[int, ...] = (16, 32, 64, 128)
    """Channels per level; each level after the first halves height and width."""
    unet: tuple[int, ...] = (48, 96, 192)
    unet_head: int = 64
    unet_time: int = 512
    text: int = 256
    """Width of the text encoder."""
    text_layers: int = 2
    tokens: int = 32
    """Longest prompt, in tokens."""

    @property
    def latent(self) -> int:
        """Height and width of a latent picture."""
        return self.picture >> (len(self.vae) - 1)


def new_vae(sizes: Sizes) -> AutoencoderKL:
    """Return an untrained autoencoder of pictures."""
    from diffusers import AutoencoderKL

    levels = len(sizes.vae)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=sizes.vae,
        latent_channels=sizes.latent_channels,
        norm_num_groups=min(8, sizes.vae[0]),
        sample_size=sizes.picture,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def new_unet(sizes: Sizes) -> UNet2DConditionModel:
    """Return an untrained denoiser of latents.

    The levels are convolutions alone, attention is in the middle, where a picture is 2x2 and most
    weights are: there, every place differs from every other by its edges. The text comes in
    twice: through attention, and, pooled, beside the time of every block.
    """
    from diffusers import UNet2DConditionModel

    levels = len(sizes.unet)
    return UNet2DConditionModel(
        sample_size=sizes.latent,
        in_channels=sizes.latent_channels,
        out_channels=sizes.latent_channels,
        down_block_types=["DownBlock2D"] * levels,
        up_block_types=["UpBlock2D"] * levels,
        block_out_channels=sizes.unet,
        layers_per_block=1,
        norm_num_groups=min(32, sizes.unet[0] // 4),
        time_embedding_dim=sizes.unet_time,
        cross_attention_dim=sizes.text,
        attention_head_dim=[max(1, each // sizes.unet_head) for each in sizes.unet],
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=max(1, sizes.text // 64),
    )


def new_text_encoder(sizes: Sizes, vocabulary: int, end: int) -> CLIPTextModel:
    """Return an untrained text encoder; ``end`` is the id of the token that ends a prompt."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=sizes.text,
            intermediate_size=4 * sizes.text,
            projection_dim=sizes.text,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=max(1, sizes.text // 64),
            max_position_embeddings=sizes.tokens,
            bos_token_id=end - 1,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def new_scheduler() -> DDIMScheduler:
    """Return the noise schedule: no signal at its end, and the picture's velocity is predicted."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )
