"""Drawn scenes as packed latents: encoded once, trained on many times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from model.captions import random_scene
from model.precision import mixed_precision
from model.scenes import Jitter, Scene, all_scenes, draw
from model.train_vae import to_tensor

TOKEN_PIXELS = 16  # 8x VAE times the 2x2 packing
FOREGROUND_WEIGHT = 2.5  # of the loss on tokens that hold an object, the sun or the moon


def pack(latents: Tensor) -> Tensor:
    """FLUX's packing: `(batch, channels, 2 rows, 2 columns)` to `(batch, rows * columns, 4 channels)`."""
    batch, channels, height, width = latents.shape
    blocks = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(batch, height // 2 * (width // 2), channels * 4)


def unpack(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `pack`."""
    batch, _, width = tokens.shape
    blocks = tokens.view(batch, rows, columns, width // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(batch, width // 4, rows * 2, columns * 2)


def image_ids(rows: int, columns: int) -> Tensor:
    """FLUX's position of each image token: (0, row, column)."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None, :]
    return ids.view(-1, 3)


def foreground(scene: Scene, jitter: Jitter, rows: int, columns: int) -> Tensor:
    """Which tokens show the object, the sun or the moon: `(rows * columns,)` of 0 or 1."""
    fine = 4
    bare = draw(Scene(scene.sky, scene.ground), columns * fine, rows * fine, jitter)
    full = draw(scene, columns * fine, rows * fine, jitter)
    differs = torch.from_numpy(np.abs(full - bare).max(-1) > 0.04).float()
    return functional.max_pool2d(differs[None], fine)[0].flatten()


@dataclass
class LatentSet:
    """Scenes of one size. `tokens` is `(count, rows * columns, 4 * channels)`, `weights` the loss's."""

    rows: int
    columns: int
    scenes: list[Scene]
    tokens: Tensor
    weights: Tensor

    @property
    def name(self) -> str:
        return f"{self.columns * TOKEN_PIXELS}x{self.rows * TOKEN_PIXELS}"


class LatentSets:
    """The latent sets of all sizes in one folder, each made or loaded when it is first asked for."""

    def __init__(self, folder: Path, vae: AutoencoderKL, counts: dict[str, int], *, seed: int) -> None:
        self.folder, self.vae, self.counts, self.seed = folder, vae, counts, seed
        self._sets: dict[str, LatentSet] = {}

    def __getitem__(self, size: str) -> LatentSet:
        if size not in self._sets:
            width, height = map(int, size.split("x"))
            rows, columns = height // TOKEN_PIXELS, width // TOKEN_PIXELS
            count = self.counts[size]
            self._sets[size] = load_or_encode(self.folder, self.vae, rows, columns, count, seed=self.seed)
        return self._sets[size]


@torch.no_grad()
def encode_scenes(
    vae: AutoencoderKL, rows: int, columns: int, count: int, *, seed: int, batch: int = 8
) -> LatentSet:
    """Draw and encode `count` training scenes of `columns * 16` by `rows * 16` pixels."""
    random = np.random.default_rng((seed, rows, columns))
    scenes = [random_scene(random) for _ in range(count)]
    jitters = [Jitter.draw(random) for _ in range(count)]
    tokens = []
    for start in range(0, count, batch):
        some = zip(scenes[start : start + batch], jitters[start : start + batch], strict=True)
        pictures = [
            draw(scene, columns * TOKEN_PIXELS, rows * TOKEN_PIXELS, jitter) for scene, jitter in some
        ]
        images = to_tensor(pictures).to(vae.device, memory_format=torch.channels_last)
        with mixed_precision(vae.device):
            tokens.append(pack(vae.encode(images).latent_dist.mean).half().cpu())
    marks = [foreground(scene, jitter, rows, columns) for scene, jitter in zip(scenes, jitters, strict=True)]
    weights = 1 + (FOREGROUND_WEIGHT - 1) * torch.stack(marks)
    return LatentSet(rows, columns, scenes, torch.cat(tokens), weights.half())


def load_or_encode(
    folder: Path, vae: AutoencoderKL, rows: int, columns: int, count: int, *, seed: int
) -> LatentSet:
    """The latent set from its file, or made and kept there."""
    file = folder / f"latents-{columns * TOKEN_PIXELS}x{rows * TOKEN_PIXELS}-{count}.pt"
    if not file.exists():
        made = encode_scenes(vae, rows, columns, count, seed=seed)
        fresh = file.with_suffix(".tmp")
        places = {scene: place for place, scene in enumerate(all_scenes())}
        scenes = torch.tensor([places[scene] for scene in made.scenes])
        torch.save({"scenes": scenes, "tokens": made.tokens, "weights": made.weights}, fresh)
        fresh.replace(file)
        return made
    state = torch.load(file, weights_only=True)
    every = list(all_scenes())
    scenes_kept = [every[place] for place in state["scenes"].tolist()]
    return LatentSet(rows, columns, scenes_kept, state["tokens"], state["weights"])


@dataclass(frozen=True)
class Sample:
    """Some image tokens that stand for all: their places in the packed sequence, and for how many each."""

    places: Tensor
    counts: Tensor

    def attention_bias(self, text: int) -> Tensor | None:
        """What to add to the scores of `text` + sampled tokens, so that the sample stands for all.

        In the softmax each key counts as often as the tokens it stands for, and a token counts for
        itself once: the expected attention is that of the whole sequence. None where nothing is left out.
        """
        if bool((self.counts == 1).all()):
            return None
        bias = torch.zeros(text + len(self.places), text + len(self.places))
        bias[:, text:] = self.counts.log()
        bias.diagonal().zero_()
        return bias


def foveate(
    rows: int,
    columns: int,
    window: int,
    stride: int,
    generator: torch.Generator,
    centre: tuple[int, int] | None = None,
) -> Sample:
    """The tokens of a `window` by `window` square and the corners, and one of the rest a `stride`-wide cell.

    So a step on a picture of any size costs as much as one on a small picture, and still sees what goes
    where, how neighbours fit, and how far the picture goes. The square lies around the token at `centre`
    (row, column), or anywhere. A square as large as the grid takes every token. A cell that the grid cuts
    gives a token as often as the part of it that is left.
    """
    high, wide = min(window, rows), min(window, columns)
    if centre is None:
        top = int(torch.randint(rows - high + 1, (), generator=generator))
        left = int(torch.randint(columns - wide + 1, (), generator=generator))
    else:
        top = min(max(0, centre[0] - high // 2), rows - high)
        left = min(max(0, centre[1] - wide // 2), columns - wide)
    near = torch.zeros(rows, columns, dtype=torch.bool)
    near[top : top + high, left : left + wide] = True
    near[[0, 0, -1, -1], [0, -1, 0, -1]] = True

    cells = (-(-rows // stride), -(-columns // stride))
    row = torch.arange(cells[0])[:, None] * stride + torch.randint(stride, cells, generator=generator)
    column = torch.arange(cells[1])[None, :] * stride + torch.randint(stride, cells, generator=generator)
    inside = (row < rows) & (column < columns)
    far = torch.zeros(rows, columns, dtype=torch.bool)
    far[row[inside], column[inside]] = True
    far &= ~near

    places = (near | far).flatten().nonzero().flatten()
    left_out = rows * columns - int(near.sum())
    counts = torch.where(near.flatten()[places], 1.0, left_out / max(1, int(far.sum())))
    return Sample(places, counts)
