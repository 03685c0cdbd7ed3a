"""A function of the user's as a backend. Imports types alone."""

from asyncio import to_thread
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
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
    """A function that takes a ChatRequest and returns a text, or yields pieces of one; plain or
    async.

    A plain function runs in a thread, so that it may block. A plain generator runs in the event
    loop.
    """

    def __init__(self, function: Callable[[ChatRequest], object]) -> None:
        self.function = function
        self.name = getattr(function, "__name__", "function")

    async def models(self, client_headers: Mapping[str, str]) -> list[JSONObject]:
        return [model_card(self.name)]

    async def stream(self, request: ChatRequest, info: ResponseInfo) -> Deltas:
        info.prompt_bytes = prompt_size(request.messages)
        result = await self.call(request)
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
            for text in result:
                yield Delta(text)
        yield Delta(finish_reason="stop")

    async def call(self, request: ChatRequest) -> object:
        """The result of the function."""
        function = self.function
        is_async = iscoroutinefunction(function) or isasyncgenfunction(function)
        result = function(request) if is_async else await to_thread(function, request)
        if isawaitable(result):
            return await result
        return result
