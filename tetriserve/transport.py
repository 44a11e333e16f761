"""gRPC settings that both ends of a connection within the cluster must agree on."""

import errno
import socket

CHUNK_BYTES = 1 << 20
"""Size of one part of a stream that carries a picture or a latent."""

_MESSAGE_BYTES = 256 << 20  # an order can carry a checkpoint

CHANNEL_OPTIONS = [
    ("grpc.enable_http_proxy", 0),  # peers are neighbours, not web sites
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    # A peer that went without a word (power, cable) shows after about the sum of these.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
"""For whoever dials."""

SERVER_OPTIONS = [
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    # Without these a server takes the keepalive of a quiet stream for an attack and hangs up.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # Two servers on one port would each get some of the calls.
    ("grpc.so_reuseport", 0),
]
"""For whoever listens."""


def host_port(text: str, option: str, free_port: bool = False) -> tuple[str, int]:
    """Split `HOST:PORT` (an IPv6 address in brackets); port 0 only where the system may choose.

    Raises ValueError, naming the option. gRPC itself takes an address without a port for port 443, and a
    port beyond 65535 for what is left of it in 16 bits.
    """
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not bare or (":" in bare and not host.startswith("[")):
        raise ValueError(f"{option}: expected HOST:PORT, not {text!r}")
    if not port.isascii() or not port.isdigit() or not (0 if free_port else 1) <= int(port) <= 65535:
        raise ValueError(f"{option}: the port is a number up to 65535, not {port!r}")
    return bare, int(port)


def check_listen(host: str, port: int) -> None:
    """OSError where nothing can listen there, or where the port is taken at an address that the host has.

    gRPC itself is content with one address of several, and says no more than that it had none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    errors = [error for family, *_, address in found if (error := _refusal(family, address))]
    taken = [error for error in errors if error.errno == errno.EADDRINUSE]
    if taken or len(errors) == len(found):
        raise (taken or errors)[0]


def _refusal(family: socket.AddressFamily, address: tuple[object, ...]) -> OSError | None:
    try:
        with socket.socket(family) as listener:
            # As servers do: what an earlier one has left behind is no hindrance.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
    except OSError as error:
        return error
    return None
