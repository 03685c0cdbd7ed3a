"""The client that the settings RECORD and REPLAY choose."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import httpx

from rewrap.upstream.recording.client import RecordingClient, ReplayClient
from rewrap.upstream.recording.library import Library
from rewrap.upstream.recording.matching import Matcher

log = logging.getLogger("rewrap")


class ClientSettings(Protocol):
    """The settings that choose a client and its upstream."""

    # fmt: off
    @property
    def record(self) -> str: ...
    @property
    def replay(self) -> str: ...
    @property
    def replay_speed(self) -> float: ...
    @property
    def replay_ignore(self) -> Sequence[str]: ...
    @property
    def replay_miss(self) -> str: ...
    @property
    def connect_timeout_seconds(self) -> float: ...
    @property
    def workers(self) -> int: ...
    @property
    def use_mock_api(self) -> bool: ...
    @property
    def config(self) -> str: ...
    @property
    def chat_url(self) -> str: ...
    @property
    def chat_key(self) -> str: ...
    @property
    def openai_api_base(self) -> str: ...
    @property
    def openai_api_key(self) -> str: ...
    @property
    def api_keys(self) -> Sequence[str]: ...
    @property
    def secret_key(self) -> Sequence[str]: ...
    # fmt: on


def recording_client(
    settings: ClientSettings, transport: httpx.AsyncBaseTransport
) -> RecordingClient:
    """Raises ValueError, in one line that names the setting."""
    name = "RECORD" if settings.record else "REPLAY"
    if settings.record and settings.replay:
        raise ValueError(
            "RECORD and REPLAY are both set: REPLAY_MISS=record adds to the recordings"
        )
    upstream = settings.config or settings.chat_url or settings.openai_api_base
    if settings.use_mock_api or not upstream:
        raise ValueError(
            f"{name} is set, and the mock answers: set CHAT_URL, OPENAI_API_BASE or CONFIG, too"
        )
    if settings.workers > 1:
        raise ValueError(f"{name} is set: WORKERS must be 1, so that sequences have one order")
    credentials = [settings.chat_key, settings.openai_api_key]
    credentials += [*settings.api_keys, *settings.secret_key]
    timeout = settings.connect_timeout_seconds
    folder = Path(settings.record or settings.replay)
    matcher = Matcher(settings.replay_ignore)
    if settings.record:
        make_folder(folder, name)
        log.info("RECORD: exchanges are written to %s", folder)
        library = Library(folder, matcher, overwrite=True)
        return RecordingClient(transport, timeout, library, credentials)
    records_misses = settings.replay_miss == "record"
    if records_misses:
        make_folder(folder, name)
    return ReplayClient(
        transport,
        timeout,
        loaded(folder, matcher, may_be_empty=records_misses),
        credentials,
        speed=settings.replay_speed,
        records_misses=records_misses,
    )


def make_folder(folder: Path, name: str) -> None:
    """Raises ValueError if no files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".rewrap.partial"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{name}: {folder}: {error.strerror}") from None


def loaded(folder: Path, matcher: Matcher, *, may_be_empty: bool) -> Library:
    """The recordings in a folder. Raises ValueError."""
    library = Library(folder, matcher, overwrite=False)
    try:
        library.load()
    except OSError as error:
        raise ValueError(f"REPLAY: {folder}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"REPLAY: {error}") from None
    if not library.recordings and not may_be_empty:
        raise ValueError(f"REPLAY: {folder} has no recordings")
    log.info("REPLAY: %d recordings in %s answer", len(library.recordings), folder)
    return library
