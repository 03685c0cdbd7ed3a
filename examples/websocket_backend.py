"""A WebSocket API as a backend: pip install websockets, then python -m examples.websocket_backend, in the folder of main.py.

WS_URL is the address. It gets the last message as JSON, and answers in pieces: {"text": "..."} until {"done": true}.
"""

import json
import os
from collections.abc import AsyncIterator

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from rewrap import ChatRequest, create_app
from rewrap.types import APIError, text_of


async def over_websocket(request: ChatRequest) -> AsyncIterator[str]:
    prompt = text_of(request.messages[-1].get("content"))
    try:
        async with connect(os.environ.get("WS_URL", "ws://127.0.0.1:9000")) as socket:
            await socket.send(json.dumps({"prompt": prompt, "model": request.model}))
            async for message in socket:
                event = json.loads(message)
                if event.get("done"):
                    return
                yield event["text"]
    except (OSError, WebSocketException) as error:
        raise APIError(502, "The chat backend failed to answer.", type="upstream_error") from error


app = create_app(backend=over_websocket)

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app)
