"""Stage 3: the transformer, by flow matching on cached latents.

Every size is trained at the price of a small one: of a large picture a random square is seen whole and
of the rest a few tokens, with the attention corrected for those left out (`latents.foveate`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from model.attention import ExplicitAttention
from model.captions import caption, with_unknown_words
from model.latents import TOKEN_PIXELS, LatentSet, LatentSets, Sample, foveate, image_ids
from model.layout import TEXT_LENGTH, build_scheduler, build_transformer
from model.precision import mixed_precision
from model.progress import Stage, set_learning_rate
from model.train_text import UNKNOWN_SHARE, TextEncoders

EMA_DECAY = 0.998


@dataclass(frozen=True)
class Phase:
    """What the steps from `start` (share of the run) on are trained with.

    `mix` lists (size, window, share): how many tokens each way are seen whole of a picture of that size, and
    which share of the steps it gets. Of the rest of the picture about FAR_TOKENS are seen. A size may also be
    a name in GROUPS, for any of several.
    """

    start: float
    mix: tuple[tuple[str, int, float], ...]

    def pick(self, random: np.random.Generator) -> tuple[str, int]:
        """Size and window of the next step."""
        shares = np.array([share for *_, share in self.mix])
        size, window, _ = self.mix[random.choice(len(self.mix), p=shares / shares.sum())]
        if size in GROUPS:
            size = str(random.choice(GROUPS[size]))
        return size, window


def sample_tokens(
    rows: int,
    columns: int,
    window: int,
    generator: torch.Generator,
    centre: tuple[int, int] | None = None,
) -> Sample:
    """The tokens that a step sees of a picture: those in a window, and about FAR_TOKENS of the others."""
    stride = max(1, math.ceil(math.sqrt(rows * columns / FAR_TOKENS)))
    return foveate(rows, columns, window, stride, generator, centre)


def pick_batch(
    latents: LatentSet, window: int, random: np.random.Generator, generator: torch.Generator
) -> tuple[Tensor, Sample]:
    """The pictures of a step, as places in `latents`, and the tokens that it sees of them.

    Where a window sees only a part, it mostly lies on an object or a light, and the pictures are of scenes
    with the object at that side: outlines are what is hard to learn, and few tokens of a large picture.
    """
    candidates, centre = np.arange(len(latents.scenes)), None
    if window < max(latents.rows, latents.columns) and random.random() < FOCUSED:
        first = int(random.integers(len(candidates)))
        marked = (latents.weights[first] > 1).nonzero().flatten()
        if len(marked):
            row, column = divmod(int(random.choice(marked.numpy())), latents.columns)
            centre = row, column
            side = latents.scenes[first].side
            candidates = np.array([i for i, scene in enumerate(latents.scenes) if scene.side == side])
    sample = sample_tokens(latents.rows, latents.columns, window, generator, centre)
    batch = min(STEP_PICTURES, max(1, STEP_TOKENS // len(sample.places)))
    return torch.from_numpy(random.choice(candidates, batch)), sample


def noise_shift(tokens: int) -> float:
    """FLUX's `mu`: how far the noise levels of a picture of so many tokens are shifted up."""
    config = build_scheduler().config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return config.base_shift + slope * (tokens - config.base_image_seq_len)


def noise_levels(count: int, tokens: int, generator: torch.Generator) -> Tensor:
    """Logit-normal noise levels, shifted as the scheduler shifts them when it samples."""
    return torch.sigmoid(torch.randn(count, generator=generator) + noise_shift(tokens))


def zero_start(transformer: FluxTransformer2DModel) -> None:
    """Start every block as the identity and the output at zero, as DiT does (diffusers does not)."""
    last = [transformer.norm_out.linear, transformer.proj_out]
    for block in transformer.transformer_blocks:
        last += [block.norm1.linear, block.norm1_context.linear]
    last += [block.norm.linear for block in transformer.single_transformer_blocks]
    for linear in last:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)


class Average(nn.Module):
    """The moving average of the weights: what is tested and kept."""

    def __init__(self, model: FluxTransformer2DModel) -> None:
        super().__init__()
        self.model = build_transformer()
        self.model.to(next(model.parameters()).device).load_state_dict(model.state_dict())
        self.model.requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)


def flow_loss(
    transformer: FluxTransformer2DModel,
    text: TextEncoders,
    latents: LatentSet,
    picked: Tensor,
    sample: Sample,
    random: np.random.Generator,
    generator: torch.Generator,
) -> Tensor:
    """The weighted velocity error at the sampled tokens of the picked pictures."""
    device = transformer.device
    texts = []
    for index in picked.tolist():
        words = caption(latents.scenes[index], random).text
        texts.append(with_unknown_words(words, random) if random.random() < UNKNOWN_SHARE else words)
    with torch.no_grad():
        pooled, tokens = text.encode(texts)

    total = latents.rows * latents.columns
    places = sample.places
    clean = latents.tokens[picked][:, places].float()
    noise = torch.randn(clean.shape, generator=generator)
    level = noise_levels(len(picked), total, generator)
    mixed = torch.lerp(clean, noise, level[:, None, None])
    bias = sample.attention_bias(TEXT_LENGTH)
    extra = None if bias is None else {"attention_mask": bias.to(device)}
    with mixed_precision(device):
        velocity = transformer(
            hidden_states=mixed.to(device),
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            timestep=level.to(device),
            img_ids=image_ids(latents.rows, latents.columns)[places].to(device),
            txt_ids=torch.zeros(TEXT_LENGTH, 3, device=device),
            joint_attention_kwargs=extra,
            return_dict=False,
        )[0]
    weights = latents.weights[picked][:, places, None].float().to(device)
    return (weights * (velocity.float() - (noise - clean).to(device)) ** 2).mean()


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay, vectors (norms, biases) do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def current_phase(phases: tuple[Phase, ...], done: float) -> Phase:
    return [phase for phase in phases if phase.start <= done][-1]


