"""Serving: the socket, uvicorn's configuration, and the exit status.

Does not know the app.
"""

import logging
import os
import socket
import sys
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from rewrap.server.signals import hold_stop_signals
from rewrap.server.uvicorn_internals import check_version

DESCRIPTORS = 65_536  # a stream takes two


def serve_app(
    app: ASGIApp | str,
    *,
    host: str,
    port: int,
    workers: int,
    forwarded_allow_ips: str,
    keep_alive_seconds: float,
    fork: bool,
    announce: Callable[[str], None],
) -> None:
    """Serve until a signal, and exit. `app` is "module:name" for several workers; `announce` gets the address.

    `fork`: the workers may be forks of this process.
    """
    try:
        check_version()
    except ValueError as error:
        sys.exit(f"rewrap: {error}")
    from rewrap.server.protocol import Protocol  # fails to import with another uvicorn

    hold_stop_signals()
    raise_descriptor_limit()
    # A failed answer of /ask is cut on purpose, and has a log line of its own.
    logging.getLogger("uvicorn.error").addFilter(is_unexpected)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        workers=workers,
        http=Protocol,
        log_level="warning",
        log_config=None,  # uvicorn's lines go to the handler of this project
        access_log=False,
        server_header=False,
        forwarded_allow_ips=forwarded_allow_ips,
        timeout_keep_alive=keep_alive_seconds,  # type: ignore[arg-type]  # a float works as well
        ws="none",  # with `websockets` installed, uvicorn hangs on a bad handshake
    )
    sock = listening_socket(host, port, config.backlog)
    name = f"[{host}]" if ":" in host else host
    announce(f"http://{name}:{sock.getsockname()[1]}")
    if workers > 1:
        from rewrap.server.workers import serve_by_workers

        serve_by_workers(config, sock, fork=fork)
    else:
        uvicorn.Server(config).run(sockets=[sock])
    flush_log()
    sys.exit(0)


def is_unexpected(record: logging.LogRecord) -> bool:
    return "without completing" not in record.getMessage()


def raise_descriptor_limit() -> None:
    """Allow as many open files as the system does, up to DESCRIPTORS. Only Unix has such a limit."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, DESCRIPTORS)), hard))


def listening_socket(host: str, port: int, backlog: int) -> socket.socket:
    """A socket that listens before the address is announced: early clients wait and are not refused.

    Exits with one line if the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()  # all addresses, those of IPv4 too
    try:
        sock = socket.create_server(
            (host, port), family=family, backlog=backlog, dualstack_ipv6=both
        )
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        sys.exit(f"rewrap: HOST {host}, PORT {port}: {reason}")
    sock.set_inheritable(True)  # by the workers
    return sock


def flush_log() -> None:
    """Flush stderr. If its reader is gone, discard the rest: Python would exit with status 120."""
    try:
        if sys.stderr:
            sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
