"""A backend of one's own: python -m examples.own_backend, from the folder of main.py."""

import asyncio
from collections.abc import AsyncIterator

from rewrap.main import create_app

from rewrap.types import ChatRequest, text_of


async def backwards(chat: ChatRequest) -> AsyncIterator[str]:
    """Says every word backwards, piece by piece; a plain function that returns a text would do as well."""
    for word in text_of(chat.messages[-1].get("content")).split():
        await asyncio.sleep(0.01)
        yield word[::-1] + " "


app = create_app(backend=backwards)

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app)
