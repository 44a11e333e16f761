"""Flow matching: noise levels, and Euler steps that stand alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from executor.latents import State
from executor.pipelines.base import ModelError


class FlowMatching:
    """The noise levels of every request, by its steps and image tokens, and steps down them.

    Args:
        scheduler: the checkpoint's own.
        device: where the levels are wanted.
        sigmas: the levels of so many steps before they are shifted; None: the scheduler's own choice.

    Raises:
        ModelError: the scheduler is of another kind.
    """

    def __init__(
        self,
        scheduler: object,
        device: torch.device,
        sigmas: Callable[[int], np.ndarray | None] = lambda _: None,
    ) -> None:
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            raise ModelError(
                f"unknown scheduler {type(scheduler).__name__}: there is FlowMatchEulerDiscreteScheduler"
            )
        if scheduler.config.stochastic_sampling:
            raise ModelError("a scheduler with stochastic_sampling is not supported: its steps add noise")
        self._config = scheduler.config
        self._device = device
        self._sigmas = sigmas
        self._schedule = lru_cache(maxsize=256)(self._make_schedule)

    def timestep(self, state: State, tokens: int) -> torch.Tensor:
        """Where the state's next step begins, 0 to 1000: a scalar."""
        return self._schedule(state.image.steps, tokens).timesteps[state.step]

    def euler(self, state: State, tokens: int, latent: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """The latent one step on."""
        # diffusers' schedulers count their steps; a copy that is told its step shares nothing.
        scheduler = copy.copy(self._schedule(state.image.steps, tokens))
        scheduler._step_index = state.step
        return scheduler.step(velocity, scheduler.timesteps[state.step], latent, return_dict=False)[0]

    def denoised(self, before: State, after: State, tokens: int) -> torch.Tensor:
        """Where the step from `before` to `after` was heading: the latent at noise level 0."""
        sigmas = self._schedule(before.image.steps, tokens).sigmas.to(after.latent.device)
        here, there = sigmas[before.step], sigmas[after.step]
        velocity = (after.latent.float() - before.latent.float()) / (there - here)
        return after.latent.float() - there * velocity

    def _make_schedule(self, steps: int, tokens: int) -> FlowMatchEulerDiscreteScheduler:
        """A scheduler set to the noise levels of so many steps on so many tokens; never stepped itself."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self._config)
        config = scheduler.config
        # Used where the configuration says use_dynamic_shifting.
        mu = calculate_shift(
            tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
        )
        scheduler.set_timesteps(steps, device=self._device, sigmas=self._sigmas(steps), mu=mu)
        return scheduler
