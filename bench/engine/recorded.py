"""`python -m bench.engine.recorded ...`: an executor that writes down when it did what.

It is the executor, with its arguments; RECORD in the environment is the folder that it writes to, one
line of JSON an order, with times of a clock that all processes of the machine share. With BARE=1 it
runs diffusers' own loop after each denoising order of degree 1, on the same thread, so that both are
measured in turn. With RANDOM=NAME its model is a random one of that size (`bench.engine.random_models`).
"""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any, TextIO

from executor import quiet  # noqa: F401  (before diffusers)
from tetriserve.v1 import types_pb2 as types


def main() -> None:
    """Put the recorder in, then be an executor."""
    from executor import command, pipelines
    from executor.runner import Runner

    folder = Path(os.environ["RECORD"])
    bare = os.environ.get("BARE") == "1"
    load = pipelines.load
    if name := os.environ.get("RANDOM"):
        from bench.engine.random_models import build

        def load(path: Any, device: Any, dtype: Any) -> Any:  # type: ignore[misc]  # noqa: ARG001
            return build(name, device, dtype)

    recorder = Recorder(folder, bare)
    pipelines.load = lambda *args: recorder.watch(load(*args))
    Runner._run = recorder.around(Runner._run)  # type: ignore[method-assign]
    command.main(prog_name="python -m bench.engine.recorded")


class Recorder:
    """Wraps what the device thread calls."""

    def __init__(self, folder: Path, bare: bool) -> None:
        self._path = folder / f"{os.getpid()}.jsonl"
        self._file: TextIO | None = None
        self._bare = bare
        self._calls: list[tuple[float, float]] = []
        self._pipeline: Any = None
        self._computed = 0.0  # CPU seconds of this thread in calls of the pipeline, in this order
        self._met: tuple[float, float] | None = None
        self._fetched: tuple[float, float] | None = None

    def watch(self, pipeline: Any) -> Any:
        """Note when the pipeline computes."""
        self._pipeline = pipeline
        for name in ("encode", "step", "decode"):
            setattr(pipeline, name, self._timed(getattr(pipeline, name)))
        return pipeline

    def around(self, run: Any) -> Any:
        """A method in place of `Runner._run`."""
        recorder = self

        def recorded(runner: Any, job: Any) -> None:
            if recorder._file is None:
                recorder._file = recorder._path.open("w")
                get, wait = runner._groups.get, runner._wait
                runner._groups.get = lambda *a, **k: recorder._span("_met", get, *a, **k)
                runner._wait = lambda *a: recorder._span("_fetched", wait, *a)
            recorder._calls, recorder._met, recorder._fetched = [], None, None
            recorder._computed = 0.0
            begin, cpu = time.perf_counter(), time.thread_time()
            run(runner, job)
            end = time.perf_counter()
            # "ahead" is asked at the end: what has come by then was there for the device to take.
            line = {
                "order": job.order.id,
                "requests": job.request_ids,
                "stage": job.order.stage,
                "degree": job.degree,
                "size": [(part.image.width, part.image.height) for part in job.order.parts[:1]],
                "begin": begin,
                "end": end,
                "cpu": time.thread_time() - cpu,
                "computed": recorder._computed,
                "meeting": recorder._met,
                "fetch": recorder._fetched,
                "calls": recorder._calls,
                "ahead": len(runner._jobs._waiting),
            }
            if (
                recorder._bare
                and line["stage"] == types.STAGE_DENOISING
                and job.degree == len(job.request_ids) == 1
            ):
                steps = len(recorder._calls)
                line["bare"], line["bare_cpu"] = recorder._bare_steps(runner, job, steps)
            recorder._file.write(json.dumps(line) + "\n")
            recorder._file.flush()

        return recorded

    def _span(self, name: str, work: Any, *args: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        try:
            return work(*args, **options)
        finally:
            setattr(self, name, (begin, time.perf_counter()))

    def _timed(self, work: Any) -> Any:
        def timed(*args: Any, **options: Any) -> Any:
            begin, cpu = time.perf_counter(), time.thread_time()
            try:
                return work(*args, **options)
            finally:
                self._wait()
                self._computed += time.thread_time() - cpu
                self._calls.append((begin, time.perf_counter()))

        return timed

    def _wait(self) -> None:
        import torch

        if self._pipeline.device.type == "cuda":
            torch.cuda.synchronize(self._pipeline.device)

    def _bare_steps(self, runner: Any, job: Any, steps: int) -> tuple[list[float], list[float]]:
        """Seconds, and CPU seconds of this thread, of each of so many steps of diffusers' own loop."""
        state = runner._held(job.request_ids[0])
        if state is None or not steps:
            return [], []
        return bare_steps(self._pipeline, state, steps, self._wait)


def bare_steps(pipeline: Any, state: Any, steps: int, wait: Any) -> tuple[list[float], list[float]]:
    """The same with FluxPipeline's own loop and attention, on the parts of one of our pipelines."""
    from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

    parts, image = pipeline._parts, state.image
    times: list[tuple[float, float]] = []

    def note(*_: object) -> dict[str, object]:
        wait()
        times.append((time.perf_counter(), time.thread_time()))
        return {}

    ours = parts.transformer.attn_processors
    parts.transformer.set_attn_processor(FluxAttnProcessor())
    parts.set_progress_bar_config(disable=True)
    try:
        parts(
            width=image.width,
            height=image.height,
            # The first step is before the first note.
            num_inference_steps=steps + 1,
            prompt_embeds=state.condition["text"],
            pooled_prompt_embeds=state.condition["pooled"],
            latents=state.latent,
            output_type="latent",
            callback_on_step_end=note,
        )
    finally:
        parts.transformer.set_attn_processor(ours)
    pairs = list(itertools.pairwise(times))
    return [b[0] - a[0] for a, b in pairs], [b[1] - a[1] for a, b in pairs]


if __name__ == "__main__":
    main()
