"""Where the members of a group meet: a key-value store in the leader's process.

Each executor serves one, for the groups that it leads. So a group depends on nobody but its members,
and the scheduler needs no torch.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import torch.distributed as dist

# How long one exchange with a store may take: a frozen leader shows as an error after this.
EXCHANGE_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 1.0

# What no key has as its value.
_NOTHING = "\0nothing"

_POLL_S = 0.0002
_SLOWEST_POLL_S = 0.001


class StoreServer:
    """This executor's own store; it listens on `host` only, on a port that the system chooses."""

    def __init__(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # torch would listen on all interfaces: the socket is bound here and handed over.
        listener = socket.socket(family)
        listener.bind((host, 0))
        listener.listen(128)
        port = listener.getsockname()[1]
        self.address = f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
        self.store = dist.TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
            timeout=timedelta(seconds=EXCHANGE_TIMEOUT_S),
        )


class RemoteStore:
    """Another executor's store, of which no exchange takes longer than EXCHANGE_TIMEOUT_S.

    Most of torch's own exchanges wait for as long as it takes; with a frozen leader that is until it
    wakes. So they run in a thread that is left behind where no answer comes.
    """

    def __init__(self, native: dist.TCPStore) -> None:
        self.native = native
        """For making process groups, whose own time-outs hold."""
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]
        self._calls = queue.SimpleQueue()
        self._silent = False
        threading.Thread(target=_answer, args=(self._calls,), name="store", daemon=True).start()
        weakref.finalize(self, self._calls.put, None)

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""
        return bool(self._call(self.native.check, keys))

    def set(self, key: str, value: str | bytes) -> None:
        """Write a value."""
        self._call(self.native.set, key, value)

    def compare_set(self, key: str, expected: str, value: str) -> bytes:
        """Write a value where the old one is as expected; the value afterwards."""
        return bytes(self._call(self.native.compare_set, key, expected, value))

    def _call(self, exchange: Callable[..., Any], *words: Any) -> Any:
        if self._silent:
            raise ConnectionError("the store did not answer before")
        future: Future[Any] = Future()
        self._calls.put((future, exchange, words))
        try:
            return future.result(EXCHANGE_TIMEOUT_S)
        except TimeoutError:
            self._silent = True
            raise ConnectionError(f"the store has not answered for {EXCHANGE_TIMEOUT_S:g} s") from None


def _answer(calls: queue.SimpleQueue[Any]) -> None:
    while (call := calls.get()) is not None:
        future, exchange, words = call
        try:
            future.set_result(exchange(*words))
        except Exception as error:
            future.set_exception(error)
        # Between calls this thread must not keep the store, or what was said, alive.
        del call, future, exchange, words


def native(store: dist.Store | RemoteStore) -> dist.Store:
    """torch's own store, which process groups are made over."""
    return store.native if isinstance(store, RemoteStore) else store


def connect(address: str) -> RemoteStore:
    """The store at `address` ("host:port"). ConnectionError where nobody serves it."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    deadline = time.monotonic() + EXCHANGE_TIMEOUT_S
    while True:
        try:
            # torch retries a refused connection for longer than its whole timeout; a refusal here is final.
            socket.create_connection((host, int(port)), timeout=EXCHANGE_TIMEOUT_S).close()
            store = dist.TCPStore(
                host,
                int(port),
                is_master=False,
                wait_for_workers=False,
                timeout=timedelta(seconds=CONNECT_TIMEOUT_S),
            )
            store.set_timeout(timedelta(seconds=EXCHANGE_TIMEOUT_S))
            return RemoteStore(store)
        except dist.DistError as error:
            # A process that has just been killed may accept a last connection: ask again whether it refuses.
            if time.monotonic() > deadline:
                raise ConnectionError(f"no store at {address!r}: {error}") from error
        except (OSError, ValueError) as error:
            raise ConnectionError(f"no store at {address!r}: {error}") from error


def read(store: dist.Store | RemoteStore, key: str) -> bytes | None:
    """The value of a key; None: it has none.

    In one exchange, which torch answers at once: its `get` blocks where the key is deleted after a `check`.
    """
    value = bytes(store.compare_set(key, _NOTHING, _NOTHING))
    return None if value == _NOTHING.encode() else value


def wait(
    store: dist.Store | RemoteStore,
    keys: Sequence[str],
    timeout_s: float,
    check: Callable[[], None],
    left: Callable[[], Exception | None] = lambda: None,
) -> list[bytes]:
    """The values of `keys`, once each has been there. Every look is one exchange, as is every value.

    `check` is called between looks and ends the wait by raising; `left` says what to raise where those who
    would write are gone, and what they wrote before they went counts. It polls: torch's own blocking wait
    cannot be interrupted, and with short time-outs it has been seen to stall for the store's time-out.

    Raises:
        TimeoutError: not all were there in time.
    """
    values: list[bytes] = []
    deadline = time.monotonic() + timeout_s
    pause = _POLL_S
    while True:
        gone = left()
        while len(values) < len(keys) and (value := read(store, keys[len(values)])) is not None:
            values.append(value)
        if len(values) == len(keys):
            return values
        if gone:
            raise gone
        check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s")
        time.sleep(pause)
        pause = min(pause * 1.5, _SLOWEST_POLL_S)


def clear(store: dist.Store, *prefixes: str) -> None:
    """Delete the keys that begin with one of `prefixes`."""
    for key in store.list_keys():
        if key.startswith(prefixes):
            store.delete_key(key)
