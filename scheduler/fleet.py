"""The executors: who they are, which slot each has, how commands reach them, and their leases."""

import asyncio
from dataclasses import dataclass, field

from scheduler import messages
from scheduler.problem import Stage
from tetriserve.v1 import executor_pb2, scheduler_pb2


class Refused(Exception):
    """An executor that cannot join; the message says what to do."""


@dataclass(slots=True, eq=False)
class Executor:
    """A registered executor; commands wait in `outbox`, None ends the stream."""

    slot: int
    registration: executor_pb2.Registration
    heard_at: float
    leaving: bool = False
    outbox: "asyncio.Queue[executor_pb2.JoinResponse | None]" = field(default_factory=asyncio.Queue)

    def send(self, command: executor_pb2.JoinResponse) -> None:
        """Queue a command."""
        self.outbox.put_nowait(command)

    def hang_up(self) -> None:
        """End the stream after the commands queued before."""
        self.outbox.put_nowait(None)

    @property
    def roles(self) -> frozenset[Stage]:
        """Stages that it takes orders for."""
        return messages.roles(self.registration)

    @property
    def member(self) -> executor_pb2.Member:
        """As groups name it."""
        r = self.registration
        return executor_pb2.Member(slot=self.slot, address=r.address, store=r.store)


class Fleet:
    """Executors by slot. A node has `node_size` slots, so that aligned blocks stay within a node."""

    def __init__(self, node_size: int) -> None:
        if node_size < 1 or node_size & (node_size - 1):
            raise ValueError(f"a node has a power of two of slots, not {node_size}")
        self.node_size = node_size
        self.executors: dict[int, Executor] = {}
        self.model: scheduler_pb2.ModelInfo | None = None  # loaded now or last; None: nobody has joined yet
        self._nodes: list[str] = []

    def admit(self, registration: executor_pb2.Registration, now: float) -> Executor:
        """Give an executor its slot. Raises Refused, or ValueError where the registration is wrong."""
        if not registration.instance or not registration.address or not registration.store:
            raise Refused("a registration needs instance, address and store")
        # Once all have left, another model may follow.
        if self.executors and self.model and registration.model.fingerprint != self.model.fingerprint:
            raise Refused(
                f"this cluster serves {self.model.name} ({self.model.fingerprint}), not "
                f"{registration.model.name} ({registration.model.fingerprint}): start all with one model and "
                "the same --cache, --compile, --dtype, --lora-dir and --vae-tile"
            )
        messages.roles(registration)
        slot = self._slot_for(registration)
        executor = self.executors[slot] = Executor(slot, registration, now)
        self.model = registration.model
        return executor

    def remove(self, executor: Executor) -> bool:
        """Forget an executor; False where it was forgotten already."""
        if self.executors.get(executor.slot) is not executor:
            return False
        del self.executors[executor.slot]
        return True

    def instance(self, instance: str) -> Executor | None:
        """The executor with this instance, if it is registered."""
        return next((e for e in self.executors.values() if e.registration.instance == instance), None)

    def silent(self, now: float, lease_s: float) -> list[Executor]:
        """Executors whose lease has ended."""
        return [e for e in self.executors.values() if now - e.heard_at > lease_s]

    def _slot_for(self, registration: executor_pb2.Registration) -> int:
        if registration.node not in self._nodes:
            self._nodes.append(registration.node)
        base = self._nodes.index(registration.node) * self.node_size
        free = [s for s in range(base, base + self.node_size) if s not in self.executors]
        if not free:
            raise Refused(
                f"node {registration.node} has its {self.node_size} executors already (see --node-size)"
            )
        # Neighbouring devices share the fastest links: keep their order.
        if registration.HasField("device_index") and base + registration.device_index in free:
            return base + registration.device_index
        return free[0]
