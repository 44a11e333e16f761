"""Calls on the event loop that the device thread asks for and does not wait for.

To wake an event loop is a system call, and for a system call Python's lock is given away: the loop's thread
takes it, and the device thread goes on when that one is through with its work. So a thread of its own wakes
the loop; to put a call in its queue takes no system call and keeps the lock.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

Call = tuple[Callable[..., object], tuple[Any, ...]]


class Post:
    """Makes calls on the running event loop, in the order in which they are asked for."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._carry, name="post", daemon=True)
        self._thread.start()

    def call(self, work: Callable[..., object], *args: object) -> None:
        """Have this called on the event loop; from any thread."""
        self._calls.put((work, args))

    async def flush(self) -> None:
        """Wait until all that was asked for before has been called."""
        done = asyncio.Event()
        self.call(done.set)
        await done.wait()

    def close(self) -> None:
        """End its thread, after what was asked for before."""
        self._calls.put(None)

    def _carry(self) -> None:
        while (call := self._calls.get()) is not None:
            # The loop may be closed already by the time the device thread has its last word.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(call[0], *call[1])
            # Between calls this thread must not keep a picture alive.
            del call
