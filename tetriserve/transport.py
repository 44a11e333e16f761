"""gRPC settings that both ends of a connection within the cluster must agree on."""

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
