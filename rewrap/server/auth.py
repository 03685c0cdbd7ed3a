"""Authentication: which owner a request belongs to, and which key goes to the upstream.

Does not know chats. Keys are compared in constant time, before any access to the store.
"""

import hmac
from collections.abc import Sequence
from hashlib import sha256

from rewrap.redaction import masked
from rewrap.server import keys
from rewrap.server.context import RequestContext
from rewrap.types import APIError, Headers

BEARER: Headers = [(b"www-authenticate", b"Bearer")]
NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth"
    " (i.e. Authorization: Bearer YOUR_KEY)."
)


class Authenticator:
    """The keys of API_KEYS, and those that SECRET_KEY signs. With neither, the server is open."""

    def __init__(
        self, api_keys: Sequence[str], secret_key: Sequence[str], revoked_keys: Sequence[str]
    ) -> None:
        """Raises ValueError for revoked keys that are neither keys nor ids."""
        self.keys = [key.encode() for key in api_keys]
        self.secret_key = secret_key
        self.revoked = keys.revoked_ids(revoked_keys)
        self.open = not self.keys and not self.secret_key

    def identify(self, context: RequestContext) -> str | APIError:
        """The identity of a request: "user:NAME", "key:KEY", "open:KEY" or ""; an APIError 401 for a wrong key.

        On an open server a key still tells its owner from others: it may be for the upstream.
        """
        scheme, _, token = context.header(b"authorization").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else ""
        key = key or context.header(b"api-key")  # Azure's clients
        if self.open:
            return f"open:{key}" if key else ""
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

    def upstream_authorization(self, context: RequestContext) -> str:
        """The client's own Authorization (or api-key), if it is not meant for this server; else ""."""
        if not self.open:
            return ""
        authorization = context.header(b"authorization")
        key = context.header(b"api-key")
        if not authorization and key:
            return f"Bearer {key}"
        return authorization


def owner_id(identity: str) -> str:
    """The owner of stored completions for an identity. The store sees no key."""
    kind, _, key = identity.partition(":")
    if kind not in ("key", "open"):
        return identity
    return f"{kind}:{sha256(key.encode('latin-1')).hexdigest()[:32]}"
