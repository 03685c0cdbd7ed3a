"""Your own function as a backend: python -m examples.own_backend, in the folder of main.py.

Then http://127.0.0.1:8000/v1/chat/completions answers with it.
"""

import asyncio
import os
from collections.abc import AsyncIterator

from rewrap import ChatRequest, create_app
from rewrap.types import text_of


async def backwards(request: ChatRequest) -> AsyncIterator[str]:
    """Reverse each word of the last message. A plain function that returns a string works as well."""
    for word in text_of(request.messages[-1].get("content")).split():
        await asyncio.sleep(0.01)
        yield word[::-1] + " "


app = create_app(backend=backwards)

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
