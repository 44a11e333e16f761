"""What an executor holds of the requests in its care: condition and latent, and their form on the wire."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from executor.image import ImageSpec
from executor.wake import to_host

# What the text encoders made of a prompt: named tensors, as the model family wants them.
Condition = Mapping[str, torch.Tensor]

_REMEMBERED = 4096


@dataclass(frozen=True)
class State:
    """A request between two denoising steps. A step makes a new one, so that an old one can be read,
    sent, or gone back to at any time.

    Attributes:
        image: what is drawn.
        condition: the encoded prompt.
        latent: the whole latent, in the shape the model family steps on.
        step: how many steps are behind it.
        output: what the model made of the step before, where the next one uses it again.
    """

    image: ImageSpec
    condition: Condition
    latent: torch.Tensor
    step: int
    output: torch.Tensor | None = None

    @property
    def done(self) -> bool:
        """Whether all steps are behind it."""
        return self.step >= self.image.steps

    @property
    def nbytes(self) -> int:
        """Memory of its tensors, in bytes."""
        return sum(t.nbytes for t in (*self.changing.values(), *self.condition.values()))

    @property
    def changing(self) -> dict[str, torch.Tensor]:
        """The tensors that are others after each step."""
        return {"latent": self.latent} | ({} if self.output is None else {"output": self.output})

    def after(self, latent: torch.Tensor, output: torch.Tensor | None = None) -> State:
        """The state one step on."""
        return replace(self, latent=latent, step=self.step + 1, output=output)


def pack(state: State) -> bytes:
    """All of a state, bit for bit: what a newcomer in a group needs."""
    tensors = {f"condition.{name}": t for name, t in state.condition.items()} | state.changing
    return _save(tensors, {"image": json.dumps(asdict(state.image)), "step": str(state.step)})


def unpack(data: bytes, device: torch.device | str = "cpu") -> State:
    """What `pack` packed. ValueError where the bytes are something else."""
    tensors, notes = _load(data, device)
    try:
        latent, output = tensors.pop("latent"), tensors.pop("output", None)
        condition = {name.removeprefix("condition."): t for name, t in tensors.items()}
        image = ImageSpec(**json.loads(notes["image"]))
        return State(image, condition, latent, int(notes["step"]), output)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a packed state: {error!r}") from error


def pack_latent(state: State) -> bytes:
    """The latent and its step alone: a checkpoint. The rest follows from the request."""
    return _save(state.changing, {"step": str(state.step)})


def unpack_latent(
    data: bytes, image: ImageSpec, condition: Condition, device: torch.device | str = "cpu"
) -> State:
    """The state that a checkpoint makes with its request's image and condition.

    Raises:
        ValueError: the bytes are not a checkpoint.
    """
    tensors, notes = _load(data, device)
    try:
        return State(image, condition, tensors["latent"], int(notes["step"]), tensors.get("output"))
    except (KeyError, ValueError) as error:
        raise ValueError(f"not a packed latent: {error!r}") from error


def pack_condition(condition: Condition) -> bytes:
    """An encoded prompt alone: what goes from an executor that encodes to one that denoises."""
    return _save(dict(condition), {})


def unpack_condition(data: bytes, device: torch.device | str = "cpu") -> Condition:
    """What `pack_condition` packed. ValueError where the bytes are something else."""
    return _load(data, device)[0]


def _save(tensors: Mapping[str, torch.Tensor], notes: dict[str, str]) -> bytes:
    return save({name: to_host(t.detach().contiguous()) for name, t in tensors.items()}, notes)


def _load(data: bytes, device: torch.device | str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        tensors = {name: t.to(device) for name, t in load(data).items()}
        # safetensors: eight bytes with the length of a JSON header, the header, the tensors.
        length = int.from_bytes(data[:8], "little")
        notes = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"not packed tensors: {error}") from error
    return tensors, notes


class NotHeld(LookupError):
    """This executor has no such state and will not have it."""


class Store:
    """The states that this executor holds, by request id. Any thread may use it."""

    def __init__(self) -> None:
        self._states: dict[str, State] = {}
        # Requests that are over: who still waits for one of them learns it at once.
        self._released: OrderedDict[str, None] = OrderedDict()
        self._changed = threading.Condition()

    def put(self, request_id: str, state: State) -> None:
        """Hold the request's state, in place of an earlier one, unless the request was released."""
        with self._changed:
            if request_id not in self._released:
                self._states[request_id] = state
                self._changed.notify_all()

    def get(self, request_id: str) -> State:
        """The state held now. NotHeld where there is none."""
        with self._changed:
            try:
                return self._states[request_id]
            except KeyError:
                raise NotHeld(f"no state of request {request_id} is held here") from None

    def expect(self, request_id: str) -> None:
        """An order for the request was accepted, so its state may be waited for, even after a release."""
        with self._changed:
            self._released.pop(request_id, None)

    def wait(self, request_id: str, step: int, timeout_s: float) -> State:
        """The state with exactly `step` steps behind it, once it is reached.

        Raises:
            NotHeld: the request was released, or is past that step already.
            TimeoutError: the step was not reached in time.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                if request_id in self._released:
                    raise NotHeld(f"request {request_id} was released here")
                state = self._states.get(request_id)
                if state and state.step == step:
                    return state
                if state and state.step > step:
                    raise NotHeld(f"request {request_id} is at step {state.step} already, not at {step}")
                if not self._changed.wait(deadline - time.monotonic()):
                    where = f"at step {state.step}" if state else "not held yet"
                    raise TimeoutError(f"request {request_id} is {where}, not at step {step}")

    def release(self, request_id: str) -> None:
        """Forget a request and fail those who wait for it. Unknown ones are no error."""
        with self._changed:
            self._states.pop(request_id, None)
            self._released[request_id] = None
            self._released.move_to_end(request_id)
            while len(self._released) > _REMEMBERED:
                self._released.popitem(last=False)
            self._changed.notify_all()

    def held(self) -> dict[str, int]:
        """The requests held and the step that each is at."""
        with self._changed:
            return {request_id: state.step for request_id, state in self._states.items()}

    @property
    def nbytes(self) -> int:
        """Memory of all states, in bytes."""
        with self._changed:
            return sum(state.nbytes for state in self._states.values())
