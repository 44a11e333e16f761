"""The FLUX checkpoint layout at toy size: every folder that `diffusers.FluxPipeline` loads.

    python -m model.layout FOLDER --seed 0

writes a complete checkpoint with random weights. The same shapes, trained, are the built-in model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from model.tokenizers import clip_tokenizer, t5_tokenizer

HEADS = 4
HEAD_DIM = 40
DOUBLE_BLOCKS = 2
SINGLE_BLOCKS = 4
TEXT_LENGTH = 24
CLIP_LENGTH = 77
TEXT_WIDTH = 96
LATENT_CHANNELS = 4
VAE_CHANNELS = (16, 24, 48, 64)


def rope_axes(head_dim: int) -> tuple[int, int, int]:
    """Split a head's dims into FLUX's three RoPE axes: unused time, row, column; each even."""
    if head_dim < 8 or head_dim % 4:
        raise ValueError(f"head_dim must be a multiple of 4 and at least 8, got {head_dim}")
    spatial = head_dim * 2 // 5 // 2 * 2
    return head_dim - 2 * spatial, spatial, spatial


def build_transformer(
    *,
    heads: int = HEADS,
    head_dim: int = HEAD_DIM,
    double_blocks: int = DOUBLE_BLOCKS,
    single_blocks: int = SINGLE_BLOCKS,
    latent_channels: int = LATENT_CHANNELS,
    text_width: int = TEXT_WIDTH,
    guidance_embeds: bool = False,
) -> FluxTransformer2DModel:
    """A small FLUX transformer on 2x2-packed latents: tokens of `4 * latent_channels` values."""
    return FluxTransformer2DModel(
        in_channels=4 * latent_channels,
        num_layers=double_blocks,
        num_single_layers=single_blocks,
        attention_head_dim=head_dim,
        num_attention_heads=heads,
        joint_attention_dim=text_width,
        pooled_projection_dim=text_width,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=rope_axes(head_dim),
    )


def build_vae(
    *, channels: tuple[int, ...] = VAE_CHANNELS, latent_channels: int = LATENT_CHANNELS
) -> AutoencoderKL:
    """A convolutional autoencoder, 8x down with four levels.

    No attention in its middle: it would cost more at 1024x1024 than all the convolutions together.
    """
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=min(8, channels[0]),
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def build_clip(tokenizer: PreTrainedTokenizerBase, *, width: int = TEXT_WIDTH) -> CLIPTextModel:
    """The encoder of the pooled prompt: one vector of `width` for the whole caption."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            projection_dim=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_t5(tokenizer: PreTrainedTokenizerBase, *, width: int = TEXT_WIDTH) -> T5EncoderModel:
    """The encoder of the text tokens that the transformer attends to: `width` values a token."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=width // 4,
            d_ff=2 * width,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """FLUX.1-dev's flow-matching scheduler, with its shift of the noise levels by token count."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def build_pipeline(
    *,
    seed: int,
    heads: int = HEADS,
    head_dim: int = HEAD_DIM,
    double_blocks: int = DOUBLE_BLOCKS,
    single_blocks: int = SINGLE_BLOCKS,
    text_length: int = TEXT_LENGTH,
    text_width: int = TEXT_WIDTH,
    latent_channels: int = LATENT_CHANNELS,
    vae_channels: tuple[int, ...] = VAE_CHANNELS,
    guidance_embeds: bool = False,
) -> FluxPipeline:
    """A complete pipeline with random weights from `seed`; torch's global generator is left as it was."""
    if text_width % 8:
        raise ValueError(f"text_width must be a multiple of 8, got {text_width}")
    words, pieces = clip_tokenizer(CLIP_LENGTH), t5_tokenizer(text_length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FluxPipeline(
            transformer=build_transformer(
                heads=heads,
                head_dim=head_dim,
                double_blocks=double_blocks,
                single_blocks=single_blocks,
                latent_channels=latent_channels,
                text_width=text_width,
                guidance_embeds=guidance_embeds,
            ),
            vae=build_vae(channels=vae_channels, latent_channels=latent_channels),
            text_encoder=build_clip(words, width=text_width),
            tokenizer=words,
            text_encoder_2=build_t5(pieces, width=text_width),
            tokenizer_2=pieces,
            scheduler=build_scheduler(),
        )


def write_checkpoint(
    folder: str | Path,
    *,
    seed: int = 0,
    heads: int = HEADS,
    head_dim: int = HEAD_DIM,
    double_blocks: int = DOUBLE_BLOCKS,
    single_blocks: int = SINGLE_BLOCKS,
    text_length: int = TEXT_LENGTH,
    text_width: int = TEXT_WIDTH,
    latent_channels: int = LATENT_CHANNELS,
    vae_channels: tuple[int, ...] = VAE_CHANNELS,
    guidance_embeds: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a random checkpoint in the FLUX layout to `folder` and return the folder.

    The same arguments give the same weights. `text_length` is the number of T5 tokens that the
    transformer is meant for, found again as `tokenizer_2.model_max_length`. `guidance_embeds` makes a
    transformer that takes the guidance scale as an input, as FLUX.1-dev does.
    """
    folder = Path(folder)
    pipeline = build_pipeline(
        seed=seed,
        heads=heads,
        head_dim=head_dim,
        double_blocks=double_blocks,
        single_blocks=single_blocks,
        text_length=text_length,
        text_width=text_width,
        latent_channels=latent_channels,
        vae_channels=vae_channels,
        guidance_embeds=guidance_embeds,
    )
    pipeline.to(dtype).save_pretrained(folder, safe_serialization=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m model.layout", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the checkpoint goes; made if it does not exist")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default 0)")
    parser.add_argument("--heads", type=int, default=HEADS, help=f"attention heads (default {HEADS})")
    parser.add_argument(
        "--text-length", type=int, default=TEXT_LENGTH, help=f"text tokens (default {TEXT_LENGTH})"
    )
    args = parser.parse_args()
    write_checkpoint(args.folder, seed=args.seed, heads=args.heads, text_length=args.text_length)
    print(f"wrote a random checkpoint to {args.folder}")


if __name__ == "__main__":
    main()
