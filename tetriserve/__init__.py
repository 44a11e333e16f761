"""The public face: client, command line and the generated contract.

with tetriserve.Client() as client:
    status = client.submit("a red house under a yellow sun", "512x512", steps=20, deadline="8s")
    client.result(status.id).save("house.png")
"""

from importlib import import_module
from typing import TYPE_CHECKING

from tetriserve import quiet  # noqa: F401  (before grpc)

if TYPE_CHECKING:
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

if not TYPE_CHECKING:  # to a type checker every name would be one of ours
    _MODULES = "errors", "types", "client"

    def __getattr__(name: str) -> object:
        """The public names, once one is wanted: what they need takes half a second to import."""
        if name in _MODULES:
            return import_module(f"tetriserve.{name}")
        for module in _MODULES if name in __all__ else ():
            found = getattr(import_module(f"tetriserve.{module}"), name, None)
            if found is not None:
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return [*globals(), *__all__]
