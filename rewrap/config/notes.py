"""Lines for the log at the start: variables that are nearly settings, and settings without effect.

Does not log: main.py does.
"""

from collections.abc import Iterable
from dataclasses import fields

from rewrap.config.near_misses import nearest_setting
from rewrap.config.settings import GROUPS, Settings, known_variables


def start_notes(settings: Settings, names: Iterable[str]) -> list[str]:
    """All lines for these settings, and for an environment with these variables."""
    return [*misspelled_notes(names), *ignored_notes(settings)]


def misspelled_notes(names: Iterable[str]) -> list[str]:
    known = known_variables()
    notes: list[str] = []
    for name in names:
        setting = nearest_setting(name, known)
        if setting:
            notes.append(f"{name} is not a setting and has no effect; did you mean {setting}?")
    return notes


def ignored_notes(settings: Settings) -> list[str]:
    """A line for each setting that has no effect beside the others."""
    changed = {spec.name for spec in fields(settings) if is_set(settings, spec.name)}
    notes: list[str] = []

    def ignored(names: Iterable[str], reason: str) -> None:
        for name in names:
            if name in changed:
                notes.append(f"{name.upper()} has no effect: {reason}")
                changed.remove(name)

    chosen = upstream_setting(settings)
    upstreams = ("config", "chat_url", "openai_api_base")
    if chosen:
        ignored([name for name in upstreams if name != chosen], f"{chosen.upper()} is set")
    if chosen == "use_mock_api":
        ignored(("openai_api_key", "chat_key", "chat_shape", "chat_headers"), "the mock answers")
    if chosen in ("chat_url", "config"):
        ignored(("openai_api_key",), f"{chosen.upper()} is set")
    if not chosen:
        where = "OPENAI_API_BASE is not set. In a file .env, the key alone names OpenAI"
        ignored(("openai_api_key",), where)
    if chosen in ("chat_url", "openai_api_base"):
        mock = [name for name in GROUPS["mock"] if name != "use_mock_api"]
        ignored(mock, f"{chosen.upper()} is set, and the mock does not answer")
    if not settings.replay:
        ignored(("replay_miss", "replay_speed"), "REPLAY is not set")
    if not settings.replay and not settings.record:
        ignored(("replay_ignore",), "neither RECORD nor REPLAY is set")
    if not settings.secret_key:
        ignored(("revoked_keys",), "SECRET_KEY is not set")
    if not settings.metrics:
        ignored(("metrics_public",), "METRICS is not set")
    if not settings.rate_limit_per_minute:
        ignored(("rate_limit_store_url",), "RATE_LIMIT_PER_MINUTE is not set")
    return notes


def upstream_setting(settings: Settings) -> str:
    """The setting that decides which backend answers; "" if none does, and the mock answers."""
    for name in ("use_mock_api", "config", "chat_url", "openai_api_base"):
        if getattr(settings, name):
            return name
    return ""


def is_set(settings: Settings, name: str) -> bool:
    return bool(getattr(settings, name) != getattr(DEFAULTS, name))


DEFAULTS = Settings()
