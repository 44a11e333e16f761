"""`python -m bench.build_profiles`: make the bundled profiles from profiles/sources/ and the cost model.

What is published for the very machine is taken as it is; everything else is derived, and every row
says how. docs/profiles.md compares the result with what the paper reports.
"""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.cost_model import FLUX1_DEV, SD3_MEDIUM, Architecture, Device, Link, Sample, fit, step_seconds
from scheduler.profile import Profile, StepTime, save

FOLDER = Path(__file__).parent / "profiles"
SIDES = (256, 512, 1024, 2048)
BATCHES = (2, 4, 8)
BATCHED_SIDES = (256, 512)

# 900 GB/s are 450 each way; two thirds of that is what all-to-alls of a few MB get.
H100_NVLINK = 300e9
# A bridge between two A40 has 112.5 GB/s, 56 each way.
A40_NVLINK = 45e9
# Dense bf16 with fp32 accumulation, NVIDIA's data sheets.
PEAK_A40, PEAK_L20 = 149.7e12, 119.5e12
# Bytes/s of memory, NVIDIA's data sheets, of which nine tenths can be had.
MEMORY = {"H100": 0.9 * 3.35e12, "A40": 0.9 * 696e9, "L20": 0.9 * 864e9}

# The decoder of a latent-diffusion VAE: FLOPs per pixel of convolutions, and one attention over the latent.
VAE_FLOPS_PER_PIXEL, VAE_ATTENTION_CHANNELS = 9.5e6, 512
VAE_RATE = {"H100": 200e12, "A40": 40e12}  # convolutions reach about a quarter of the matrix units' best
VAE_FIXED = 0.005
TEXT_FLOPS = {"flux1-dev": 2 * 4.7e9 * 512, "sd3-medium": 2 * 2 * 4.7e9 * 256}  # T5-XXL's encoder
TEXT_FIXED = 0.015  # the launches of its 24 layers and of CLIP

Row = dict[str, str]


def main() -> None:
    """Write both profiles and print how the model fits what was published."""
    published, counted = _read("step_times"), _read("flops")
    for name, entries in (
        ("flux1-dev-8xh100", flux_on_h100(published, counted)),
        ("sd3-medium-4xa40", sd3_on_a40(published)),
    ):
        save(Profile(entries), FOLDER / f"{name}.csv")
        print(f"{name}: {len(entries)} rows")


def flux_on_h100(published: Sequence[Row], counted: Sequence[Row]) -> list[StepTime]:
    """FLUX.1-dev on eight H100 SXM, joined by NVLink."""
    flops = {
        (int(row["width"]), int(row["height"])): float(row["flops_per_image"]) / int(row["steps"])
        for row in counted
        if row["model"] == "flux1-dev"
    }
    arch = replace(FLUX1_DEV, counted=flops)
    stages = _stages("flux1-dev", "H100")
    samples, rows = [], []
    for row in _rows(published, "flux1-dev", "H100"):
        sample = _sample(row)
        if row["basis"].startswith("end to end"):
            # 28 steps, one encoding and one decoding.
            once = stages[0].seconds + _decode_seconds("H100", sample.width, sample.height)
            sample = Sample(sample.width, sample.height, sample.degree, sample.seconds - once / 28)
            source = f"{row['source']}: {row['basis']}, less {once:.3f} s of text encoder and VAE (derived)"
            rows.append(_step(sample, 1, "published", source))
        samples.append(sample)
    device, link = fit(arch, samples, MEMORY["H100"], H100_NVLINK)
    _tell("flux1-dev on H100", arch, device, link, samples)
    source = (
        f"cost model, FLOPs as the paper counts them, fitted to {len(samples)} published H100 times: "
        f"{device.rate / 1e12:.0f} TFLOP/s, "
        f"{1000 * device.fixed:.1f} ms a step, {1e6 * link.latency:.0f} us an all-to-all, "
        f"{link.bandwidth / 1e9:.0f} GB/s"
    )
    derived = _derive(arch, device, {2: link, 4: link, 8: link}, source)
    return [*_merge(derived, rows), _layer(arch, derived), *stages]