STEP_TOKENS, STEP_PICTURES = 3072, 32  # of a training step, at most
FAR_TOKENS = 64
FOCUSED = 0.7  # of the steps with a window look at an object or a light
SQUARES = {"128x128": 3000, "256x256": 1500, "512x512": 400, "1024x1024": 100}
# Sizes of the tests that must never be trained on.
UNSEEN = ("320x192", "192x320", "512x256", "256x512")
SHAPES, SHAPE_TOKENS = 60, 20_000
SMALL_TOKENS = 160


def shapes(count: int) -> list[tuple[int, int]]:
    """Widths and heights, spread evenly (R2 sequence) over areas of 144 to 900 square and ratios to 2:1."""
    found: list[tuple[int, int]] = []
    number = 0
    while len(found) < count:
        number += 1
        side = 144 * (900 / 144) ** (number * 0.7548776662 % 1)
        ratio = 2 ** (2 * (number * 0.5698402910 % 1) - 1)
        width, height = (
            min(1024, max(6, round(side * stretch / TOKEN_PIXELS)) * TOKEN_PIXELS)
            for stretch in (ratio**0.5, ratio**-0.5)
        )
        name = f"{width}x{height}"
        if (width, height) not in found and name not in SQUARES and name not in UNSEEN:
            found.append((width, height))
    return found


def token_count(width: int, height: int) -> int:
    return width // TOKEN_PIXELS * (height // TOKEN_PIXELS)


# Sizes in pixels (width x height) and how many scenes of each are encoded.
SIZES = SQUARES | {
    f"{width}x{height}": max(8, SHAPE_TOKENS // token_count(width, height))
    for width, height in shapes(SHAPES)
}
GROUPS = {
    "shapes": tuple(size for size in SIZES if size not in SQUARES),
    "small": tuple(f"{w}x{h}" for w, h in shapes(SHAPES) if token_count(w, h) <= SMALL_TOKENS),
}
PHASES = (
    # Small pictures of many shapes, seen whole: what goes where, and how that follows the shape.
    Phase(0.0, (("128x128", 16, 0.25), ("small", 16, 0.75))),
    # All sizes, at about 128 tokens a picture.
    Phase(
        0.2,
        (
            ("128x128", 8, 0.07),
            ("small", 16, 0.16),
            ("256x256", 8, 0.18),
            ("512x512", 8, 0.16),
            ("1024x1024", 8, 0.12),
            ("shapes", 8, 0.31),
        ),
    ),
    # Whole pictures of 256 and windows as large as the objects: edges.
    Phase(
        0.5,
        (
            ("128x128", 8, 0.04),
            ("256x256", 16, 0.20),
            ("512x512", 16, 0.24),
            ("1024x1024", 16, 0.17),
            ("shapes", 16, 0.35),
        ),
    ),
)


def train_flow(
    stage: Stage,
    text: TextEncoders,
    sets: LatentSets,
    *,
    seed: int,
    device: torch.device,
    phases: tuple[Phase, ...] = PHASES,
    rate: float = 2e-3,
    test: Callable[[FluxTransformer2DModel], dict[str, float]] | None = None,
    test_every: int = 1000,
) -> FluxTransformer2DModel:
    """Train, resume or just load the transformer; returns the averaged weights.

    `test` scores the averaged model every `test_every` steps; its figures go to the log.
    """
    torch.manual_seed(seed)
    transformer = build_transformer()
    zero_start(transformer)
    transformer.to(device).train().set_attn_processor(ExplicitAttention())
    average = Average(transformer)
    groups = decay_groups(transformer, 0.01)
    optimiser = torch.optim.AdamW(groups, rate, betas=(0.9, 0.98), fused=True)
    stage.resume(model=transformer, average=average, optimiser=optimiser)
    for step in stage.run():
        random = np.random.default_rng((seed, step))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        size, window = current_phase(phases, step / stage.steps).pick(random)
        latents = sets[size]
        picked, sample = pick_batch(latents, window, random, generator)
        loss = flow_loss(transformer, text, latents, picked, sample, random, generator)
        set_learning_rate(optimiser, stage.learning_rate(rate))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        average.update(transformer, step)
        stage.log(loss=loss.item(), grad=norm.item())
        if test is not None and (step + 1) % test_every == 0:
            stage.report(**test(average.model))
    return average.model
