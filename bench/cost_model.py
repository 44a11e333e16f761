"""A cost model of a denoising step, to fill the gaps between published figures.

    seconds = max(FLOPs / (degree * rate), weights / memory) + fixed
            + 4 * layers * (latency + bytes / bandwidth)

The first term is what the matrix units do, or reading the weights, which every GPU of a group does
in full; `fixed` is what a step costs besides (launching kernels); the last are Ulysses' four
all-to-alls in every layer, at degree 2 and up. The rate and the fixed part (and, where the link is not
known, its terms) are fitted to published figures. Interruptions by the host, memory-bound kernels and
the like are in `fixed` and `latency` for want of anything better.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import nnls

BYTES = 2  # bf16


@dataclass(frozen=True, slots=True)
class Architecture:
    """A diffusion transformer: `layers` blocks of `hidden` channels over image and text tokens.

    `parameters` are read in every step. `passes` is 2 where guidance needs a second, unconditional
    prediction. `counted` are FLOPs of a step that somebody has counted, by width and height; other
    sizes are reckoned.
    """

    layers: int
    hidden: int
    text_tokens: int
    parameters: float
    passes: int
    counted: Mapping[tuple[int, int], float] = field(default_factory=dict)

    def tokens(self, width: int, height: int) -> int:
        """Tokens of one pass: 16 x 16 pixels each, and the text."""
        return (width // 16) * (height // 16) + self.text_tokens

    def flops(self, width: int, height: int, batch: int = 1) -> float:
        """FLOPs of a step: 12 hidden^2 weights touched by every token in a layer, and attention."""
        if (width, height) in self.counted:
            return self.counted[width, height] * batch
        n = self.tokens(width, height)
        linear = 2 * 12 * self.hidden**2 * n
        attention = 4 * n**2 * self.hidden
        return float(self.layers * (linear + attention) * self.passes * batch)

    def exchanges(self, degree: int) -> int:
        """All-to-alls of a step: queries, keys, values and outputs in every layer."""
        return 4 * self.layers if degree > 1 else 0

    def exchanged_bytes(self, width: int, height: int, degree: int, batch: int = 1) -> float:
        """Bytes that each GPU sends in a step."""
        share = self.tokens(width, height) * self.passes * batch / degree
        return self.exchanges(degree) * share * self.hidden * BYTES * (degree - 1) / degree


# black-forest-labs/FLUX.1-dev: 19 double and 38 single blocks; guidance is distilled into the model.
FLUX1_DEV = Architecture(layers=57, hidden=3072, text_tokens=512, parameters=12e9, passes=1)
# stabilityai/stable-diffusion-3-medium: 24 joint blocks; 77 CLIP and 256 T5 tokens; classifier-free guidance.
SD3_MEDIUM = Architecture(layers=24, hidden=1536, text_tokens=333, parameters=2e9, passes=2)


@dataclass(frozen=True, slots=True)
class Link:
    """What joins the GPUs of a group: bytes/s each way and seconds per all-to-all."""

    bandwidth: float
    latency: float


@dataclass(frozen=True, slots=True)
class Sample:
    """A published step time."""

    width: int
    height: int
    degree: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Device:
    """Speed of a GPU on an architecture: FLOP/s and fixed seconds per step, fitted; memory in bytes/s."""

    rate: float
    fixed: float
    memory: float


def step_seconds(
    arch: Architecture, device: Device, link: Link, width: int, height: int, degree: int, batch: int = 1
) -> float:
    """Seconds of one denoising step."""
    compute = arch.flops(width, height, batch) / (degree * device.rate)
    # Both passes and the whole batch go through the weights at once.
    compute = max(compute, arch.parameters * BYTES / device.memory)
    sent = arch.exchanged_bytes(width, height, degree, batch) / link.bandwidth
    return compute + device.fixed + arch.exchanges(degree) * link.latency + sent


def fit(
    arch: Architecture, samples: Iterable[Sample], memory: float, bandwidth: float | None = None
) -> tuple[Device, Link]:
    """The device and link that explain the samples best: non-negative least squares of relative errors.

    The link's bandwidth is fitted too where it is not given; the samples are taken to be bound by compute.
    """
    rows, right = [], []
    for s in samples:
        sent = arch.exchanged_bytes(s.width, s.height, s.degree)
        known = sent / bandwidth if bandwidth else 0.0
        # In units that make the unknowns of one size: PFLOPs, seconds, exchanges by the thousand, GB.
        features = [arch.flops(s.width, s.height) / s.degree / 1e15, 1.0, arch.exchanges(s.degree) / 1e3]
        if bandwidth is None:
            features.append(sent / 1e9)
        rows.append([feature / s.seconds for feature in features])
        right.append((s.seconds - known) / s.seconds)
    solution, _ = nnls(np.array(rows), np.array(right))
    per_pflop, fixed, latency = (float(x) for x in solution[:3])
    found = bandwidth if bandwidth is not None else 1e9 / float(solution[3])
    return Device(1e15 / per_pflop, fixed, memory), Link(found, latency / 1e3)
