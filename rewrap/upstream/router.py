"""Several backends as one: the model's name picks a backend, and fallbacks stand in if it fails.

Imports types and leaf files.
"""

import json
import logging
from collections.abc import Hashable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import field, replace
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from rewrap import large_json
from rewrap.large_json import LARGE_BYTES
from rewrap.memory import reserved
from rewrap.redaction import safe_address
from rewrap.regex import regex
from rewrap.structs import struct
from rewrap.threads import apart
from rewrap.types import (
    NO_HEADERS,
    APIError,
    Backend,
    ChatRequest,
    Checks,
    Deltas,
    JSONObject,
    ResponseInfo,
    checks_of,
    model_card,
    no_such_model,
)

log = logging.getLogger("rewrap")

GLOB = regex(r"[*?]")
MODEL = b'"model"'
ESCAPED_LETTER = regex(rb"\\u00[67]")


@struct(frozen=True, slots=True)
class BackendRow:
    """One backend, the patterns of the model names that it serves, and the names of its fallbacks."""

    backend: Backend
    patterns: Sequence[str] = ("*",)
    fallbacks: Sequence[str] = field(default=())


class ModelRouter:
    """Picks a backend by the model's name. An exact name wins over a pattern, a longer pattern over a shorter one."""

    name = "several"

    def __init__(self, rows: Sequence[BackendRow]) -> None:
        self.rows = rows
        by_name = {row.backend.name: row.backend for row in rows}
        self.fallbacks = {
            row.backend.name: [by_name[name] for name in row.fallbacks] for row in rows
        }

    def pick(self, model: str) -> Backend | None:
        """The backend whose pattern matches best; None if no pattern matches."""
        best: Backend | None = None
        best_rank = (False, -1)
        for row in self.rows:
            for pattern in row.patterns:
                if not fnmatchcase(model, pattern.replace("[", "[[]")):
                    continue
                rank = (pattern == model, len(pattern))
                if rank > best_rank:
                    best_rank = rank
                    best = row.backend
        return best

    @property
    def default_model(self) -> str:
        """The model of a request without one: "default" if a pattern takes it, else the first pattern in the file."""
        patterns = [pattern for row in self.rows for pattern in row.patterns]
        if self.pick("default") or not patterns:
            return "default"
        return patterns[0]

    @property
    def model_names(self) -> list[str]:
        """The patterns that are names of models."""
        patterns = [pattern for row in self.rows for pattern in row.patterns]
        return [pattern for pattern in patterns if not GLOB.search(pattern)]

    @property
    def summary(self) -> str:
        """Each backend with its address and its patterns, for the line at the start."""
        rows: list[str] = []
        for row in self.rows:
            url = getattr(row.backend, "url", "")
            place = f" at {safe_address(url)}" if url else ""
            rows.append(f"{row.backend.name}{place} for {', '.join(row.patterns)}")
        return "; ".join(rows)

    @property
    def notes(self) -> list[str]:
        """A line for each backend that some or all of its model names do not reach, unless it is a fallback."""
        fallbacks = {backend.name for row in self.fallbacks.values() for backend in row}
        notes: list[str] = []
        for row in self.rows:
            if row.backend.name in fallbacks:
                continue
            lost = [pattern for pattern in row.patterns if self.pick(pattern) is not row.backend]
            if lost and len(lost) == len(row.patterns):
                notes.append(self.unreached_note(row))
            elif lost:
                notes.append(
                    f"backend {row.backend.name!r} does not get its models {', '.join(lost)}: "
                    f"they go to {self.owners(lost)}, earlier in the file"
                )
        return notes

    def unreached_note(self, row: BackendRow) -> str:
        name = row.backend.name
        models = f"its models ({', '.join(row.patterns)}) go"
        if set(row.patterns) == {"*"}:
            models = "every model goes"
        return (
            f"no model name reaches backend {name!r}: {models} to {self.owners(row.patterns)}, "
            f"earlier in the file; give {name!r} models = [{json.dumps(name)}], "
            "or name it in fallbacks"
        )

    def owners(self, patterns: Sequence[str]) -> str:
        """The names of the backends that get these models."""
        picked = [self.pick(pattern) for pattern in patterns]
        return ", ".join(dict.fromkeys(repr(backend.name) for backend in picked if backend))

    def checks(self, model: str) -> Checks:
        """The closest checks of the backends that may answer."""
        picked = self.pick(model)
        if picked is None:
            return Checks.ROUTING
        found = checks_of(picked)(model)
        for backend in self.fallbacks[picked.name]:
            found = found.or_closer(checks_of(backend)(model))
        return found

    async def models(self, client_headers: Mapping[str, str]) -> list[JSONObject]:
        """The names in the file, and those names of each backend's list that it serves. Raises APIError if there are none."""
        cards: dict[str, JSONObject] = {}
        failure: APIError | None = None
        for row in self.rows:
            names = [pattern for pattern in row.patterns if not GLOB.search(pattern)]
            for name in names:
                cards.setdefault(name, model_card(name, owned_by=row.backend.name))
            if len(names) == len(row.patterns):
                continue
            try:
                listed = await row.backend.models(client_headers)
            except APIError as error:
                log.warning("backend %s: no list of models (%s)", row.backend.name, error.reason)
                failure = error
                continue
            for card in listed:
                if self.pick(card["id"]) is row.backend:
                    cards.setdefault(card["id"], card)
        if failure and not cards:
            raise failure
        return list(cards.values())

    async def stream(self, request: ChatRequest, info: ResponseInfo) -> Deltas:
        """The reply of the first backend that does not fail before its first Delta. Raises APIError."""
        picked = self.pick(request.model)
        if picked is None:
            raise no_such_model(request.model)
        await apart(check_one_model, request.body)
        backends = [picked, *self.fallbacks[picked.name]]
        kept: ChatRequest | None = None
        for backend in backends:
            if kept is not None:
                request = await apart(unpacked, kept)
            info.backend = backend.name
            info.headers = []
            info.usage = None
            if request.client_headers and backend_origin(backend) != backend_origin(picked):
                request = replace(
                    request, client_headers=NO_HEADERS
                )  # they are for the first provider
            reply = backend.stream(request, info)
            kept = None if backend is backends[-1] else packed(request)
            del request
            async with aclosing(reply) as deltas:
                try:
                    first = await anext(deltas, None)
                except APIError as error:
                    if kept is None or not can_fall_back(error):
                        raise
                    log.warning(
                        "backend %s failed (%s): next is a fallback", backend.name, error.reason
                    )
                    continue
                del kept
                if first is not None:
                    yield first
                async for delta in deltas:
                    yield delta
                return


