"""The members of uvicorn that this project overrides or reads although uvicorn does not document them.

Any release of uvicorn may change them, so the start checks the version. Imports nothing of the project.
"""

import uvicorn

VERSION = "0.54"

# Methods that rewrap.server.protocol.Protocol overrides.
PROTOCOL_METHODS = {
    "_start_asgi_task",
    "connection_lost",
    "connection_made",
    "data_received",
    "on_body",
    "on_headers_complete",
    "on_message_complete",
    "pause_writing",
}
# Members of uvicorn's protocol that it uses.
PROTOCOL_ATTRIBUTES = {
    "_unset_keepalive_if_required",
    "cycle",
    "flow",
    "headers",
    "loop",
    "parser",
    "pipeline",
    "scope",
    "timeout_keep_alive_task",
    "transport",
    "url",
}
# Members of a request (uvicorn calls it a cycle) that it uses.
CYCLE_ATTRIBUTES = {
    "chunked_encoding",
    "default_headers",
    "disconnected",
    "expected_content_length",
    "keep_alive",
    "message_event",
    "more_body",
    "on_response",
    "response_complete",
    "response_started",
    "scope",
    "transport",
    "waiting_for_100_continue",
}
# Methods that rewrap.server.protocol.UnchunkedCycle overrides.
CYCLE_METHODS = {"run_asgi", "send"}
# Methods that rewrap.server.workers.Supervisor overrides.
SUPERVISOR_METHODS = {"handle_hup", "handle_signals", "join_all", "keep_subprocess_alive"}
# Members of the server that rewrap.server.signals uses.
SERVER_ATTRIBUTES = {"server_state", "should_exit"}


def check_version() -> None:
    """Raises ValueError, in one line, for a version of uvicorn with other internals."""
    installed = uvicorn.__version__
    if not installed.startswith(f"{VERSION}."):
        raise ValueError(
            f"uvicorn {installed} is installed, and this version needs uvicorn {VERSION}"
            f" (pip install 'uvicorn=={VERSION}.*')"
        )
