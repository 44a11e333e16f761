"""How far a step cache's pictures are from those without: PSNR and SSIM on the same prompts and seeds.

python -m bench.step_cache [--model FOLDER] [--size 256x256] [--steps 20] [--prompts 8]
"""

import dataclasses
import statistics
import sys
import time
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F

from executor.builtin import checkpoint
from executor.config import cache_folder
from executor.groups import Group, Groups, Member
from executor.image import ImageSpec
from executor.pipelines import DTYPES, Pipeline, load
from tetriserve.quantities import parse_size
from tetriserve.step_cache import computed

COLOURS, THINGS = ("red", "blue", "yellow", "green"), ("house", "tree", "boat", "car")
WINDOW = 7


def prompts(count: int) -> list[str]:
    """Scenes of the kind that the built-in model draws, all different."""
    pairs = [(c, t) for t in THINGS for c in COLOURS]
    return [f"a {c} {t} under a {COLOURS[i % 3]} sun" for i, (c, t) in enumerate(pairs)][:count]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of pictures with values 0 to 255; infinity where they are equal."""
    error = float(((a - b) ** 2).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity [height, width, 3], windows of 7 x 7, mean over windows and channels."""
    x, y = (torch.from_numpy(p).permute(2, 0, 1)[None].double() for p in (a, b))

    def mean(value: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(value, WINDOW, stride=1)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float((((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


def draw(pipeline: Pipeline, image: ImageSpec, group: Group) -> tuple[np.ndarray, float]:
    """The picture, and seconds of its denoising on this thread's CPU clock (wall clock on a GPU)."""
    clock = time.perf_counter if pipeline.device.type == "cuda" else time.thread_time
    state = pipeline.start(image, pipeline.encode(image))
    begin = clock()
    while not state.done:
        (state,) = pipeline.step([state], group)
    if pipeline.device.type == "cuda":
        torch.cuda.synchronize(pipeline.device)
    seconds = clock() - begin
    return np.asarray(pipeline.decode(state)).astype(float), seconds


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="[default: the built-in model]")
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True)
@click.option("--size", default="256x256", show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--prompts", "count", type=click.IntRange(1, 16), default=8, show_default=True)
@click.option(
    "--cache", "caches", multiple=True, type=click.IntRange(min=2), default=(2, 3, 4), show_default=True
)
def main(
    model: Path | None, device: str, dtype: str, size: str, steps: int, count: int, caches: tuple[int, ...]
) -> None:
    """Compare pictures with a step cache to those without."""
    torch.set_num_threads(1)
    pipeline = load(model or checkpoint(cache_folder()), device, DTYPES[dtype])
    groups = Groups(torch.device(device))
    group = groups.get(0, [Member(0, groups.store_address)], "bench")
    width, height = parse_size(size)
    images = [ImageSpec(text, width, height, steps, seed) for seed, text in enumerate(prompts(count))]
    draw(pipeline, dataclasses.replace(images[0], steps=1), group)
    rows: dict[int, list[tuple[np.ndarray, float]]] = {}
    for every in (1, *caches):
        pipeline.step_cache = every
        rows[every] = [draw(pipeline, image, group) for image in images]
        print(f"drawn with --cache {every}", file=sys.stderr)
    groups.close()
    print(f"{size}, {steps} steps, {count} prompts, {dtype} on {device}\n")
    print("| `--cache` | steps computed | time of the steps | PSNR, dB | lowest | SSIM | lowest |")
    print("|---|---|---|---|---|---|---|")
    base = sum(seconds for _, seconds in rows[1])
    for every in caches:
        pairs = [(exact, cached) for (exact, _), (cached, _) in zip(rows[1], rows[every], strict=True)]
        signal, likeness = [psnr(*pair) for pair in pairs], [ssim(*pair) for pair in pairs]
        spent = sum(seconds for _, seconds in rows[every]) / base
        print(
            f"| {every} | {len(computed(steps, every))} of {steps} | {spent:.0%} "
            f"| {statistics.fmean(signal):.1f} | {min(signal):.1f} "
            f"| {statistics.fmean(likeness):.3f} | {min(likeness):.3f} |"
        )


if __name__ == "__main__":
    main()
