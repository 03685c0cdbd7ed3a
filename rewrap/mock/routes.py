"""The control API of the mock, so that tests in any language can script it and read its journal.

Does not know how a request is authenticated.
"""

from collections.abc import Awaitable, Callable

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rewrap.mock.script import Script
from rewrap.types import APIError

MAX_LIMIT = 1000


class MockRoutes:
    """`admit(request)` authenticates a request, and `body(request)` reads its body. Both raise APIError."""

    def __init__(
        self,
        script: Script,
        admit: Callable[[Request], Awaitable[str]],
        body: Callable[[Request], Awaitable[bytes]],
    ) -> None:
        self.script = script
        self.admit = admit
        self.body = body

    def routes(self) -> list[Route]:
        return [
            Route("/mock/requests", self.requests),
            Route("/mock/requests", self.clear, methods=["DELETE"]),
            Route("/mock/rules", self.add_rules, methods=["POST"]),
            Route("/mock/reset", self.reset, methods=["POST"]),
        ]

    async def requests(self, request: Request) -> Response:
        """GET /mock/requests: the last requests, filtered by `model`, `path`, `rule` and `limit`."""
        await self.admit(request)
        query = request.query_params
        entries = self.script.entries(
            model=query.get("model", ""),
            path=query.get("path", ""),
            rule=query.get("rule", ""),
            limit=checked_limit(query.get("limit", "")),
        )
        return json({"object": "list", "data": [entry.as_json() for entry in entries]})

    async def clear(self, request: Request) -> Response:
        """DELETE /mock/requests: the journal is empty."""
        await self.admit(request)
        self.script.clear()
        return json({"cleared": True})

    async def add_rules(self, request: Request) -> Response:
        """POST /mock/rules: `{"rules": [...]}` before the rules of files, until the next reset."""
        await self.admit(request)
        if not self.script.answers:
            raise APIError(400, "Rules have no effect here: recordings answer (REPLAY).")
        try:
            value = orjson.loads(await self.body(request))
            rules = value.get("rules") if isinstance(value, dict) else value
            count = self.script.rules.add(rules)
        except ValueError as error:
            raise APIError(400, str(error), param="rules") from None
        return json({"added": count})

    async def reset(self, request: Request) -> Response:
        """POST /mock/reset: no journal, no counts, no added rules."""
        await self.admit(request)
        self.script.reset()
        return json({"reset": True})


def checked_limit(text: str) -> int:
    """Raises APIError."""
    if not text:
        return MAX_LIMIT
    if not text.isdecimal() or not 0 < int(text[:6]) <= MAX_LIMIT:
        message = f"Invalid 'limit': expected an integer from 1 to {MAX_LIMIT}."
        raise APIError(400, message, param="limit", code="invalid_value")
    return int(text)


def json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
