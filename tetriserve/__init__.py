"""The public face: client, command line and the generated contract.

with tetriserve.Client() as client:
    status = client.submit("a red house under a yellow sun", "512x512", steps=20, deadline="8s")
    client.result(status.id).save("house.png")
"""

from tetriserve import quiet  # noqa: F401  (before grpc)
from tetriserve.client import AsyncClient, Client
from tetriserve.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    RequestEnded,
    ResourceExhausted,
    RpcError,
    TetriServeError,
    Unavailable,
    Unimplemented,
)
from tetriserve.types import (
    Cluster,
    Event,
    Executor,
    ImageSpec,
    Model,
    OnLate,
    Preview,
    Quote,
    Request,
    RequestStatus,
    Span,
    Stage,
    Verdict,
)

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "Cancelled",
    "Client",
    "Cluster",
    "DeadlineExceeded",
    "Event",
    "Executor",
    "FailedPrecondition",
    "ImageSpec",
    "Internal",
    "InvalidArgument",
    "Model",
    "NotFound",
    "OnLate",
    "Preview",
    "Quote",
    "Request",
    "RequestEnded",
    "RequestStatus",
    "ResourceExhausted",
    "RpcError",
    "Span",
    "Stage",
    "TetriServeError",
    "Unavailable",
    "Unimplemented",
    "Verdict",
]
