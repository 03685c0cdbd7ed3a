"""Pages for browsers: the chat at `/` and `/ui`, the favicon, and the page for unknown addresses.

Each page is one file in this folder, with `{{name}}` where a value goes. A file is read at its
first request: the start costs nothing. Imports leaf files alone: the caller passes the URL of
the assets, the colours of the theme, and the handler that answers API clients at `/`.
"""

from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from rewrap.regex import regex

Handler = Callable[[Request], Awaitable[Response]]

PLACEHOLDER = regex(r"\{\{(\w+)\}\}")
HTML_TYPES = frozenset(["text/html", "application/xhtml+xml"])
OTHER_TYPES = frozenset(["application/json", "application/*", "*/*"])
ICON_HEADERS = {"cache-control": "max-age=86400"}
PAGE_HEADERS = {
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
}


def page_routes(assets_url: str, theme: Mapping[str, str], health: Handler) -> list[Route]:
    """`GET /`, `/ui`, `/favicon.svg` and `/favicon.ico`.

    `assets_url` is the base URL of npm packages (`BASE/marked@18.2.1/...`), or a path of this
    server. Another origin must send `access-control-allow-origin`, since browsers check the hash of
    no other file. `theme` has the colours primary, accent, error, background, surface and text, as
    CSS values. `health` answers at `/` where the client prefers JSON.
    """

    @cache
    def chat_page(route: str) -> Response:
        values = {**theme, "assets": assets_url.rstrip("/"), "route": route}
        html = fill("chat.html", values)
        return page_response(html, content_security_policy(html, assets_url))

    async def home(request: Request) -> Response:
        """GET /: the chat page for browsers, the health answer for API clients."""
        if prefers_html(request.headers.get("accept", "")):
            return chat_page("home")
        response = await health(request)
        response.headers["vary"] = "Accept"  # a cache must not give a browser's page to a client
        return response

    async def ui(request: Request) -> Response:
        """GET /ui: the chat page."""
        return chat_page("ui")

    async def favicon(request: Request) -> Response:
        """GET /favicon.svg and GET /favicon.ico: the icon, as SVG."""
        return Response(read("favicon.svg"), media_type="image/svg+xml", headers=ICON_HEADERS)

    return [
        Route("/", home),
        Route("/ui", ui),
        Route("/favicon.svg", favicon),
        Route("/favicon.ico", favicon),
    ]


def not_found_page(accept: str, path: str, home: str, theme: Mapping[str, str]) -> Response | None:
    """A 404 in HTML; None if the Accept header is not a browser's.

    `path` is the unknown path, `home` that of the chat page, ending in `/`.
    """
    if not prefers_html(accept):
        return None
    html = fill("404.html", {**theme, "path": path[:200], "home": home})
    return page_response(html, content_security_policy(html), status=404)


def prefers_html(accept: str) -> bool:
    """Whether an Accept header names HTML before JSON or anything, as browsers do.

    SDKs and curl do not. The order decides and weights (`;q=`) do not: every browser lists
    `text/html` first.
    """
    for item in accept.lower().split(","):
        media_type = item.partition(";")[0].strip()
        if media_type in HTML_TYPES:
            return True
        if media_type in OTHER_TYPES:
            return False
    return False


def content_security_policy(html: str, assets_url: str = "") -> str:
    """A policy that runs the inline scripts of this page and the scripts that those load.

    A script that a reply smuggles in has no hash here. The page connects to no other origin, and no
    image comes from one, so a reply cannot send the chat elsewhere.
    """
    scripts = "'none'"
    if hashes := inline_hashes(html, "script"):
        # 'strict-dynamic' trusts the libraries that the script loads, and makes browsers that know
        # it ignore the origin: on a public CDN, anybody can put a script there.
        scripts = f"{hashes} 'strict-dynamic' {source_of(assets_url)}"
    directives = [
        "default-src 'none'",
        f"script-src {scripts}",
        f"style-src {inline_hashes(html, 'style')}",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return "; ".join(directives)


def inline_hashes(html: str, tag: str) -> str:
    """The CSP sources of all inline elements with this tag: `'sha256-…' 'sha256-…'`."""
    from rewrap.web.inline_elements import InlineElements

    texts = InlineElements(html).texts[tag]
    digests = [b64encode(sha256(text.encode()).digest()).decode() for text in texts if text]
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def source_of(url: str) -> str:
    """The origin of a URL as a CSP source; a path belongs to this server."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else "'self'"


def fill(name: str, values: Mapping[str, str]) -> str:
    """A file of this folder with its placeholders replaced by escaped values.

    `{{icon}}` is the favicon, as a data URL: a relative one would depend on the page's address.
    Raises KeyError for a placeholder without a value.
    """
    from html import escape

    known = {**values, "icon": f"data:image/svg+xml,{quote(read('favicon.svg'))}"}
    return PLACEHOLDER.sub(lambda match: escape(known[match[1]]), read(name))


@cache
def read(name: str) -> str:
    """A file of this folder."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def page_response(html: str, policy: str, status: int = 200) -> Response:
    """A page with its Content-Security-Policy."""
    headers = PAGE_HEADERS | {"content-security-policy": policy, "vary": "Accept"}
    return HTMLResponse(html, status, headers)
