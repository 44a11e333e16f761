"""Members of a group come together before an order: what they write in their leader's store.

Each says that it is there and which generation of the group it holds; the leader answers with the
generation that they go on with, or with who is missing. Until then any member may call the meeting
off: the first word counts. After it, the leader tells the others what it decides while the order runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.distributed as dist

from executor import rendezvous


class CalledOff(Exception):
    """The meeting does not take place: a member has said that the order is not to begin. Nothing is lost."""


class Missing(Exception):
    """Some members did not come; `ranks` are theirs."""

    def __init__(self, ranks: Sequence[int]) -> None:
        super().__init__(f"ranks {list(ranks)} did not come")
        self.ranks = tuple(ranks)


@dataclass(frozen=True)
class Agreement:
    """What the members go on with: a generation of their group, and the ports of their gloo devices."""

    generation: int
    ports: tuple[int, ...]


class Meeting:
    """One meeting of one group.

    Args:
        store: the leader's.
        group: its name.
        name: of the meeting, used once.
    """

    def __init__(self, store: dist.Store | rendezvous.RemoteStore, group: str, name: str) -> None:
        self._store = store
        self._prefix = f"{group}/m{name}/"
        self._answer = f"{self._prefix}answer"

    @property
    def prefix(self) -> str:
        """How all of its keys begin."""
        return self._prefix

    def arrive(self, rank: int, generation: int, port: int) -> None:
        """This member is there, and holds this generation of the group (0: none)."""
        self._store.set(f"{self._prefix}{rank}", f"{generation} {port}")

    def await_all(self, degree: int, timeout_s: float, look: Callable[[], None]) -> list[Agreement]:
        """The leader waits for all; what each holds, by rank. `look` ends the wait by raising.

        Raises:
            Missing: not all came in time.
        """
        arrivals = [f"{self._prefix}{rank}" for rank in range(degree)]
        try:
            values = rendezvous.wait(self._store, arrivals, timeout_s, look)
        except TimeoutError:
            raise Missing([r for r, key in enumerate(arrivals) if not self._store.check([key])]) from None
        return [_agreement(value.decode().split()) for value in values]

    def settle(self, agreement: Agreement) -> Agreement:
        """The leader says what they go on with, unless the meeting is called off in this very moment.

        Raises:
            CalledOff: it is.
        """
        ports = " ".join(map(str, agreement.ports))
        return _verdict(self._answer_with(f"go {agreement.generation} {ports}"))

    def give_up(self, missing: Missing) -> Agreement:
        """The leader says who is missing, and raises that, or CalledOff."""
        return _verdict(self._answer_with(f"missing {' '.join(map(str, missing.ranks))}"))

    def call_off(self, reason: str) -> None:
        """A member says that the order is not to begin, unless all have agreed to begin it already."""
        self._answer_with(f"off {reason or 'without a reason'}")

    def called_off(self) -> str:
        """Why it was called off; empty where it was not."""
        answer = rendezvous.read(self._store, self._answer) or b""
        verdict, _, reason = answer.decode().partition(" ")
        return reason if verdict == "off" else ""

    def result(self, timeout_s: float, look: Callable[[], None]) -> Agreement:
        """What they go on with, once the leader is there and has said so. `look` ends the wait by raising.

        Raises:
            CalledOff: by a member.
            Missing: the leader has waited in vain.
            TimeoutError: the leader itself is missing.
        """
        try:
            (answer,) = rendezvous.wait(self._store, [self._answer], timeout_s, look)
        except TimeoutError:
            if not self._store.check([f"{self._prefix}0"]):
                raise
            # It has come, late itself, and is the one who says who is missing.
            patience = timeout_s + rendezvous.EXCHANGE_TIMEOUT_S
            (answer,) = rendezvous.wait(self._store, [self._answer], patience, look)
        return _verdict(answer)

    def _answer_with(self, answer: str) -> bytes:
        """Give this answer, unless there is one; the one that stands."""
        return self._store.compare_set(self._answer, "", answer)

    def publish(self, key: str, value: bytes) -> None:
        """The leader tells the others something. Once this returns, whoever asks is told."""
        key = f"{self._prefix}say/{key}"
        self._store.set(key, value)
        # torch does not wait for the store to have done it; questions of one client are answered in turn.
        self._store.check([key])

    def peek(self, key: str) -> bytes | None:
        """What the leader has told under this key; None: nothing yet."""
        return rendezvous.read(self._store, f"{self._prefix}say/{key}")

    def read(
        self,
        key: str,
        timeout_s: float,
        look: Callable[[], None],
        left: Callable[[], Exception | None] = lambda: None,
    ) -> bytes:
        """What the leader has told under this key, once it has. `look` ends the wait by raising, `left`
        says what to raise where a member is gone.

        Raises:
            TimeoutError: nothing came in time.
        """
        return rendezvous.wait(self._store, [f"{self._prefix}say/{key}"], timeout_s, look, left)[0]


def _verdict(answer: bytes) -> Agreement:
    verdict, _, rest = answer.decode().partition(" ")
    if verdict == "off":
        raise CalledOff(rest)
    if verdict == "missing":
        raise Missing([int(rank) for rank in rest.split()])
    return _agreement(rest.split())


def _agreement(words: Sequence[str]) -> Agreement:
    generation, *ports = (int(word) for word in words)
    return Agreement(generation, tuple(ports))
