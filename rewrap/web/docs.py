"""The document for programs and for people: /openapi.json, /docs (Swagger UI, to try it out), /redoc (Redoc, to read).

The two pages (docs.html) fetch their programs when somebody opens them, from a CDN or from a mirror of it; what comes must have
the hash that stands here, and where it does not come, the page says so. Does not know what the document says.
"""

from base64 import b64encode
from hashlib import sha256
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import urlsplit

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# Files of npm packages and their SHA-384: with another version goes another hash.
SWAGGER_UI = {
    "swagger-ui-dist@5.33.1/swagger-ui.css": "Ov4/wv3j2bmct8cDc5X4ngJZohVPzEmc6uDPH8WeljUxO5vtoykvMEfbu9Vh6RaW",
    "swagger-ui-dist@5.33.1/swagger-ui-bundle.js": "ZPehFMQommnnuaZ4rpxgkgTT2DKFVp4hZC/7pLit+9Lek9T1YGSo23eHFbvNkXkw",
}
REDOC = {
    "redoc@2.5.4/bundles/redoc.standalone.js": "w447zOpYfw/1Tv/5AK9NfHTlQIqE3RVR6KY62jCyy9zNDgO64cMwGGP1Fj0zJVf5",
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


def docs_routes(document: dict[str, Any], *, assets: str, theme: dict[str, str]) -> list[Route]:
    """The three routes. `assets` is the base URL of npm packages (`BASE/redoc@2.5.4/...`), or a path of this server.

    Another origin must allow this one (`access-control-allow-origin: *`): browsers check the hash of no other file.
    `theme` has the colours primary, accent, error, background, surface and text.
    """
    whole, title = orjson.dumps(document), document["info"]["title"]
    swagger_ui = page(f"{title}: try it out", SWAGGER_UI, title, assets.rstrip("/"), theme)
    redoc = page(f"{title}: read", REDOC, title, assets.rstrip("/"), theme)

    async def openapi(request: Request) -> Response:
        """GET /openapi.json: what this server offers, as OpenAPI 3.1."""
        return Response(whole, media_type="application/json")

    async def docs(request: Request) -> Response:
        """GET /docs: the same, to try it out."""
        return swagger_ui

    async def read(request: Request) -> Response:
        """GET /redoc: the same, to read."""
        return redoc

    return [Route("/openapi.json", openapi), Route("/docs", docs), Route("/redoc", read)]


def page(
    name: str, files: dict[str, str], title: str, base: str, theme: dict[str, str]
) -> Response:
    """docs.html with these files. Its policy lets in what the assets' origin sends, and the one script that stands in it."""
    tags = "\n".join(tag(f"{base}/{path}", digest) for path, digest in files.items())
    told = {"name": escape(name), "title": escape(title), "base": escape(base)}
    html = Template(Path(__file__).with_suffix(".html").read_text()).substitute(
        theme | told, assets=tags
    )
    script = html.partition("<script>")[2].partition("</script>")[0]
    own = b64encode(sha256(script.encode()).digest()).decode()
    url = urlsplit(base)
    origin = f"{url.scheme}://{url.netloc}" if url.netloc else "'self'"
    policy = (
        f"default-src 'none'; script-src 'sha256-{own}' {origin}; style-src 'unsafe-inline' {origin}; worker-src blob:; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Response(html, media_type="text/html", headers={"content-security-policy": policy})


def tag(url: str, digest: str) -> str:
    checked = f'"{escape(url)}" integrity="sha384-{digest}" crossorigin="anonymous"'
    return (
        f"<script defer src={checked}></script>"
        if url.endswith(".js")
        else f'<link rel="stylesheet" href={checked}>'
    )
