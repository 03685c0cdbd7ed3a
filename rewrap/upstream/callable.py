"""A function of the user's as a backend. Imports types alone."""

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable
from contextlib import aclosing, nullcontext
from inspect import isasyncgenfunction, isawaitable, iscoroutinefunction

from rewrap.types import (
    ChatRequest,
    Delta,
    Deltas,
    JSONObject,
    ResponseInfo,
    model_card,
    prompt_size,
)


class CallableBackend:
    """A function that takes a ChatRequest and returns a text, or yields pieces of one; plain or async.

    A plain function runs in a thread, so that it may block. A plain generator runs in the event loop.
    """

    def __init__(self, function: Callable[[ChatRequest], object]) -> None:
        self.function = function
        self.name = getattr(function, "__name__", "function")

    async def models(self, authorization: str) -> list[JSONObject]:
        return [model_card(self.name)]

    async def stream(self, request: ChatRequest, info: ResponseInfo) -> Deltas:
        info.prompt_bytes = prompt_size(request.messages)
        result = await self.call(request)
        if isinstance(result, str):
            yield Delta(result, "stop", whole=True)
            return
        if isinstance(result, AsyncIterable):
            async with aclosing(result) if hasattr(result, "aclose") else nullcontext():
                async for text in result:
                    yield Delta(text)
        elif isinstance(result, Iterable):
            for text in result:
                yield Delta(text)
        yield Delta(finish_reason="stop")

    async def call(self, request: ChatRequest) -> object:
        if iscoroutinefunction(self.function) or isasyncgenfunction(self.function):
            result = self.function(request)
        else:
            result = await asyncio.to_thread(self.function, request)
        if isawaitable(result):
            return await result
        return result
