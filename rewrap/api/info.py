"""The routes about the server itself: models, and information for pages. Does not know backends."""

from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from rewrap import __version__
from rewrap.api.checks import MAX_MODEL_CHARACTERS
from rewrap.api.stored import JSONResponse
from rewrap.types import APIError, Backend, JSONObject, model_card, no_such_model

DESCRIPTION = "Any chat URL as an OpenAI API"
WEBSOCKET_NOTE = {
    "websocket": False,
    "message": "This version has no websockets: replies are streamed over HTTP.",
    "instead": {
        "POST /v1/chat/completions": 'with "stream": true: server-sent events, as the OpenAI SDKs read them',
        "POST /ask": "plain text in pieces, as the AI SDK's useChat reads it with streamProtocol 'text'",
    },
}

Cards = Callable[[Request], Awaitable[list[JSONObject]]]


class InfoRoutes:
    """`cards` gives the model cards for an admitted client, `public_cards` those of any client.

    `backend_of` gives the backend that a chat with a model would be served by. All raise APIError.
    """

    def __init__(
        self,
        cards: Cards,
        public_cards: Cards,
        backend_of: Callable[[str], Backend],
        backends: Sequence[str],
        theme: dict[str, str],
    ) -> None:
        self.cards = cards
        self.public_cards = public_cards
        self.backend_of = backend_of
        self.backends = backends
        self.theme = theme

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/models", self.models),
            Route("/models/{id:path}", self.model),
            Route("/info", self.info),
            Route("/docs/websocket", self.websocket_note),
        ]

    async def models(self, request: Request) -> Response:
        """GET /v1/models: the models of the backend."""
        return JSONResponse({"object": "list", "data": await self.cards(request)})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}: any model that a chat would be served for."""
        id = request.path_params["id"]
        for card in await self.cards(request):
            if card["id"] == id:
                return JSONResponse(card)
        if len(id) > MAX_MODEL_CHARACTERS or not id.isprintable():
            raise no_such_model(id)
        return JSONResponse(model_card(id, owned_by=self.backend_of(id).name))

    async def info(self, request: Request) -> Response:
        """GET /info: backends, models, and the theme of the pages."""
        try:
            cards = await self.public_cards(request)
        except APIError:
            cards = []
        document = {
            "name": "rewrap",
            "version": __version__,
            "description": DESCRIPTION,
            "backends": self.backends,
            "models": [card["id"] for card in cards],
            "theme": self.theme,
        }
        return JSONResponse(document)

    async def websocket_note(self, request: Request) -> Response:
        """GET /docs/websocket: what to use instead of websockets."""
        return JSONResponse(WEBSOCKET_NOTE)
