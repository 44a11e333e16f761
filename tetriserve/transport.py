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