def sd3_on_a40(published: Sequence[Row]) -> list[StepTime]:
    """SD3-medium on four A40: NVLink in pairs, PCIe 4.0 between them."""
    samples = [_sample(row) for row in _rows(published, "sd3-medium", "L20")]
    l20, pcie = fit(SD3_MEDIUM, samples, MEMORY["L20"])
    _tell("sd3-medium on L20", SD3_MEDIUM, l20, pcie, samples)
    a40 = Device(l20.rate * PEAK_A40 / PEAK_L20, l20.fixed, MEMORY["A40"])
    source = (
        f"cost model fitted to {len(samples)} published L20 times, by the ratio of peak rates: "
        f"{a40.rate / 1e12:.0f} TFLOP/s, {1000 * a40.fixed:.1f} ms a step, "
        f"{1e6 * pcie.latency:.0f} us an all-to-all, {A40_NVLINK / 1e9:.0f} GB/s in a pair, "
        f"{pcie.bandwidth / 1e9:.0f} GB/s between pairs"
    )
    links = {2: Link(A40_NVLINK, pcie.latency), 4: pcie}
    derived = _derive(SD3_MEDIUM, a40, links, source)
    return [*derived, _layer(SD3_MEDIUM, derived), *_stages("sd3-medium", "A40")]


def _read(name: str) -> list[Row]:
    with (FOLDER / "sources" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _derive(arch: Architecture, device: Device, links: dict[int, Link], source: str) -> list[StepTime]:
    rows = []
    for side in SIDES:
        for batch in (1, *BATCHES) if side in BATCHED_SIDES else (1,):
            for degree in (1, *links):
                link = links.get(degree, next(iter(links.values())))
                seconds = step_seconds(arch, device, link, side, side, degree, batch)
                rows.append(_step(Sample(side, side, degree, seconds), batch, "derived", source))
    return rows


def _layer(arch: Architecture, derived: Sequence[StepTime]) -> StepTime:
    step = next(e for e in derived if (e.width, e.degree, e.batch) == (SIDES[-1], 1, 1))
    seconds = round(step.seconds / arch.layers, 6)
    return replace(step, kind="layer", seconds=seconds, source=f"one of {arch.layers} layers of such a step")


def _stages(model: str, gpu: str) -> list[StepTime]:
    rate = VAE_RATE[gpu]
    text = TEXT_FLOPS[model] / (2 * rate) + TEXT_FIXED
    source = f"FLOPs of T5-XXL at {2 * rate / 1e12:.0f} TFLOP/s and {1000 * TEXT_FIXED:.0f} ms of launches"
    rows = [StepTime("encode", 0, 0, 1, 1, round(text, 5), 0.0, "derived", source)]
    source = f"FLOPs of the decoder at {rate / 1e12:.0f} TFLOP/s and {1000 * VAE_FIXED:.0f} ms of launches"
    for side in SIDES:
        seconds = round(_decode_seconds(gpu, side, side), 5)
        rows.append(StepTime("decode", side, side, 1, 1, seconds, 0.0, "derived", source))
    return rows


def _decode_seconds(gpu: str, width: int, height: int) -> float:
    latent = (width // 8) * (height // 8)
    flops = VAE_FLOPS_PER_PIXEL * width * height + 4 * latent**2 * VAE_ATTENTION_CHANNELS
    return flops / VAE_RATE[gpu] + VAE_FIXED


def _rows(published: Sequence[Row], model: str, gpu: str) -> list[Row]:
    return [row for row in published if row["model"] == model and row["gpu"] == gpu]


def _sample(row: Row) -> Sample:
    return Sample(int(row["width"]), int(row["height"]), int(row["degree"]), float(row["seconds_per_step"]))


def _step(s: Sample, batch: int, basis: str, source: str) -> StepTime:
    return StepTime("step", s.width, s.height, s.degree, batch, round(s.seconds, 5), 0.0, basis, source)


def _merge(derived: list[StepTime], published: list[StepTime]) -> list[StepTime]:
    """Derived rows, but where there is a published one."""
    known = {(e.width, e.height, e.degree, e.batch): e for e in published}
    return [known.get((e.width, e.height, e.degree, e.batch), e) for e in derived]


def _tell(title: str, arch: Architecture, device: Device, link: Link, samples: Sequence[Sample]) -> None:
    print(f"{title}: {device}, {link}")
    for s in samples:
        model = step_seconds(arch, device, link, s.width, s.height, s.degree)
        print(f"  {s.width}x{s.height} degree {s.degree}: {s.seconds:.4f} s published, model {model:.4f} s")


if __name__ == "__main__":
    main()
