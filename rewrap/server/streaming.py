"""Streams of Deltas to the client, in a rendering's form. Does not know routes or backends."""

import asyncio
from contextlib import aclosing

from rewrap.memory import release
from rewrap.server.context import RequestContext
from rewrap.server.heartbeat import Heartbeats
from rewrap.types import APIError, CutConnection, Deltas, Rendering


async def send_stream(
    context: RequestContext,
    rendering: Rendering,
    deltas: Deltas,
    heartbeats: Heartbeats,
) -> None:
    """Send Deltas as they come.

    A failure before the head has a status; one after it has the rendering's form.
    """
    context.streams = True
    async with aclosing(deltas):  # a client that leaves closes the upstream, too
        with heartbeats.of(context, rendering):
            try:
                await send_deltas(context, rendering, deltas)
                end = rendering.end()
            except CutConnection:
                raise
            # Hooks and functions of the user may raise any exception.
            except (Exception, asyncio.CancelledError) as exc:
                if not context.status:
                    raise
                failure = last_bytes(context, rendering, exc)
                if failure is None:
                    return
                end = failure
    await context.send_body(end, more=False)


async def send_deltas(context: RequestContext, rendering: Rendering, deltas: Deltas) -> None:
    first = await anext(deltas, None)
    if not context.holds_request:
        release()
    if not context.status:
        assert context.info is not None
        context.use(context.info.wrap_send)
        await context.start_stream([*rendering.headers, *context.info.headers])
    if first is not None:
        await context.send_body(rendering(first), more=True)
        if first.raw and context.info is not None and context.info.wrap_send is None:
            context.info.write = context.direct_writer()
    async for delta in deltas:
        body = delta.raw or rendering(delta)
        if body:
            context.sends += 1
            await context.send_body(body, more=True)


def last_bytes(context: RequestContext, rendering: Rendering, exc: BaseException) -> bytes | None:
    """The end of a stream that fails; None if the connection is cut, or the client left."""
    error: APIError | None
    if isinstance(exc, Exception):
        error = context.scope["app"].edge.api_error(context, exc)
    else:
        error = context.cancellation()
    if error is None:
        return None
    context.error = error.reason
    return rendering.failure(error)
