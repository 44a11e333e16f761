"""Score a checkpoint on held-out prompts, and draw sheets of what it makes.

python -m model.evaluate FOLDER --size 256x256 --prompts 200
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image
from rich.console import Console
from rich.progress import track

from model.attention import BlockAttention
from model.captions import Caption, held_out_captions, with_unknown_words
from model.checker import Score, score
from model.scenes import Array

STEPS = 20


def load(folder: str | Path) -> FluxPipeline:
    """The checkpoint in single precision, silent."""
    pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_pictures(
    pipeline: FluxPipeline,
    prompts: list[str],
    width: int,
    height: int,
    *,
    steps: int = STEPS,
    seed: int = 0,
    batch: int = 8,
) -> list[Array]:
    """Pictures by the stock pipeline; prompt i starts from the noise of `seed + i`."""
    pictures: list[Array] = []
    console = Console(stderr=True)
    starts = range(0, len(prompts), batch)
    for start in track(starts, f"{width}x{height}", console=console, disable=not console.is_terminal):
        some = prompts[start : start + batch]
        seeds = range(seed + start, seed + start + len(some))
        made = pipeline(
            some,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=0.0,
            max_sequence_length=pipeline.tokenizer_2.model_max_length,
            generator=[torch.Generator().manual_seed(one) for one in seeds],
            output_type="np",
        ).images
        pictures += list(made)
    return pictures


def evaluate(
    pipeline: FluxPipeline,
    captions: list[Caption],
    width: int,
    height: int,
    *,
    steps: int = STEPS,
    seed: int = 0,
) -> tuple[Score, list[Array]]:
    """The score on `captions` at one size, and the pictures."""
    texts = [made.text for made in captions]
    pictures = make_pictures(pipeline, texts, width, height, steps=steps, seed=seed)
    return score(pictures, captions), pictures


def sheet(pictures: list[Array], columns: int) -> Image.Image:
    """Pictures of one size side by side, row by row."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    whole = np.ones((rows * height, columns * width, 3), dtype=np.float32)
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        whole[row * height : (row + 1) * height, column * width : (column + 1) * width] = picture
    return Image.fromarray((whole * 255 + 0.5).astype(np.uint8))


def parse_size(text: str) -> tuple[int, int]:
    """`256x384` as (width, height)."""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"a size looks like 256x256, got {text!r}")
    return int(width), int(height)


def print_score(name: str, total: Score, prompts: int) -> None:
    """One line of JSON: shares by kind, and how many statements there were, to add halves up."""
    shares = {kind: round(share, 3) for kind, share in total.shares().items()}
    counts = {"right": sum(total.right.values()), "statements": sum(total.total.values())}
    print(json.dumps({"size": name, "prompts": prompts, **shares, **counts}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m model.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="checkpoint in the FLUX layout")
    parser.add_argument("--size", type=parse_size, action="append", help="WIDTHxHEIGHT, again for more")
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts a size (default 200)")
    parser.add_argument(
        "--skip", type=int, default=0, help="leave out so many of them: two halves, two cores (default 0)"
    )
    parser.add_argument(
        "--shuffled",
        action="store_true",
        help="score the pictures against others' captions, too: chance",
    )
    parser.add_argument(
        "--unknown-words", action="store_true", help="put one or two made-up words into each prompt"
    )
    parser.add_argument(
        "--bf16-attention",
        action="store_true",
        help="attention scores in bfloat16: faster at 1024x1024 where the CPU computes in it, else slower",
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"denoising steps (default {STEPS})")
    parser.add_argument(
        "--sheet", type=Path, help="also write the first pictures of each size beside this name"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    args = parser.parse_args()
    if not 0 <= args.skip < args.prompts:
        parser.error(f"--skip must leave some of the {args.prompts} prompts, got {args.skip}")
    if args.threads:
        torch.set_num_threads(args.threads)
    pipeline, captions = load(args.folder), held_out_captions(args.prompts)
    if args.bf16_attention:
        pipeline.transformer.set_attn_processor(BlockAttention())
    if args.unknown_words:
        random = np.random.default_rng(0)
        captions = [replace(made, text=with_unknown_words(made.text, random)) for made in captions]
    captions = captions[args.skip :]
    for width, height in args.size or [(256, 256)]:
        total, pictures = evaluate(pipeline, captions, width, height, steps=args.steps, seed=args.skip)
        print_score(f"{width}x{height}", total, len(captions))
        if args.shuffled:
            others = captions[1:] + captions[:1]
            print_score(f"{width}x{height} shuffled", score(pictures, others), len(captions))
        if args.sheet:
            name = args.sheet.with_stem(f"{args.sheet.stem}-{width}x{height}")
            sheet(pictures[:24], 6).save(name)


if __name__ == "__main__":
    main()
