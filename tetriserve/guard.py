"""Keeps a server's own mistakes from reaching callers as UNKNOWN."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from tetriserve.logs import Logger

log = Logger("tetriserve.guard")


class Guard(grpc.aio.ServerInterceptor):
    """Logs an exception that a handler did not expect, and answers INTERNAL."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method

        def lenient(payload: bytes) -> Any:
            try:
                return handler.request_deserializer(payload)
            except Exception as error:
                return _Malformed(str(error))

        def plain(inner: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def guarded(message: Any, context: grpc.aio.ServicerContext) -> Any:
                try:
                    await _refuse_malformed(message, context)
                    return await inner(message, context)
                except (grpc.aio.AbortError, grpc.aio.BaseError):
                    raise
                except Exception as error:
                    await _internal(method, error, context)

            return guarded

        def streamed(inner: Callable[..., Any]) -> Callable[..., Any]:
            async def guarded(message: Any, context: grpc.aio.ServicerContext) -> Any:
                try:
                    await _refuse_malformed(message, context)
                    async for response in inner(message, context):
                        yield response
                except (grpc.aio.AbortError, grpc.aio.BaseError):
                    raise
                except Exception as error:
                    await _internal(method, error, context)

            return guarded

        wraps = {
            (False, False): (grpc.unary_unary_rpc_method_handler, "unary_unary", plain),
            (True, False): (grpc.stream_unary_rpc_method_handler, "stream_unary", plain),
            (False, True): (grpc.unary_stream_rpc_method_handler, "unary_stream", streamed),
            (True, True): (grpc.stream_stream_rpc_method_handler, "stream_stream", streamed),
        }
        make, name, wrap = wraps[handler.request_streaming, handler.response_streaming]
        # A stream's messages are the handler's own business: it meets them one by one.
        deserializer = handler.request_deserializer if handler.request_streaming else lenient
        return make(wrap(getattr(handler, name)), deserializer, handler.response_serializer)


@dataclass(frozen=True, slots=True)
class _Malformed:
    """Stands for a request whose bytes are no message; gRPC itself would answer UNKNOWN."""

    why: str


async def _refuse_malformed(message: Any, context: grpc.aio.ServicerContext) -> None:
    if isinstance(message, _Malformed):
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the request cannot be read: {message.why}")


async def _internal(method: str, error: Exception, context: grpc.aio.ServicerContext) -> None:
    if isinstance(error, NotImplementedError):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served here")
    log.exception("call failed", method=method)
    await context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}; see the server's log")
