"""Compressed bodies of requests: inflated in steps, bounded in size. Imports types and the budget of memory."""

import asyncio
import zlib

from rewrap.large_json import MAX_VALUES
from rewrap.memory import reserve_body
from rewrap.types import APIError

STEP_BYTES = 2**18  # inflated before other requests have their turn
GZIP = zlib.MAX_WBITS | 16
ZLIB = zlib.MAX_WBITS
RAW_DEFLATE = -zlib.MAX_WBITS
ENCODINGS = ("gzip", "x-gzip", "deflate")
UNCOMPRESSED = ("", "identity")


def check_encoding(encoding: str) -> bool:
    """Whether a body with this Content-Encoding is compressed. Raises APIError 415 for one that is not supported."""
    if encoding in UNCOMPRESSED:
        return False
    if encoding in ENCODINGS:
        return True
    message = "This server reads bodies without compression, or with gzip or deflate."
    headers = [(b"accept-encoding", b"gzip, deflate")]  # RFC 9110, 12.5.3
    raise APIError(415, message, headers=headers, reason="unknown encoding")


async def inflated(body: bytes, encoding: str, maximum: int) -> bytes:
    """The body without its compression. Raises APIError: 400 if it is broken, 413 above `maximum` bytes, 503."""
    inflate = zlib.decompressobj(window_bits(body, encoding))
    parts: list[bytes] = []
    size = 0
    rest = body
    while not inflate.eof:
        try:
            part = inflate.decompress(rest, STEP_BYTES)
        except zlib.error:
            raise broken() from None
        rest = inflate.unconsumed_tail
        if not part and not rest and not inflate.eof:
            raise broken()  # it ends too early
        size += len(part)
        if size > maximum:
            raise body_too_large(maximum)
        reserve_body(len(part))
        parts.append(part)
        await asyncio.sleep(0)
    if inflate.unused_data:
        raise broken()
    return b"".join(parts)


def window_bits(body: bytes, encoding: str) -> int:
    """zlib's parameter for an encoding. Some clients send `deflate` without zlib's header (RFC 9110, 8.4.1.2)."""
    if encoding != "deflate":
        return GZIP
    has_header = body[:1] == b"\x78" and int.from_bytes(body[:2]) % 31 == 0
    return ZLIB if has_header else RAW_DEFLATE


def broken() -> APIError:
    return APIError(400, "The compression of the body is broken.", reason="broken compression")


def body_too_large(maximum: int) -> APIError:
    message = f"The request is too large: this server takes {maximum} bytes at most."
    return APIError(413, message)


def too_many_values() -> APIError:
    message = f"The request has too many JSON values: this server takes {MAX_VALUES} at most."
    return APIError(413, message, reason="too many values")
