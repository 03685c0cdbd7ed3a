"""The command line: `rewrap [serve|check|key|probe] ...`. Each command imports what it needs."""

import gc
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewrap.config.flags import Arguments
    from rewrap.main import Rewrap

log = logging.getLogger("rewrap")


def check() -> int:
    """`rewrap check`: print the backends of a configuration. The exit status is 2 if it is wrong."""
    from rewrap.config.settings import Settings

    try:
        settings = Settings.load()
        from rewrap.main import create_app

        app = create_app(settings)
    except ValueError as error:
        print(f"rewrap: {error}", file=sys.stderr)
        return 2
    print(f"rewrap: {app.gateway.summary()}")
    for note in app.gateway.notes(os.environ):
        print(f"rewrap: {note}", file=sys.stderr)
    return 0


def serve() -> None:
    """Serve until a signal. Logs one line with the address and the backends."""
    gc.disable()  # collections during the imports find nothing and take 4 % of the start
    from rewrap.config.settings import Settings
    from rewrap.main import load_app
    from rewrap.server.metrics_folder import metrics_folder

    gc.freeze()
    gc.enable()
    try:
        settings = Settings.load()
    except ValueError as error:
        sys.exit(f"rewrap: {error}")
    shared = settings.metrics and settings.workers > 1
    with metrics_folder() if shared else nullcontext():
        serve_loaded(load_app(settings))


def serve_loaded(app: "Rewrap") -> None:
    """Serve an app until a signal, with the processes that its settings ask for."""
    from rewrap.server.serve import serve_app
    from rewrap.urls import is_loopback

    settings = app.settings

    def announce(address: str) -> None:
        app.announce(address)
        if app.gateway.auth.open and not is_loopback(settings.host):
            log.warning(
                "HOST is %s, and neither API_KEYS nor SECRET_KEY is set: every client that reaches it may chat.",
                settings.host,
            )

    serve_app(
        app if settings.workers == 1 else "rewrap.main:app",
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        # A module of hooks may have threads and connections, which a fork must not copy.
        fork=not settings.hooks,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        keep_alive_seconds=settings.keep_alive_seconds,
        announce=announce,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: `rewrap [serve|check|key|probe] ...`; gives the exit status."""
    # httpx imports its own command line where rich is installed: 0.1 s. None prevents that import.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    words = sys.argv[1:] if argv is None else argv
    if not words:
        with closed_pipes_ignored():
            serve()
        return 0
    from rewrap.config.flags import UsageError, parse_arguments

    try:
        arguments = parse_arguments(words)
    except UsageError as error:
        print(f"rewrap: {error}", file=sys.stderr)
        return 2
    os.environ |= arguments.settings  # worker processes read their settings from the environment
    with closed_pipes_ignored():
        return run_command(arguments)


def run_command(arguments: "Arguments") -> int:
    match arguments.command:
        case "help" | "version":
            print(arguments.text)
        case "check":
            return check()
        case "key":
            from rewrap.config.settings import Settings
            from rewrap.server.keys import key_command

            return key_command(arguments.rest, lambda: Settings.load().secret_key)
        case "probe":
            from rewrap.probe import probe_command

            return probe_command(arguments.rest)
        case _:
            serve()
    return 0


@contextmanager
def closed_pipes_ignored() -> Iterator[None]:
    """End quietly if the reader of the output has left, as in `rewrap --help | head`.

    Without it, Python writes a traceback when it flushes the output at its exit.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
