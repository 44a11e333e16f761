"""Train the built-in model from nothing: autoencoder, text encoders, transformer.

    python -m model.train --work WORK --out CHECKPOINT [--quick]

Every stage saves its state in WORK once a minute and goes on from there when started again. WORK also
gets the figures of each stage (*.jsonl), loss curves (curves.png) and sample sheets (sheet-*.png).
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel

from model.captions import held_out_captions
from model.checker import Score
from model.evaluate import evaluate, parse_size, sheet
from model.latents import LatentSets
from model.layout import build_scheduler
from model.progress import Stage
from model.train_flow import PHASES, SIZES, train_flow
from model.train_text import TextEncoders, train_text
from model.train_vae import train_decoder, train_vae

CHECKSUMS = "SHA256SUMS"
STAGES = ("vae", "text", "decoder", "flow")


@dataclass(frozen=True)
class Plan:
    """How long each stage runs, in steps, and what it is tested with."""

    vae: int
    text: int
    decoder: int
    flow: int
    scenes: float  # share of the scenes in train_flow.SIZES
    test_every: int
    test_prompts: int
    test_sizes: tuple[str, ...]


FULL = Plan(
    vae=2200,
    text=450,
    decoder=2500,
    flow=10_500,
    scenes=1.0,
    test_every=1500,
    test_prompts=8,
    test_sizes=("256x256", "320x192", "512x512"),
)
QUICK = Plan(
    vae=30, text=20, decoder=6, flow=20, scenes=0.0, test_every=20, test_prompts=2, test_sizes=("128x128",)
)


def assemble(vae: AutoencoderKL, text: TextEncoders, transformer: FluxTransformer2DModel) -> FluxPipeline:
    """The trained parts as a stock pipeline."""
    pipeline = FluxPipeline(
        vae=vae,
        text_encoder=text.clip,
        tokenizer=text.clip_tokens,
        text_encoder_2=text.t5,
        tokenizer_2=text.t5_tokens,
        transformer=transformer,
        scheduler=build_scheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tester(
    work: Path, vae: AutoencoderKL, text: TextEncoders, plan: Plan
) -> Callable[[FluxTransformer2DModel], dict[str, float]]:
    """The checker's score on held-out prompts, with a sheet of the pictures, for the flow stage."""
    captions = held_out_captions(plan.test_prompts)

    def test(transformer: FluxTransformer2DModel) -> dict[str, float]:
        pipeline, total, shares = assemble(vae, text, transformer), Score.empty(), {}
        for size in plan.test_sizes:
            found, pictures = evaluate(pipeline, captions, *parse_size(size))
            sheet(pictures[:24], 6).save(work / f"sheet-{size}.png")
            shares[size] = found.share()
            total += found
        plot_curves(work)
        return total.shares() | shares

    return test


def plot_curves(work: Path) -> None:
    """Loss and score of every stage so far, in one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    logs = {name: work / f"{name}.jsonl" for name in STAGES}
    figure, axes = pyplot.subplots(1, len(logs), figsize=(4 * len(logs), 3), layout="constrained")
    for axis, (name, file) in zip(axes, logs.items(), strict=True):
        axis.set_title(name)
        axis.set_xlabel("step")
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        for figure_name in sorted({key for line in lines for key in line} - {"step", "seconds", "grad"}):
            points = [(line["step"], line[figure_name]) for line in lines if figure_name in line]
            axis.plot(*np.transpose(points), label=figure_name)
        if lines:
            axis.set_yscale("log")
            axis.legend(fontsize=6)
    figure.savefig(work / "curves.png", dpi=100)
    pyplot.close(figure)


def export(pipeline: FluxPipeline, folder: Path) -> None:
    """Write the checkpoint in half precision, which is how it is shipped, with its checksums."""
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        # How it was last used would be written, too.
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    sums = {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != CHECKSUMS
    }
    # The format of `sha256sum --check`.
    (folder / CHECKSUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def train(work: Path, out: Path, plan: Plan, *, seed: int, device: torch.device) -> FluxPipeline:
    """Run all stages, or what is left of them, and write the checkpoint."""
    work.mkdir(parents=True, exist_ok=True)
    vae = train_vae(Stage("vae", work, plan.vae), seed=seed, device=device)
    text = train_text(Stage("text", work, plan.text), seed=seed, device=device)
    train_decoder(Stage("decoder", work, plan.decoder), vae, seed=seed, device=device)
    counts = {size: max(4, round(count * plan.scenes)) for size, count in SIZES.items()}
    transformer = train_flow(
        Stage("flow", work, plan.flow),
        text,
        LatentSets(work, vae, counts, seed=seed),
        seed=seed,
        device=device,
        phases=PHASES,
        test=tester(work, vae, text, plan),
        test_every=plan.test_every,
    )
    plot_curves(work)
    pipeline = assemble(vae, text, transformer)
    export(pipeline, out)
    return pipeline


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m model.train", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="states, figures and sheets; resumed from")
    parser.add_argument("--out", type=Path, required=True, help="where the finished checkpoint goes")
    parser.add_argument(
        "--quick", action="store_true", help="the same path in a minute or two; no good pictures"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    train(
        args.work, args.out, QUICK if args.quick else FULL, seed=args.seed, device=torch.device(args.device)
    )
    print(f"checkpoint written to {args.out}")


if __name__ == "__main__":
    main()
