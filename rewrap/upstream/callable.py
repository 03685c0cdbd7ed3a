"""A function of the user's as a backend. Imports types and leaf files."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import aclosing
from inspect import isasyncgenfunction, isawaitable, iscoroutinefunction

from rewrap.threads import FUNCTIONS
from rewrap.types import (
    ChatRequest,
    Delta,
    Deltas,
    JSONObject,
    Limits,
    ResponseInfo,
    model_card,
    prompt_size,
)
from rewrap.upstream.errors import too_slow


class CallableBackend:
    """A function that takes a ChatRequest and returns a text, or yields pieces of one; plain or
    async.

    A plain function or generator runs in a thread, so that it may block. There are FUNCTION_THREADS
    of them: a call that no thread is free for waits, up to the time limit of its request.
    """

    def __init__(
        self, function: Callable[[ChatRequest], object], limits: Limits | None = None
    ) -> None:
        self.function = function
        self.limits = limits or Limits()
        self.name = getattr(function, "__name__", "function")

    async def models(self, client_headers: Mapping[str, str]) -> list[JSONObject]:
        return [model_card(self.name)]

    async def stream(self, request: ChatRequest, info: ResponseInfo) -> Deltas:
        info.prompt_bytes = prompt_size(request.messages)
        result = await self.within_limit(self.call(request), request.stream)
        if isinstance(result, str):
            yield Delta(result, "stop", whole=True)
            return
        if isinstance(result, AsyncIterable):
            try:
                async for text in result:
                    yield Delta(text)
            finally:
                # A generator is closed in the task that ran it; a plain iterator has nothing to
                # close.
                aclose = getattr(result, "aclose", None)
                if aclose is not None:
                    await aclose()
        elif isinstance(result, Iterable):
            async with aclosing(pieces_of(iter(result))) as pieces:
                async for text in pieces:
                    yield Delta(text)
        yield Delta(finish_reason="stop")

    async def call(self, request: ChatRequest) -> object:
        """The result of the function."""
        function = self.function
        is_async = iscoroutinefunction(function) or isasyncgenfunction(function)
        result = function(request) if is_async else await FUNCTIONS.run(function, request)
        if isawaitable(result):
            return await result
        return result

    async def within_limit(self, call: Awaitable[object], stream: bool) -> object:
        """The first result, in the time that an upstream has for its first byte. Raises APIError 504."""
        seconds = self.limits.total
        if stream:
            seconds = min(seconds, self.limits.first_byte)
        try:
            async with asyncio.timeout(seconds):
                return await call
        except TimeoutError:
            raise too_slow("function") from None


async def pieces_of(iterator: Iterator[str]) -> AsyncGenerator[str, None]:
    """The pieces of a plain iterator, each made in a thread."""
    running = False
    try:
        while True:
            running = True
            piece: str | None = await FUNCTIONS.run(next, iterator, None)
            running = False
            if piece is None:
                return
            yield piece
    finally:
        close = getattr(iterator, "close", None)
        if close is not None and not running:  # a generator that runs cannot be closed
            await FUNCTIONS.run(close)
