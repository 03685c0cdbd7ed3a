"""Authentication: which owner a request belongs to, and which key goes to the upstream.

Does not know chats. Keys are compared in constant time, before any access to the store.
"""

import hmac
from collections.abc import Sequence

from rewrap.redaction import masked
from rewrap.server import keys
from rewrap.server.context import RequestContext
from rewrap.types import CLIENT_HEADERS, APIError, Headers

BEARER: Headers = [(b"www-authenticate", b"Bearer")]
NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth"
    " (i.e. Authorization: Bearer YOUR_KEY)."
)


CREDENTIALS = frozenset([b"authorization", b"api-key", b"cookie", b"proxy-authorization"])


class Authenticator:
    """The keys of API_KEYS, and those that SECRET_KEY signs. With neither, the server is open."""

    def __init__(
        self,
        api_keys: Sequence[str],
        secret_key: Sequence[str],
        revoked_keys: Sequence[str],
        forward_headers: Sequence[str] = (),
    ) -> None:
        """Raises ValueError for revoked keys that are neither keys nor ids."""
        self.keys = [key.encode() for key in api_keys]
        self.secret_key = secret_key
        self.revoked = keys.revoked_ids(revoked_keys)
        self.open = not self.keys and not self.secret_key
        names = list(forward_headers)
        if self.open:
            names += ["authorization", *CLIENT_HEADERS]
        self.forwarded = [(name.lower().encode(), name.lower()) for name in dict.fromkeys(names)]

    def identify(self, context: RequestContext) -> str | APIError:
        """The identity of a request: "user:NAME", "key:KEY", "open:KEY" or ""; an APIError 401 for a wrong key.

        On an open server any credential still tells its owner from others: it may be for the upstream.
        """
        authorization = context.header(b"authorization")
        scheme, _, token = authorization.partition(" ")
        # Blanks of HTTP alone: the last byte of a key in UTF-8 may be a blank of Latin-1.
        key = token.strip(" \t") if scheme.lower() == "bearer" else ""
        key = key or context.header(b"api-key")  # Azure's clients
        if self.open:
            credential = key or authorization  # Basic, or any other scheme
            return f"open:{credential}" if credential else ""
        if not key:
            return APIError(401, NO_KEY, headers=BEARER, reason="no key")
        presented = key.encode("latin-1")
        if any(hmac.compare_digest(presented, known) for known in self.keys):
            context.key = key
            return f"key:{key}"
        signed = keys.verify(self.secret_key, key, revoked=self.revoked)
        if signed:
            context.key = key
            return f"user:{signed.user}"
        message = f"Incorrect API key provided: {masked(key)}."
        return APIError(401, message, code="invalid_api_key", headers=BEARER)

    def mock_headers(self, context: RequestContext) -> dict[str, str]:
        """The headers that rules of the mock may look at: all but credentials."""
        return {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in context.request_headers.items()
            if name not in CREDENTIALS
        }

    def upstream_headers(self, context: RequestContext) -> dict[str, str]:
        """The client's headers that may go to the upstream.

        On an open server the client's key is meant for the upstream, and takes CLIENT_HEADERS along. Headers that
        FORWARD_HEADERS names always go.
        """
        headers = context.request_headers
        found = {
            text: headers[name].decode("latin-1")
            for name, text in self.forwarded
            if name in headers
        }
        if self.open and "authorization" not in found:
            key = context.header(b"api-key")
            if key:
                found["authorization"] = f"Bearer {key}"
        return found
