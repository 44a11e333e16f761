"""Stage 2: the text encoders, taught to say what a caption states.

Small linear heads, thrown away afterwards, must read every fact of the scene (sky, ground, light, object,
colour, side) from CLIP's pooled vector and from each of T5's tokens. So the transformer, which trains on
few pictures, meets the facts ready-made wherever it looks, and never has to learn words from pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from model.captions import KINDS, Caption, caption, facts, random_scene, with_unknown_words
from model.layout import CLIP_LENGTH, TEXT_LENGTH, TEXT_WIDTH, build_clip, build_t5
from model.progress import Stage, set_learning_rate
from model.scenes import COLOURS, GROUNDS, LIGHTS, OBJECTS, SIDES, SKIES, Scene
from model.tokenizers import clip_tokenizer, t5_tokenizer

CLASSES: dict[str, tuple[str | None, ...]] = {
    "sky": SKIES,
    "ground": GROUNDS,
    "light": (*LIGHTS, None),
    "object": (*OBJECTS, None),
    "colour": (*COLOURS, None),
    "side": (*SIDES, None),
}
UNKNOWN_SHARE = 0.15  # of the captions carry made-up words


@dataclass
class TextEncoders:
    """The four text parts of the pipeline."""

    clip: CLIPTextModel
    t5: T5EncoderModel
    clip_tokens: CLIPTokenizer
    t5_tokens: T5TokenizerFast

    @classmethod
    def build(cls) -> TextEncoders:
        words, pieces = clip_tokenizer(CLIP_LENGTH), t5_tokenizer(TEXT_LENGTH)
        return cls(build_clip(words), build_t5(pieces), words, pieces)

    def to(self, device: torch.device) -> TextEncoders:
        self.clip.to(device)
        self.t5.to(device)
        return self

    def encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Pooled `(batch, width)` and tokens `(batch, TEXT_LENGTH, width)`, as FluxPipeline makes them."""
        device = self.t5.device
        # CLIP is causal and pools at the end token, so shorter padding changes nothing but the time.
        clip = self.clip_tokens(
            texts, padding="longest", max_length=CLIP_LENGTH, truncation=True, return_tensors="pt"
        )
        t5 = self.t5_tokens(
            texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
        )
        # No mask, since the pipeline gives none: padding is part of what the encoders see.
        pooled = self.clip(clip.input_ids.to(device)).pooler_output
        return pooled, self.t5(t5.input_ids.to(device))[0]


def labels(scenes: list[Scene]) -> Tensor:
    """The class numbers of every fact: `(batch, len(KINDS))`."""
    return torch.tensor([[CLASSES[kind].index(facts(scene).get(kind)) for kind in KINDS] for scene in scenes])


def training_captions(random: np.random.Generator, count: int) -> list[Caption]:
    """Captions of training scenes, some with unknown words in them."""
    captions = []
    for _ in range(count):
        made = caption(random_scene(random), random)
        if random.random() < UNKNOWN_SHARE:
            made = Caption(with_unknown_words(made.text, random), made.scene, made.statements)
        captions.append(made)
    return captions


class Heads(nn.Module):
    """One linear classifier a fact."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, len(CLASSES[kind])) for kind in KINDS)

    def loss(self, features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy and share right, of features `(batch, ..., width)`."""
        losses, right = [], []
        for column, head in enumerate(self.heads):
            logits = head(features).flatten(1, -2) if features.ndim > 2 else head(features)[:, None]
            wanted = target[:, column, None].expand(logits.shape[:2])
            losses.append(functional.cross_entropy(logits.flatten(0, 1), wanted.flatten()))
            right.append((logits.argmax(-1) == wanted).float().mean())
        return torch.stack(losses).mean(), torch.stack(right).mean()


def train_text(
    stage: Stage, *, seed: int, device: torch.device, batch: int = 128, rate: float = 2e-3
) -> TextEncoders:
    """Train, resume or just load both text encoders."""
    torch.manual_seed(seed)
    text = TextEncoders.build().to(device)
    heads = nn.ModuleDict({"clip": Heads(TEXT_WIDTH), "t5": Heads(TEXT_WIDTH)}).to(device)
    parameters = [*text.clip.parameters(), *text.t5.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    stage.resume(clip=text.clip, t5=text.t5, heads=heads, optimiser=optimiser)
    for step in stage.run():
        captions = training_captions(np.random.default_rng((seed, step)), batch)
        target = labels([made.scene for made in captions]).to(device)
        pooled, tokens = text.encode([made.text for made in captions])
        clip_loss, clip_right = heads["clip"].loss(pooled, target)
        t5_loss, t5_right = heads["t5"].loss(tokens, target)
        set_learning_rate(optimiser, stage.learning_rate(rate))
        (clip_loss + t5_loss).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        stage.log(
            clip=clip_loss.item(), t5=t5_loss.item(), clip_right=clip_right.item(), t5_right=t5_right.item()
        )
    text.clip.eval()
    text.t5.eval()
    return text
