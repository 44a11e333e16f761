"""What goes wrong at the client: one exception a gRPC status code, with the server's own message."""

from typing import TYPE_CHECKING, ClassVar

import grpc

if TYPE_CHECKING:
    from tetriserve.types import RequestStatus


class TetriServeError(Exception):
    """Anything that the client raises."""


class RequestEnded(TetriServeError):
    """The request ended without an image: it failed, was cancelled or was dropped."""

    def __init__(self, status: "RequestStatus") -> None:
        ending = "failed" if status.stage == "failed" else f"was {status.stage}"
        super().__init__(f"request {status.id} {ending}" + (f": {status.error}" if status.error else ""))
        self.status = status


class RpcError(TetriServeError):
    """A call was refused or could not be made; `code` is gRPC's, `message` says what to do."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    classes: ClassVar[dict[grpc.StatusCode, type["RpcError"]]] = {}

    def __init__(self, message: str, code: grpc.StatusCode | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code

    def __init_subclass__(cls) -> None:
        RpcError.classes[cls.code] = cls


class InvalidArgument(RpcError, ValueError):
    """A field is wrong; the message names it and what is allowed."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(RpcError, LookupError):
    """No request has this id."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(RpcError):
    """The id is in use by another request."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(RpcError):
    """The request's stage does not allow this; or its deadline cannot be met or promised."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class ResourceExhausted(RpcError):
    """The scheduler's queue is full."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(RpcError, ConnectionError):
    """The scheduler cannot be reached, is stopping, or has no executor yet."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(RpcError, TimeoutError):
    """The call, or the wait, took longer than its timeout; the request itself goes on."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(RpcError):
    """The call was cancelled, here or by the scheduler."""

    code = grpc.StatusCode.CANCELLED


class Unimplemented(RpcError):
    """The server does not know this call: it is older, or no scheduler."""

    code = grpc.StatusCode.UNIMPLEMENTED


class Internal(RpcError):
    """The scheduler has a fault."""

    code = grpc.StatusCode.INTERNAL


def from_rpc(error: grpc.RpcError, target: str) -> RpcError:
    """The exception for what gRPC raised on a call to `target`."""
    code: grpc.StatusCode = error.code()
    message = error.details() or code.value[1]
    if code is grpc.StatusCode.UNAVAILABLE and message.startswith(("failed to connect", "errors resolving")):
        # gRPC's own words repeat the address in several notations; its last part is the reason.
        message = f"no scheduler answers at {target} ({message.rsplit(': ', 1)[-1].rstrip(']')})"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = f"no answer from {target} in time ({message})"
    return RpcError.classes.get(code, RpcError)(message, code)
