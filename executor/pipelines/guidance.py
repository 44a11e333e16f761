"""Classifier-free guidance: a step seen twice, with the prompt and with the negative prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from executor.latents import Condition, State

_NEGATIVE = "negative."


@dataclass(frozen=True)
class Pass:
    """One row of a batch that goes through a model.

    Attributes:
        state: what is stepped.
        condition: the encoded prompt of this row, or the negative one.
    """

    state: State
    condition: Condition


def both(positive: Condition, negative: Condition) -> Condition:
    """The condition of a request that is guided by a negative prompt."""
    return {**positive, **{_NEGATIVE + name: tensor for name, tensor in negative.items()}}


def passes(states: Sequence[State]) -> list[Pass]:
    """The rows of these states, in diffusers' order: the negative ones first, one for each guided state,
    then one for each state."""
    negative = [Pass(state, _part(state, negative=True)) for state in states if _is_guided(state)]
    return negative + [Pass(state, _part(state, negative=False)) for state in states]


def combine(states: Sequence[State], outputs: torch.Tensor, scales: Sequence[float]) -> list[torch.Tensor]:
    """The model's output for each state, [1, ...] each.

    Args:
        outputs: of the rows of `passes(states)`.
        scales: how far to go from what the negative prompt gives to what the prompt gives, for each state.
    """
    rows = outputs.split(1)
    negatives = iter(rows)
    positives = rows[len(rows) - len(states) :]
    guided = []
    for state, scale, output in zip(states, scales, positives, strict=True):
        if _is_guided(state):
            negative = next(negatives)
            output = negative + scale * (output - negative)
        guided.append(output)
    return guided


def _is_guided(state: State) -> bool:
    return any(name.startswith(_NEGATIVE) for name in state.condition)


def _part(state: State, *, negative: bool) -> Condition:
    return {
        name.removeprefix(_NEGATIVE): tensor
        for name, tensor in state.condition.items()
        if name.startswith(_NEGATIVE) == negative
    }
