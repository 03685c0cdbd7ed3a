"""A function of the user's as a backend.

Imports types, the threads of such functions, and the normalization of Deltas. Does not know which
API is served.
"""

import asyncio
import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import aclosing

from rewrap.threads import FUNCTIONS
from rewrap.types import (
    APIError,
    ChatRequest,
    Delta,
    Deltas,
    JSONObject,
    Limits,
    ResponseInfo,
    model_card,
    prompt_size,
    usage,
)
from rewrap.upstream.deltas import DeltaNormalizer
from rewrap.upstream.errors import too_slow

MEMBERS = ("content", "tool_calls", "reasoning", "usage", "finish_reason")
EXPECTED = f"expected text, a dict with {', '.join(MEMBERS)}, or a Delta"
END = object()


class CallableBackend:
    """A function that takes a ChatRequest, and returns a reply or yields pieces of one.

    A piece is text, a dict {"content", "tool_calls", "reasoning", "usage", "finish_reason"}, or a
    Delta. The function may be async. A plain one runs in a thread, so that it may block. It may
    raise APIError.
    """

    def __init__(
        self, function: Callable[[ChatRequest], object], limits: Limits | None = None
    ) -> None:
        """Raises ValueError for a function that does not take one argument."""
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)
        self.limits = limits or Limits()
        self.is_async = inspect.iscoroutinefunction(function)
        if inspect.isasyncgenfunction(function):
            self.is_async = True
        try:
            inspect.signature(function).bind(None)
        except TypeError as error:
            raise ValueError(f"backend {self.name}: it must take a ChatRequest: {error}") from None

    async def models(self, client_headers: Mapping[str, str]) -> list[JSONObject]:
        return [model_card(self.name)]

    async def stream(self, request: ChatRequest, info: ResponseInfo) -> Deltas:
        info.prompt_bytes = prompt_size(request.messages)
        normalized = DeltaNormalizer(info)
        async with aclosing(self.pieces(request)) as pieces:
            del request
            async for piece, whole in pieces:
                for delta in self.deltas(piece, whole, normalized):
                    yield delta
        reason = "stop"
        if normalized.tool_calls.choices:
            reason = "tool_calls"
        for delta in normalized.end(reason):
            yield delta

    def deltas(self, piece: object, whole: bool, normalized: DeltaNormalizer) -> list[Delta]:
        """The Deltas of one piece. Raises APIError for a piece that is none."""
        try:
            return list(normalized([delta_of(piece, whole)]))
        except (TypeError, ValueError) as error:
            message = f"The function {self.name} gave a reply that cannot be used: {error}."
            raise APIError(500, message, type="server_error", code="function_backend") from None

    async def pieces(self, request: ChatRequest) -> AsyncGenerator[tuple[object, bool], None]:
        """The pieces of the reply, each within its time; the second member: it is the whole reply."""
        clock = asyncio.get_running_loop().time
        limits = self.limits
        stream = request.stream
        end = clock() + limits.total
        first = end
        if stream:
            first = clock() + limits.first_byte
        result = await in_time(first, self.call(request))
        del request
        if isinstance(result, str | bytes | Mapping | Delta):
            yield result, True
            return
        if not isinstance(result, AsyncIterable | Iterable):
            yield result, True  # an error, which `deltas` reports
            return
        next_piece = self.next_of(result)
        try:
            piece = await in_time(first, next_piece())
            while piece is not END:
                yield piece, False
                if stream:
                    end = clock() + limits.stall
                piece = await in_time(end, next_piece())
        finally:
            await self.close(result)

    async def call(self, request: ChatRequest) -> object:
        """The result of the function."""
        function = self.function
        if self.is_async:
            result = function(request)
        else:
            result = await FUNCTIONS.run(function, request)
        if isinstance(result, Awaitable):
            return await result
        return result

    def next_of(self, result: object) -> Callable[[], Awaitable[object]]:
        """A function that waits for the next piece; END after the last one."""
        if isinstance(result, AsyncIterable):
            pieces: AsyncIterator[object] = aiter(result)

            async def next_async() -> object:
                return await anext(pieces, END)

            return next_async
        assert isinstance(result, Iterable)
        items: Iterator[object] = iter(result)

        async def next_plain() -> object:
            return await FUNCTIONS.run(next, items, END)

        return next_plain

    async def close(self, result: object) -> None:
        """Close a generator: the async ones here, where they ran, and the plain ones in a thread."""
        if hasattr(result, "aclose"):
            await result.aclose()
        elif inspect.isgenerator(result) and not result.gi_running:
            await FUNCTIONS.run(result.close)


async def in_time(deadline: float, piece: Awaitable[object]) -> object:
    """The piece. Raises APIError 504 at the deadline (loop time)."""
    try:
        async with asyncio.timeout_at(deadline):
            return await piece
    except TimeoutError:
        raise too_slow("function") from None


def delta_of(piece: object, whole: bool) -> Delta:
    """The Delta of one piece. Raises TypeError, ValueError."""
    if isinstance(piece, Delta):
        return piece
    if isinstance(piece, str):
        return Delta(piece, whole=whole)
    if not isinstance(piece, Mapping):
        raise TypeError(f"{EXPECTED}, not {type(piece).__name__}")
    unknown = [str(name) for name in piece if name not in MEMBERS]
    if unknown:
        raise ValueError(f"{EXPECTED}; {', '.join(unknown)} is not known")
    fields: JSONObject = {}
    reasoning = piece_text(piece, "reasoning")
    if reasoning:
        fields = {"reasoning_content": reasoning, "reasoning": reasoning}
    if piece.get("tool_calls"):
        fields["tool_calls"] = piece["tool_calls"]
    return Delta(
        piece_text(piece, "content"),
        piece_text(piece, "finish_reason") or None,
        whole=whole,
        fields=fields or None,
        usage=usage_member(piece),
    )


def piece_text(piece: Mapping[str, object], name: str) -> str:
    value = piece.get(name)
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {type(value).__name__}")
    return value or ""


def usage_member(piece: Mapping[str, object]) -> JSONObject | None:
    value = piece.get("usage")
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TypeError(f"usage must be a dict, not {type(value).__name__}")
    counts = [value.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if not all(isinstance(count, int) for count in counts):
        raise ValueError("usage needs prompt_tokens and completion_tokens")
    return usage(value["prompt_tokens"], value["completion_tokens"]) | dict(value)
