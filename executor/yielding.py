"""Leaving a step between two layers, all members of its group at the same one.

An order that yields is left as soon as its leader is told to end it: the step in progress is lost, and done
again later from the states before it. Every member counts the attention layers of the step, and looks before
each one whether to leave there. The members agree without a collective: a leader that is told before layer a
publishes that all leave before layer a + d, in its store, and goes on; the others ask the store before each
layer, without waiting.

Why they all leave before the same layer, or none does: attention is over the tokens of all members, so no
member is through with layer a before the leader has begun it, which it does only once the store has its word.
On a CPU a layer is done when it returns. So d = 1 is enough: who is about to begin layer a + 1 is through
with layer a, and finds the word. A GPU is given layers ahead. There each member waits, before it launches
layer c, until its device is through with layer c - 2, so that at most one layer is open: d = 2 is enough. A
step that has no layer a + d is left by nobody, since all count the same layers; its order ends after it.
Nobody has anything in flight where all leave, so the group can be used for the next order. A member that is
alone has nobody to wait for: d = 0.
"""

from collections.abc import Callable

from executor.group import Group, Left
from executor.wake import Wake


class Exit:
    """One step of an order that yields, as a member of its group sees it.

    Args:
        group: which runs the step.
        step: its index in the order.
        wanted: whether the step is to be left; only the leader asks.
        layers: a Wake for the layers that the device is given, of this step only.
    """

    def __init__(self, group: Group, step: int, wanted: Callable[[], bool], layers: Wake) -> None:
        self._group = group
        self._key = f"leave {step}"
        self._wanted = wanted
        self._layers = layers
        self._notice = 1 + layers.depth if group.degree > 1 else 0
        self._layer = 0
        self._place: int | None = None

    def look(self) -> None:
        """To be called before each layer.

        Raises:
            Left: the step ends here.
            GroupAborted: the leader does not answer.
        """
        self._layers.add(lambda: None)
        if self._place is None:
            self._place = self._decide() if self._group.leads else self._hear()
        if self._place is not None and self._layer >= self._place:
            if self._layer > self._place:
                raise RuntimeError(f"the place to leave was layer {self._place}, this is {self._layer}")
            raise Left(f"before layer {self._layer}")
        self._layer += 1

    def _decide(self) -> int | None:
        if not self._wanted():
            return None
        place = self._layer + self._notice
        self._group.publish(self._key, str(place).encode())
        return place

    def _hear(self) -> int | None:
        place = self._group.peek(self._key)
        return None if place is None else int(place)
