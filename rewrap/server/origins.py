"""Web pages of other origins: which of them may call, and the CORS headers for those.

A page may send a POST with `text/plain` to any server without asking first (no preflight), so a server on a loopback address
would spend its owner's key for any page that is open in a browser. Source: https://fetch.spec.whatwg.org.
Imports types and hosts.
"""

import re
from collections.abc import Mapping, Sequence

import orjson
from starlette.datastructures import Headers as StarletteHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Scope

from rewrap.server.hosts import is_own_loopback
from rewrap.types import APIError

# Pages of this machine, such as the front end of a template on another port. They may call a loopback address.
LOCAL_ORIGINS = (
    "http://localhost",
    "http://localhost:*",
    "http://127.0.0.1",
    "http://127.0.0.1:*",
    "http://[::1]",
    "http://[::1]:*",
)
SAFE_METHODS = frozenset(["GET", "HEAD", "OPTIONS"])
EXPOSED = [
    "x-request-id",
    "retry-after",
    "retry-after-ms",
    "x-dropped-params",
    "x-should-retry",
    "openai-processing-ms",
    "openai-version",
    "openai-model",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
    # Of downloads that are passed through.
    "accept-ranges",
    "content-disposition",
    "content-length",
    "content-range",
    "etag",
]


class OpenAICORSMiddleware(CORSMiddleware):
    """Starlette's CORS, with OpenAI's envelope where it refuses a preflight."""

    def preflight_response(self, request_headers: StarletteHeaders) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        body = orjson.dumps(APIError(400, bytes(response.body).decode()).body)
        return Response(body, 400, {"vary": "Origin"}, "application/json")


class OriginPolicy:
    """The pages that may call `app`: those of ALLOW_ORIGINS, and on a loopback address those of this machine."""

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self.app = app
        self.any_origin = "*" in allowed
        self.everywhere = cors(app, allowed) if allowed else None
        self.on_loopback = cors(app, [*allowed, *LOCAL_ORIGINS])

    def cors(self, scope: Scope) -> OpenAICORSMiddleware | None:
        """The CORS middleware for the address that a request came to; None if no page may call it."""
        server = scope.get("server")
        if server is not None and is_own_loopback(server[0]):
            return self.on_loopback
        return self.everywhere

    def app_for_page(self, scope: Scope) -> ASGIApp:
        """The app for a request with an Origin."""
        return self.cors(scope) or self.app

    def check(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        """Raises APIError 403 for a request that acts and comes from a page that may not call.

        `headers`: those of the scope, by name.
        """
        if scope["method"] in SAFE_METHODS or self.any_origin:
            return
        site = headers.get(b"sec-fetch-site", b"")
        origin = headers.get(b"origin")
        if site == b"same-origin":  # the browser's own word: no page can set this header
            return
        if origin is None:
            if site == b"cross-site":
                raise foreign_page()
            return
        if is_own(origin, headers.get(b"host", b"")):
            return
        policy = self.cors(scope)
        if policy is None or not policy.is_allowed_origin(origin.decode("latin-1")):
            raise foreign_page()


def is_own(origin: bytes, host: bytes) -> bool:
    """Whether a page comes from the address that the request is sent to."""
    _, separator, address = origin.partition(b"://")
    return bool(separator) and address.lower() == host.lower()


def foreign_page() -> APIError:
    message = "Web pages of that origin may not call this server (ALLOW_ORIGINS)."
    return APIError(403, message, reason="foreign origin")


def cors(app: ASGIApp, origins: Sequence[str]) -> OpenAICORSMiddleware:
    """`app` behind CORS for origins such as https://app.example, https://*.app.example, or *."""
    patterns = [re.escape(origin).replace(r"\*", r"[\w.-]+") for origin in origins if "*" in origin]
    any_origin = "*" in origins
    return OpenAICORSMiddleware(
        app,
        allow_origins=["*"] if any_origin else list(origins),
        allow_origin_regex="|".join(patterns) or None,
        allow_credentials=not any_origin,  # with both, every page could use its visitor's cookies
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"],
        allow_headers=["*"],
        allow_private_network=True,
        expose_headers=EXPOSED,
    )
