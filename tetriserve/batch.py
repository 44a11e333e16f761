"""The demo's batch: a mix of images with arrivals and deadlines that suit the machine.

The images and the seed are fixed; times follow from the scheduler's quotes, and from a warm-up that
tells how far the machine is from what was measured on it, so that deadlines mean something on a slow
machine, a fast one and a busy one.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tetriserve.client import Client
from tetriserve.show import Tracked
from tetriserve.types import Quote, RequestStatus

# Prompt, size and steps; sizes large and small, wide and tall, by turns.
PICTURES = (
    ("a red house under a yellow sun", (512, 512), 20),
    ("a blue boat on the sea at dusk", (384, 256), 20),
    ("a green tree on the left of the hills by day", (256, 256), 16),
    ("a purple house at night under a white moon", (512, 512), 16),
    ("a yellow car on the sand under a bright sun", (384, 256), 24),
    ("a white boat on the right, on the sea by night", (512, 512), 24),
    ("a red car on green hills at dusk", (256, 256), 20),
    ("a purple tree by the sea under a bright moon", (256, 384), 20),
    ("a blue house on the sand by day", (512, 512), 20),
    ("a green boat on the ocean with the sun above", (256, 256), 16),
    ("a white car at midnight in the desert", (512, 512), 18),
    ("a red tree on the hills at sunset", (256, 384), 24),
    ("a yellow boat under the moon", (256, 256), 28),
    ("a purple house on a grassy hill at sunset", (512, 512), 16),
)
WARM_UP = ("an empty beach", (512, 512), 4)
BATCH_SECONDS = 75.0  # aimed at; on a slow machine the images get fewer steps for it
LOAD = 0.75  # of the machine, by arrivals
TIGHTEST, LOOSEST = 1.4, 4.0  # deadlines, times what the image takes on an idle cluster


@dataclass(slots=True)
class Wish:
    """An image that the demo asks for, `arrival` seconds after the batch begins."""

    number: int
    prompt: str
    size: tuple[int, int]
    steps: int
    arrival: float
    deadline: float
    tracked: Tracked | None = None
    """Once it was submitted."""
    status: RequestStatus | None = None
    """Once it has ended, with spans."""

    @property
    def file(self) -> str:
        """Name of its picture."""
        words = "-".join(self.prompt.replace(",", "").split()[:5])
        return f"{self.number:02d}-{words}-{self.size[0]}x{self.size[1]}.png"


def warm_up(client: Client, executors: int) -> float:
    """Make an image an executor, all at once; returns how many times the quoted time that took, 1 or more."""
    prompt, size, steps = WARM_UP
    quote = client.quote(size, steps=steps)
    began = time.monotonic()
    for request in [client.submit(prompt, size, steps=steps, seed=i) for i in range(executors)]:
        client.result_bytes(request.id)
    return max(1.0, (time.monotonic() - began) / max(quote.alone, quote.gpu_seconds))


def plan(client: Client, count: int, executors: int, seed: int, slowness: float) -> list[Wish]:
    """`count` wishes by quotes; everything takes `slowness` times as long as quoted."""
    rng = random.Random(seed)
    pictures = [PICTURES[i % len(PICTURES)] for i in range(count)]
    quotes = [client.quote(size, steps=steps) for _, size, steps in pictures]
    share = BATCH_SECONDS * LOAD / (slowness * _busy_seconds(quotes, executors))
    if share < 1:
        pictures = [(prompt, size, max(2, int(steps * share))) for prompt, size, steps in pictures]
        quotes = [client.quote(size, steps=steps) for _, size, steps in pictures]
    gap = slowness * _busy_seconds(quotes, executors) / LOAD / count
    wishes, arrival = [], 0.0
    for number, ((prompt, size, steps), quote) in enumerate(zip(pictures, quotes, strict=True), 1):
        deadline = slowness * quote.alone * rng.uniform(TIGHTEST, LOOSEST)
        wishes.append(Wish(number, prompt, size, steps, arrival, deadline))
        arrival += rng.expovariate(1 / gap)
    return wishes


def _busy_seconds(quotes: Sequence[Quote], executors: int) -> float:
    """How long all executors together are busy with all of it."""
    return sum(quote.gpu_seconds for quote in quotes) / executors