def check_one_model(body: bytes) -> None:
    """Raises APIError 400 if a body has two members `model`: the upstream might take the other one."""
    first = body.find(MODEL)
    if body.find(MODEL, first + 1) < 0 and ESCAPED_LETTER.search(body) is None:
        return
    # Escapes may spell the name as well, and it may stand deeper: decode it once more, names alone.
    try:
        names = json.loads(body, object_pairs_hook=lambda pairs: [name for name, _ in pairs])
    except RecursionError:
        raise APIError(400, "The request is nested too deeply.") from None
    if names.count("model") > 1:
        raise APIError(400, "The member 'model' occurs twice in the request.", param="model")


def packed(request: ChatRequest) -> ChatRequest:
    """A request for a fallback. Of a large one the bytes alone are kept: its decoded form takes many times their memory."""
    if reserved() <= LARGE_BYTES or not request.body:
        return request
    return replace(request, messages=[], payload={})


def unpacked(request: ChatRequest) -> ChatRequest:
    if request.payload:
        return request
    payload = large_json.loads_large(request.body)
    assert isinstance(payload, dict)  # it was decoded before
    return replace(request, messages=payload["messages"], payload=payload)


def can_fall_back(error: APIError) -> bool:
    """Whether another backend may succeed."""
    if error.status in (402, 429) or error.status >= 500:
        return True
    code = (error.error or {}).get("code", error.code)
    return error.status == 404 and code == "model_not_found"


def backend_origin(backend: Backend) -> Hashable:
    """The scheme and host of a backend; the backend itself if it has no address."""
    url = getattr(backend, "url", "")
    if not url:
        return id(backend)
    return urlsplit(url)[:2]
