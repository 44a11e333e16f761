"""Models of the sizes of FLUX.1-dev and SD3-medium with random weights, made on the device itself.

Step times hang on shapes, not on weights, so nothing has to be downloaded. Tokenizers are the built-in
model's. `tiny` is for trying things out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from executor.pipelines import Pipeline
from executor.pipelines.flux import FluxFamily
from executor.pipelines.sd3 import Sd3Family
from model.layout import CLIP_LENGTH, build_pipeline, build_scheduler
from model.tokenizers import clip_tokenizer, t5_tokenizer


def build(name: str, device: torch.device | str, dtype: torch.dtype) -> Pipeline:
    """The model called `name`, one of `MODELS`, on the device."""
    device = torch.device(device)
    with _made_on(device, dtype):
        pipeline = MODELS[name](device, dtype)
    for part in pipeline._parts.components.values():  # type: ignore[attr-defined]
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipeline


@contextmanager
def _made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(before)


def _flux1_dev(device: torch.device, dtype: torch.dtype) -> Pipeline:
    words, pieces = clip_tokenizer(CLIP_LENGTH), t5_tokenizer(512)
    parts = FluxPipeline(
        transformer=FluxTransformer2DModel(guidance_embeds=True),  # the defaults are FLUX.1's
        vae=_vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=CLIPTextModel(_clip(words, 768, 12)),
        tokenizer=words,
        text_encoder_2=_t5_xxl(),
        tokenizer_2=pieces,
        scheduler=build_scheduler(),
    )
    return FluxFamily(parts, device, dtype)


def _sd3_medium(device: torch.device, dtype: torch.dtype) -> Pipeline:
    words, pieces = clip_tokenizer(CLIP_LENGTH), t5_tokenizer(256)
    parts = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            pos_embed_max_size=192,
        ),
        vae=_vae(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=CLIPTextModelWithProjection(_clip(words, 768, 12)),
        tokenizer=words,
        text_encoder_2=CLIPTextModelWithProjection(_clip(words, 1280, 32)),
        tokenizer_2=words,
        text_encoder_3=_t5_xxl(),
        tokenizer_3=pieces,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return Sd3Family(parts, device, dtype)


def _tiny(device: torch.device, dtype: torch.dtype) -> Pipeline:
    parts = build_pipeline(
        seed=0, heads=8, head_dim=16, double_blocks=1, single_blocks=1, guidance_embeds=True
    )
    return FluxFamily(parts, device, dtype)


MODELS: dict[str, Callable[[torch.device, torch.dtype], Pipeline]] = {
    "flux1-dev": _flux1_dev,
    "sd3-medium": _sd3_medium,
    "tiny": _tiny,
}


def _vae(**scale: float) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **scale,
    )


def _clip(words: Any, width: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        projection_dim=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def _t5_xxl() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=32128,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
        )
    )
