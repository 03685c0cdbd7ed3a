"""The routes of stored responses. POST /v1/responses itself is an endpoint of the app.

Does not know how a request is authenticated. Source: OpenAI's OpenAPI document 2.3.0.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rewrap.api.chat import EVENT_STREAM
from rewrap.api.requests import parse_object
from rewrap.api.stored import JSONResponse
from rewrap.types import APIError, JSONObject

if TYPE_CHECKING:
    from rewrap.api.responses.stored import StoredResponses

NO_COMPACTION = "Responses are not compacted here: send the input as it is."


class ResponseRoutes:
    """`owner(request)` admits a request and gives its owner. `body(request)` reads its body.

    Both raise APIError. `stored()` gives the stored responses.
    """

    def __init__(
        self,
        stored: "Callable[[], StoredResponses]",
        owner: Callable[[Request], Awaitable[str]],
        body: Callable[[Request], Awaitable[bytes]],
    ) -> None:
        self.stored = stored
        self.owner = owner
        self.body = body

    def routes(self) -> list[Route]:
        one = "/responses/{id}"
        return [
            Route("/responses/input_tokens", self.count_tokens, methods=["POST"]),
            Route("/responses/compact", self.compact, methods=["POST"]),
            Route(one, self.retrieve),
            Route(one, self.delete, methods=["DELETE"]),
            Route(f"{one}/cancel", self.cancel, methods=["POST"]),
            Route(f"{one}/input_items", self.input_items),
        ]

    async def retrieve(self, request: Request) -> Response:
        """GET /v1/responses/{id}: the Response object, or its events with `?stream=true`."""
        from rewrap.api.responses.stored import replay, whole_number

        owner = await self.owner(request)
        response = await self.stored().response(owner, request.path_params["id"])
        query = request.query_params
        if query.get("stream") != "true":
            return JSONResponse(response)
        after = -1
        if query.get("starting_after"):
            after = whole_number("starting_after", query["starting_after"])
        answer = Response(replay(response, after))
        answer.raw_headers += EVENT_STREAM
        return answer

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/responses/{id}: `{"deleted": true}`."""
        owner = await self.owner(request)
        return JSONResponse(await self.stored().delete(owner, request.path_params["id"]))

    async def cancel(self, request: Request) -> Response:
        """POST /v1/responses/{id}/cancel: 400, as no response runs in the background."""
        owner = await self.owner(request)
        raise await self.stored().cancel_error(owner, request.path_params["id"])

    async def input_items(self, request: Request) -> Response:
        """GET /v1/responses/{id}/input_items: the input, and the items of the chain before it."""
        from rewrap.api.responses.stored import item_page

        owner = await self.owner(request)
        page = item_page(request.query_params)
        return JSONResponse(await self.stored().input_items(owner, request.path_params["id"], page))

    async def count_tokens(self, request: Request) -> Response:
        """POST /v1/responses/input_tokens: an estimate of the tokens of a request."""
        from rewrap.api.responses.request import input_tokens, parse_responses

        owner = await self.owner(request)
        payload = self.parse(await self.body(request))
        history = await self.stored().history(owner, payload)
        chat, _ = parse_responses(payload, history.items, find_item=history.referenced.get)
        return JSONResponse(input_tokens(chat))

    def parse(self, body: bytes) -> JSONObject:
        """The request that is counted. Raises APIError."""
        return parse_object(body)

    async def compact(self, request: Request) -> Response:
        """POST /v1/responses/compact: 400, as there is none."""
        await self.owner(request)
        raise APIError(400, NO_COMPACTION, code="unsupported_parameter")
