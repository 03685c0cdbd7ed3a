"""The API reference: /openapi.json, /docs (Swagger UI, to try it out) and /redoc (Redoc, to read).

The two pages (docs.html) load their programs from a CDN or a mirror of it when they are opened, and
check the hashes that are listed here. Where a program cannot be loaded, the page shows the
operations with curl lines by itself. Does not depend on the content of the document. Imports only
types.py and pages.py.
"""

from collections.abc import Callable, Mapping
from functools import cache

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rewrap.types import JSONObject
from rewrap.web.pages import fill, inline_hashes, page_response, source_of

# Files of npm packages and their SHA-384. Another version has another hash.
SWAGGER_UI = {
    "swagger-ui-dist@5.33.1/swagger-ui.css": (
        "Ov4/wv3j2bmct8cDc5X4ngJZohVPzEmc6uDPH8WeljUxO5vtoykvMEfbu9Vh6RaW"
    ),
    "swagger-ui-dist@5.33.1/swagger-ui-bundle.js": (
        "ZPehFMQommnnuaZ4rpxgkgTT2DKFVp4hZC/7pLit+9Lek9T1YGSo23eHFbvNkXkw"
    ),
}
REDOC = {
    "redoc@2.5.4/bundles/redoc.standalone.js": (
        "w447zOpYfw/1Tv/5AK9NfHTlQIqE3RVR6KY62jCyy9zNDgO64cMwGGP1Fj0zJVf5"
    ),
}

THEME = {
    "name": "Ocean Professional",
    "primary": "#2563EB",
    "secondary": "#F59E0B",
    "accent": "#F59E0B",
    "success": "#F59E0B",
    "error": "#EF4444",
    "background": "#F9FAFB",
    "surface": "#FFFFFF",
    "text": "#111827",
    "gradient": "from-blue-500/10 to-gray-50",
}


def docs_routes(
    document: Callable[[], JSONObject], *, assets: str, theme: Mapping[str, str]
) -> list[Route]:
    """`GET /openapi.json`, `/docs` and `/redoc`.

    `document` makes the OpenAPI document at the first request.
    `assets` is the base URL of npm packages (`BASE/redoc@2.5.4/...`), or a path of this server.
    Another origin must send `access-control-allow-origin: *`, since browsers check the hash of no
    other file. `theme` has the colours primary, accent, error, background, surface and text.
    """
    base = assets.rstrip("/")
    document = cache(document)

    @cache
    def body() -> bytes:
        return orjson.dumps(document())

    @cache
    def page(name: str) -> Response:
        title = document()["info"]["title"]
        files = SWAGGER_UI if name == "try it out" else REDOC
        values = {**theme, "name": f"{title}: {name}", "title": title, "base": base}
        html = fill("docs.html", values).replace("<!--programs-->", program_tags(base, files))
        return page_response(html, docs_policy(html, base))

    async def openapi(request: Request) -> Response:
        """GET /openapi.json: the API of this server, as OpenAPI 3.1."""
        return Response(body(), media_type="application/json")

    async def docs(request: Request) -> Response:
        """GET /docs: the API reference, to try it out."""
        return page("try it out")

    async def redoc(request: Request) -> Response:
        """GET /redoc: the API reference, to read."""
        return page("read")

    return [Route("/openapi.json", openapi), Route("/docs", docs), Route("/redoc", redoc)]


def docs_policy(html: str, base: str) -> str:
    """A Content-Security-Policy for the inline script and the programs of the assets' origin.

    Swagger UI and Redoc make style elements and attributes, and Redoc a worker from a blob.
    """
    source = source_of(base)
    directives = [
        "default-src 'none'",
        f"script-src {inline_hashes(html, 'script')} {source}",
        f"style-src 'unsafe-inline' {source}",
        "worker-src blob:",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return "; ".join(directives)


def program_tags(base: str, files: Mapping[str, str]) -> str:
    """The elements that load these files, one a line, each with its hash."""
    return "\n".join(program_tag(f"{base}/{path}", digest) for path, digest in files.items())


def program_tag(url: str, digest: str) -> str:
    from html import escape

    attributes = f'"{escape(url)}" integrity="sha384-{digest}" crossorigin="anonymous"'
    if url.endswith(".css"):
        return f'<link rel="stylesheet" href={attributes}>'
    return f"<script defer src={attributes}></script>"
