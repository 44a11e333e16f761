"""Decides which requests run, where and how wide. No torch in here."""

import tetriserve  # noqa: F401  (before grpc: it keeps gRPC quiet)
