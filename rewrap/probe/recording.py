"""A request through a backend, with the answer as it came."""

import httpx

from rewrap.backends import ChatURL
from rewrap.probe.attempts import PROMPT, Attempt, Outcome
from rewrap.probe.reply_candidates import is_failure, json_values
from rewrap.types import APIError, ChatRequest, JSONObject, Limits, ResponseInfo
from rewrap.upstream.client import Client


class ProbeClient(Client):
    """Keeps the last answer, whole. It uses httpx's own transport, so that the request can be shown."""

    def __init__(self, seconds: float) -> None:
        super().__init__(httpx.AsyncHTTPTransport(), seconds)
        self.event_hooks = {"response": [self.keep]}
        self.response: httpx.Response | None = None
        self.requests = 0

    async def keep(self, response: httpx.Response) -> None:
        await response.aread()  # this is part of the request, and within its timeout
        self.response = response


def limits_of(seconds: float) -> Limits:
    return Limits(first_byte=seconds, stall=seconds, total=seconds, request=seconds)


async def ask(
    client: ProbeClient,
    backend: ChatURL,
    attempt: Attempt,
    model: str,
    *,
    stream: bool = False,
) -> Outcome:
    """Send the prompt through a backend of this client."""
    messages = [{"role": "user", "content": PROMPT}]
    payload: JSONObject = {"model": model, "messages": messages}
    if stream:
        payload["stream"] = True
    request = ChatRequest(model, messages, payload, stream=stream)
    client.response = None
    client.requests += 1
    try:
        deltas = [delta async for delta in backend.stream(request, ResponseInfo())]
    except APIError as error:
        return Outcome(attempt, [], error.reason, client.response)
    response = client.response
    failed = response is not None and any(map(is_failure, json_values(response.content)))
    if failed or not any(delta.content.strip() for delta in deltas):
        return Outcome(attempt, [], "no text", response)
    return Outcome(attempt, deltas, "", response)
