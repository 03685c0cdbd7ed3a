"""MOCK_ANY_ID: the mock answers as a server does that is made from OpenAI's specification alone.

The generated tests of OpenAI's SDKs expect that server: every id names an object, nothing that the
specification calls optional is missing, and vectors are lists of numbers. A stored object with the
id comes first. Does not know backends, nor how a request is authenticated.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rewrap.api.answers import LocalEmbeddings
from rewrap.api.chat import completion
from rewrap.api.parts import Parts
from rewrap.api.requests import parse_object
from rewrap.api.responses.rendering import ResponseEvents
from rewrap.api.responses.request import UNSUPPORTED, parse_responses, typed_items
from rewrap.api.responses.routes import ResponseRoutes
from rewrap.api.responses.stored import item_list, item_page
from rewrap.api.responses.surface import ResponsesSurface
from rewrap.api.stored import JSONResponse
from rewrap.api.surfaces import Incoming, Turn
from rewrap.storage.base import Filter, Observer, Page, Store, message_body
from rewrap.types import ChatRequest, Delta, JSONObject, PassedRequest, ResponseInfo, dumps

MODEL = "mock-gpt-model"
PROMPT = "Hello"
REPLY = "This object stands for every id."
EMPTY = Page([], [], False)


def sample_deltas() -> list[Delta]:
    return [Delta(REPLY), Delta(finish_reason="stop")]


def sample_completion(id: str, metadata: Mapping[str, str]) -> JSONObject:
    info = ResponseInfo(id=id, created=int(time.time()), model=MODEL)
    return completion(info, sample_deltas()) | {"metadata": dict(metadata)}


def sample_response(id: str) -> JSONObject:
    """A record as the store of responses has it."""
    chat, translation = parse_responses({"input": PROMPT})
    request = ChatRequest(MODEL, chat["messages"], chat)
    info = ResponseInfo(created=int(time.time()), model=MODEL)
    response = ResponseEvents(translation, request, info).document(sample_deltas())
    response["id"] = id
    items = typed_items(translation.items, translation.hex)
    return {"id": id, "response": response, "input_items": items}


class AnyIdStore(Store):
    """Another store, in which an object with any id is found."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner.max_age_days)
        self.inner = inner

    async def open(self) -> None:
        await self.inner.open()

    async def close(self) -> None:
        await self.inner.close()

    def observe_with(self, observe: Observer) -> None:
        self.inner.observe_with(observe)

    async def ping(self) -> None:
        await self.inner.ping()

    async def put(
        self,
        completion: JSONObject,
        messages: Sequence[JSONObject],
        *,
        owner: str,
        title: str | None = None,
        continues: bool = False,
    ) -> None:
        known = await self.inner.get(owner, completion["id"])
        goes_on = continues and known is not None
        await self.inner.put(completion, messages, owner=owner, title=title, continues=goes_on)

    async def get(self, owner: str, id: str) -> bytes | None:
        return await self.inner.get(owner, id) or dumps(sample_completion(id, {}))

    async def update(self, owner: str, id: str, metadata: Mapping[str, str]) -> bytes | None:
        found = await self.inner.update(owner, id, metadata)
        return found or dumps(sample_completion(id, metadata))

    async def delete(self, owner: str, id: str) -> bool:
        await self.inner.delete(owner, id)
        return True

    async def messages(
        self, owner: str, id: str, *, after: str | None = None, limit: int = 20, order: str = "asc"
    ) -> Page | None:
        try:
            return await super().messages(owner, id, after=after, limit=limit, order=order)
        except LookupError:
            return EMPTY

    async def history(self, owner: str, id: str, max_bytes: int) -> Sequence[bytes] | None:
        found = await self.inner.history(owner, id, max_bytes)
        if found is None:
            return [sample_message()]
        return found

    async def put_response(self, owner: str, id: str, document: bytes, created: int) -> None:
        await self.inner.put_response(owner, id, document, created)

    async def get_response(self, owner: str, id: str) -> bytes | None:
        return await self.inner.get_response(owner, id) or dumps(sample_response(id))

    async def delete_response(self, owner: str, id: str) -> bool:
        await self.inner.delete_response(owner, id)
        return True

    async def find_page(
        self, owner: str, wanted: Filter, after: str | None, limit: int, up: bool
    ) -> Page:
        try:
            return await self.inner.find_page(owner, wanted, after, limit, up)
        except LookupError:
            return EMPTY

    async def count_messages(self, owner: str, id: str) -> int | None:
        count = await self.inner.count_messages(owner, id)
        if count is None:
            return 1
        return count

    async def message_bodies(self, owner: str, id: str, numbers: range) -> Sequence[bytes]:
        if await self.inner.count_messages(owner, id) is None:
            return [sample_message()]
        return await self.inner.message_bodies(owner, id, numbers)

    async def sweep(self) -> bool:
        return await self.inner.sweep()


def sample_message() -> bytes:
    return message_body({"role": "assistant", "content": REPLY})


def optional_input(payload: JSONObject) -> JSONObject:
    """A Responses request without the parameters that are refused, and with an input."""
    kept = {name: value for name, value in payload.items() if name not in UNSUPPORTED}
    if "messages" not in kept:
        kept.setdefault("input", PROMPT)
    return kept


class AnyIdSurface(ResponsesSurface):
    """POST /v1/responses without an input, in the background, or with a conversation."""

    async def parse(self, incoming: Incoming) -> Turn:
        payload = optional_input(parse_object(incoming.body))
        return await super().parse(replace(incoming, body=dumps(payload), values=None))


class AnyIdRoutes(ResponseRoutes):
    """The routes of responses that need a state or an input, and the deletion of a model."""

    def routes(self) -> list[Route]:
        deletion = Route("/models/{id:path}", self.delete_model, methods=["DELETE"])
        return [*super().routes(), deletion]

    def parse(self, body: bytes) -> JSONObject:
        return optional_input(super().parse(body))

    async def cancel(self, request: Request) -> Response:
        """POST /v1/responses/{id}/cancel: the response."""
        owner = await self.owner(request)
        return JSONResponse(await self.stored().response(owner, request.path_params["id"]))

    async def input_items(self, request: Request) -> Response:
        """GET /v1/responses/{id}/input_items: from the first, whatever the page is."""
        owner = await self.owner(request)
        record = await self.stored().find(owner, request.path_params["id"])
        return JSONResponse(item_list(record["input_items"], item_page({})))

    async def compact(self, request: Request) -> Response:
        """POST /v1/responses/compact: the reply that stands for all."""
        await self.owner(request)
        response = sample_response("resp_compacted")["response"]
        members = ("id", "created_at", "output", "usage")
        kept = {name: response[name] for name in members}
        return JSONResponse(kept | {"object": "response.compaction"})

    async def delete_model(self, request: Request) -> Response:
        """DELETE /v1/models/{id}: `{"deleted": true}`."""
        await self.owner(request)
        id = request.path_params["id"]
        return JSONResponse({"id": id, "object": "model", "deleted": True})


class AnyIdEmbeddings(LocalEmbeddings):
    """Embeddings that are always lists of numbers: SDKs with strict validation reject base64."""

    async def __call__(self, passed: PassedRequest, info: ResponseInfo) -> JSONObject:
        assert isinstance(passed.body, bytes)
        payload = parse_object(passed.body) | {"encoding_format": "float"}
        # struct(slots=True) makes another class, which super() without arguments does not know.
        return await LocalEmbeddings.__call__(self, replace(passed, body=dumps(payload)), info)


PARTS = Parts(AnyIdStore, AnyIdSurface, AnyIdRoutes, AnyIdEmbeddings)
