"""Tiny pipelines with random weights, one of each family of picture models, in diffusers' format.

``FAMILIES`` names the functions that write one into a folder.
"""

from __future__ import annotations

from pathlib import Path

from tiny_pictures import SIDE, TOKENS, tiny_clip_tokenizer, tiny_text_encoder, tiny_vae

WIDTH = 32
"""Of every text encoder but CLIP."""


def sdxl(folder: Path) -> None:
    """Write SDXL: two text encoders, blocks as many and as deep as kohya's names count them."""
    from diffusers import StableDiffusionXLPipeline

    StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        text_encoder_2=_clip_with_projection(),
        tokenizer=tiny_clip_tokenizer(),
        tokenizer_2=tiny_clip_tokenizer(),
        unet=_unet_of_sdxl(projected=6 * 8 + 16, cross_attention_dim=WIDTH),
        scheduler=_euler(),
    ).save_pretrained(folder)


def kolors(folder: Path) -> None:
    """Write Kolors: a net like SDXL's below ChatGLM3."""
    import torch
    from diffusers import KolorsPipeline
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=400,
        hidden_size=WIDTH,
        ffn_hidden_size=2 * WIDTH,
        kv_channels=8,
        num_attention_heads=4,
        multi_query_attention=True,
        multi_query_group_num=2,
        add_qkv_bias=True,
        original_rope=True,
    )
    encoder = ChatGLMModel(config).eval()
    for each in encoder.parameters():  # which it leaves as memory had them
        torch.nn.init.normal_(each, std=0.1)
    unet = _unet_of_sdxl(
        projected=6 * 8 + WIDTH,
        cross_attention_dim=16,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="text_proj",
    )
    KolorsPipeline(
        vae=tiny_vae(),
        text_encoder=encoder,
        tokenizer=ChatGLMTokenizer(str(_pieces(folder.with_suffix(".model")))),
        unet=unet,
        scheduler=_euler(),
    ).save_pretrained(folder)


def stable_diffusion_3(folder: Path) -> None:
    """Write Stable Diffusion 3: a transformer, two CLIPs and a T5."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    net = SD3Transformer2DModel(
        sample_size=SIDE // 2,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=2 * 16,
    )
    StableDiffusion3Pipeline(
        transformer=net,
        scheduler=_flow(),
        vae=tiny_vae(shift_factor=0.06),
        text_encoder=_clip_with_projection(),
        text_encoder_2=_clip_with_projection(),
        text_encoder_3=_t5(),
        tokenizer=tiny_clip_tokenizer(),
        tokenizer_2=tiny_clip_tokenizer(),
        tokenizer_3=_t5_tokenizer(),
    ).save_pretrained(folder)


def flux(folder: Path) -> None:
    """Write Flux: a transformer that is told its guidance, a CLIP and a T5."""
    from diffusers import FluxPipeline, FluxTransformer2DModel

    net = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    FluxPipeline(
        transformer=net,
        scheduler=_flow(),
        vae=tiny_vae(shift_factor=0.06),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(),
    ).save_pretrained(folder)


def pixart(folder: Path) -> None:
    """Write PixArt Sigma: a transformer and a T5."""
    from diffusers import (
        DPMSolverMultistepScheduler,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )

    net = PixArtTransformer2DModel(
        sample_size=32,  # the least that its pipeline knows
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=3,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        in_channels=4,
        out_channels=8,
    )
    PixArtSigmaPipeline(
        tokenizer=_t5_tokenizer(),
        text_encoder=_t5(),
        vae=tiny_vae(),
        transformer=net,
        scheduler=DPMSolverMultistepScheduler(),
    ).save_pretrained(folder)


def cogview3(folder: Path) -> None:
    """Write CogView3-Plus: a transformer and a T5."""
    from diffusers import (
        CogVideoXDDIMScheduler,
        CogView3PlusPipeline,
        CogView3PlusTransformer2DModel,
    )

    net = CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=2,
        pos_embed_max_size=8,
        sample_size=SIDE // 2,
    )
    CogView3PlusPipeline(
        tokenizer=_t5_tokenizer(),
        text_encoder=_t5(),
        vae=tiny_vae(),
        transformer=net,
        scheduler=CogVideoXDDIMScheduler(),
    ).save_pretrained(folder)


def cogview4(folder: Path) -> None:
    """Write CogView4: a transformer below GLM-4."""
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel
    from transformers import GlmConfig, GlmModel

    net = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=4,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=SIDE // 2,
        rope_axes_dim=(64, 64),
    )
    config = GlmConfig(
        vocab_size=300,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=256,
    )
    CogView4Pipeline(
        tokenizer=_glm_tokenizer(),
        text_encoder=GlmModel(config).eval(),
        vae=tiny_vae(),
        transformer=net,
        scheduler=_flow(use_dynamic_shifting=True, time_shift_type="linear"),
    ).save_pretrained(folder)


FAMILIES = {
    each.__name__: each
    for each in (sdxl, kolors, stable_diffusion_3, flux, pixart, cogview3, cogview4)
}


def _unet_of_sdxl(*, projected: int, **more):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIDE // 2,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=(1, 2, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=projected,
        norm_num_groups=4,
        **more,
    ).eval()


def _euler():
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )


def _flow(**more):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**more)


def _clip_with_projection():
    from transformers import CLIPTextModelWithProjection

    config = tiny_text_encoder().config
    config.projection_dim = 16
    return CLIPTextModelWithProjection(config).eval()


def _t5():
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2)
    ).eval()


def _t5_tokenizer():
    """Return T5's tokenizer of single letters."""
    from transformers import T5Tokenizer

    letters = [(each, -3.0) for each in "abcdefghijklmnopqrstuvwxyz"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\N{LOWER ONE EIGHTH BLOCK}", -2)]
    return T5Tokenizer(vocab=[*vocabulary, *letters], extra_ids=0, model_max_length=TOKENS)


def _glm_tokenizer():
    """Return a tokenizer of single bytes that begins each text as GLM-4's does."""
    from tokenizers import Tokenizer, models
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    names = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "[gMASK]", "<sop>"]
    vocabulary = {name: at for at, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    first = [(each, vocabulary[each]) for each in ("[gMASK]", "<sop>")]
    tokenizer.post_processor = TemplateProcessing("[gMASK] <sop> $A", special_tokens=first)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", padding_side="left"
    )


def _pieces(file: Path) -> Path:
    """Train a vocabulary of sentencepiece on a few lines."""
    import io

    from sentencepiece import SentencePieceTrainer

    made = io.BytesIO()
    SentencePieceTrainer.Train(
        sentence_iterator=iter(["a red apple 红苹果 in the rain"] * 20),
        model_writer=made,
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    file.write_bytes(made.getvalue())
    return file
