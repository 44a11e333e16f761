"""Stage 1: the autoencoder, on windows of drawn scenes at many sizes.

The latents carry fixed noise while training, so that the decoder forgives the errors of the diffusion
transformer, and a weight on their square keeps them small. At the end each channel is scaled to unit
deviation inside the first and last convolutions, because the layout has one scale for all channels.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL

from model.layout import build_vae
from model.precision import mixed_precision
from model.progress import Stage, set_learning_rate
from model.scenes import HORIZON, Array, Jitter, Scene, all_scenes, draw

LATENT_NOISE = 0.2
LATENT_WEIGHT = 1e-3
DECODER_NOISE = 0.15  # at most, of latents with unit deviation
SIZES = (96, 128, 128, 160, 192, 256, 256, 384, 512, 768, 1024)


def to_tensor(pictures: list[Array] | Array) -> torch.Tensor:
    """Drawn pictures (0 to 1, channels last) as the VAE takes them (-1 to 1, channels first)."""
    return torch.from_numpy(np.stack(list(pictures))).permute(0, 3, 1, 2).contiguous() * 2 - 1


def draw_windows(random: np.random.Generator, scenes: list[Scene], batch: int, window: int) -> torch.Tensor:
    """Square windows of random scenes at random sizes, most of them where something is to be seen."""
    pictures = []
    for _ in range(batch):
        scene = scenes[random.integers(len(scenes))]
        size = max(window, int(random.choice(SIZES)))
        spare = size - window
        if random.random() < 0.6:  # around the object, the light or the horizon
            focus = np.array(
                [(0.27, 0.6), (0.5, 0.6), (0.73, 0.6), (0.75, 0.17), (0.26, 0.17), (0.5, HORIZON)]
            )
            x, y = focus[random.integers(len(focus))] + random.normal(0, 0.12, 2)
            left, top = np.clip(np.array([x, y]) * size - window / 2, 0, spare).astype(int)
        else:
            left, top = random.integers(0, spare + 1, 2)
        jitter = Jitter.draw(random)
        pictures.append(draw(scene, size, size, jitter, (int(left), int(top), window, window)))
    return to_tensor(pictures)


def reconstruction_loss(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Absolute error of the pixels, of the colour differences, and of the edges."""
    error = out - target
    chroma = error - error.mean(1, keepdim=True)
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 4 * (error**2).mean() + chroma.abs().mean() + 0.5 * edges


@torch.no_grad()
def unit_latents(vae: AutoencoderKL, pictures: torch.Tensor) -> None:
    """Fold a shift and a scale per channel into the VAE, so that its latents have mean 0, deviation 1."""
    latents = vae.encode(pictures).latent_dist.mean
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    last, first = vae.encoder.conv_out, vae.decoder.conv_in
    channels = len(mean)
    last.weight[:channels] /= std[:, None, None, None]
    last.bias[:channels] = (last.bias[:channels] - mean) / std
    # The decoder pads with zeros, which meant -mean/std in the old scale: only borders see the difference.
    first.bias += (first.weight * mean[None, :, None, None]).sum((1, 2, 3))
    first.weight *= std[None, :, None, None]
    # A fixed narrow posterior: whoever samples from it gets the latent that was trained.
    last.weight[channels:] = 0
    last.bias[channels:] = -12.0


def whole_pictures(random: np.random.Generator, scenes: list[Scene], count: int) -> torch.Tensor:
    """Whole drawn pictures of 192x192."""
    picked = random.integers(len(scenes), size=count)
    return to_tensor([draw(scenes[index], 192, 192, Jitter.draw(random)) for index in picked])


def train_vae(
    stage: Stage, *, seed: int, device: torch.device, batch: int = 16, window: int = 64, rate: float = 2e-3
) -> AutoencoderKL:
    """Train, resume or just load the autoencoder."""
    torch.manual_seed(seed)
    vae = build_vae().to(device).train()
    optimiser = torch.optim.AdamW(vae.parameters(), rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    stage.resume(vae=vae, optimiser=optimiser)
    scenes = list(all_scenes())
    for step in stage.run():
        random = np.random.default_rng((seed, step))
        pictures = draw_windows(random, scenes, batch, window).to(device)
        with mixed_precision(device):
            latents = vae.encode(pictures).latent_dist.mean
            noisy = latents + LATENT_NOISE * torch.randn_like(latents)
            out = vae.decode(noisy).sample
        loss = reconstruction_loss(out.float(), pictures)
        set_learning_rate(optimiser, stage.learning_rate(rate))
        (loss + LATENT_WEIGHT * (latents.float() ** 2).mean()).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        psnr = -10 * torch.log10(((out.float() - pictures) / 2).square().mean())
        stage.log(loss=loss.item(), psnr=psnr.item(), latent=latents.float().std().item())
    vae.eval()
    unit_latents(vae, whole_pictures(np.random.default_rng(seed), scenes, 64).to(device))
    return vae


def train_decoder(
    stage: Stage,
    vae: AutoencoderKL,
    *,
    seed: int,
    device: torch.device,
    batch: int = 6,
    window: int = 128,
    rate: float = 1.5e-3,
) -> AutoencoderKL:
    """Train the decoder on, with the encoder as it is: the latents that the transformer learns stay."""
    torch.manual_seed(seed)
    vae.requires_grad_(False)
    decoder = vae.decoder.requires_grad_(True).train()
    optimiser = torch.optim.AdamW(
        decoder.parameters(), rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    stage.resume(decoder=decoder, optimiser=optimiser)
    scenes = list(all_scenes())
    for step in stage.run():
        random = np.random.default_rng((seed, 1, step))
        pictures = draw_windows(random, scenes, batch, window).to(device)
        with mixed_precision(device):
            with torch.no_grad():
                latents = vae.encode(pictures).latent_dist.mean
                level = DECODER_NOISE * torch.rand(batch, 1, 1, 1, device=device)
            out = vae.decode(latents + level * torch.randn_like(latents)).sample
        loss = reconstruction_loss(out.float(), pictures)
        set_learning_rate(optimiser, stage.learning_rate(rate))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        psnr = -10 * torch.log10(((out.float() - pictures) / 2).square().mean())
        stage.log(loss=loss.item(), psnr=psnr.item())
    return vae.eval()
