"""The constant parts of a backend's requests."""

from rewrap.types import Shape
from rewrap.upstream.client import Client

KEPT = 256  # URLs
KEPT_CHARACTERS = 512  # of a URL: it may contain the model, which the client chooses, or a prompt


class Targets:
    """Makes the constant part of the requests to each URL, and keeps it.

    `headers` are the backend's own. They override those of its shape, which override `agent`, the User-Agent of this program.
    A call raises httpx.InvalidURL or httpx.LocalProtocolError if no request can be sent.
    """

    def __init__(
        self,
        client: Client,
        shape: Shape,
        headers: dict[str, str],
        key: str,
        agent: dict[str, str],
    ) -> None:
        self.client = client
        self.shape = shape
        self.headers = headers
        self.key = key
        self.agent = agent
        self.kept: dict[tuple[str, bool], object] = {}

    def __call__(self, url: str, stream: bool) -> object:
        target = self.kept.get((url, stream))
        if target is not None:
            return target
        accept = "application/json, */*"
        if stream:
            accept = f"text/event-stream, {accept}"
        headers = self.agent | {"accept": accept}
        if self.shape.content_type:
            headers["content-type"] = self.shape.content_type
        headers |= self.shape.headers(self.key, stream) | self.headers
        target = self.client.target(self.shape.method, url, headers)
        if len(self.kept) < KEPT and len(url) < KEPT_CHARACTERS:
            self.kept[url, stream] = target
        return target
