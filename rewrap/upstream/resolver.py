"""Name look-ups: one at a time for each name, each in a thread of its own, cached for a short while.

asyncio's own look-ups share a few threads: names whose servers are silent hold all of them, and every other name waits.
Imports leaf files alone.
"""

import asyncio
import ipaddress
import socket
import threading
from contextlib import suppress

from rewrap.structs import struct

FAILED_SECONDS = 1.0  # a failure is cached for so long

LookupOutcome = list[str] | OSError


@struct(slots=True)
class Lookup:
    """The outcome of one look-up, and the loop time until which it is used."""

    outcome: asyncio.Future[LookupOutcome]
    expires: float = float("inf")  # while the look-up runs


class Resolver:
    """Resolves names to addresses, in the order of the system's resolver. Belongs to one event loop.

    `seconds` is the time for which addresses are cached. The number of threads is that of the names that are looked up at
    the same time: names come from the configuration, never from a client.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.loop = loop
        self.seconds = seconds
        self.answers: dict[str, Lookup] = {}

    async def addresses(self, host: str) -> list[str]:
        """The addresses of a name; an address stands for itself. Raises OSError.

        The caller bounds the time. A look-up outlives the requests that wait for it, and serves the next ones.
        """
        if is_address(host):
            return [host]
        answer = self.answers.get(host)
        if answer is None or self.loop.time() >= answer.expires:
            answer = self.look_up(host)
        outcome = await asyncio.shield(answer.outcome)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    def forget(self, host: str) -> None:
        """Look a name up again next time: no address of it can be reached."""
        answer = self.answers.get(host)
        if answer is not None and answer.outcome.done():
            del self.answers[host]

    def look_up(self, host: str) -> Lookup:
        answer = Lookup(self.loop.create_future())
        self.answers[host] = answer

        def finish(outcome: LookupOutcome) -> None:
            failed = isinstance(outcome, OSError)
            answer.expires = self.loop.time() + (FAILED_SECONDS if failed else self.seconds)
            answer.outcome.set_result(outcome)

        def run() -> None:
            outcome = system_addresses(host)
            with suppress(RuntimeError):  # the loop may be closed by now
                self.loop.call_soon_threadsafe(finish, outcome)

        # A daemon: the end of the process does not wait for a silent server.
        threading.Thread(target=run, name=f"resolve {host}", daemon=True).start()
        return answer


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def system_addresses(host: str) -> LookupOutcome:
    """The addresses that the system's resolver finds. Blocks for as long as its servers are silent."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    except UnicodeError as error:  # a label that is empty or too long
        return OSError(str(error))
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
