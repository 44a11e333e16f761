"""Where the members of a group meet: a key-value store in the leader's process.

Each executor serves one, for the groups that it leads. So a group depends on nobody but its members,
and the scheduler needs no torch.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch.distributed as dist

# How long one exchange with a store may take: a frozen leader shows as an error after this.
EXCHANGE_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 1.0

_POLL_S = 0.0002
_SLOWEST_POLL_S = 0.002


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


def connect(address: str) -> dist.TCPStore:
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
            return store
        except dist.DistError as error:
            # A process that has just been killed may accept a last connection: ask again whether it refuses.
            if time.monotonic() > deadline:
                raise ConnectionError(f"no store at {address!r}: {error}") from error
        except (OSError, ValueError) as error:
            raise ConnectionError(f"no store at {address!r}: {error}") from error


def wait(store: dist.Store, keys: Sequence[str], timeout_s: float, check: Callable[[], None]) -> list[bytes]:
    """The values of `keys`, once all are there.

    `check` is called between looks and ends the wait by raising. It polls: torch's own blocking wait
    cannot be interrupted, and with short time-outs it has been seen to stall for the store's time-out.

    Raises:
        TimeoutError: not all were there in time.
    """
    wanted = list(keys)
    deadline = time.monotonic() + timeout_s
    pause = _POLL_S
    while not store.check(wanted):
        check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s")
        time.sleep(pause)
        pause = min(pause * 1.5, _SLOWEST_POLL_S)
    return [store.get(key) for key in wanted]


def clear(store: dist.Store, *prefixes: str) -> None:
    """Delete the keys that begin with one of `prefixes`."""
    for key in store.list_keys():
        if key.startswith(prefixes):
            store.delete_key(key)
