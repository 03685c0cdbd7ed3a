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
    "on_header",
    "on_headers_complete",
    "on_message_complete",
    "on_response_complete",
    "pause_writing",
}
# Members of uvicorn's protocol that it uses.
PROTOCOL_ATTRIBUTES = {
    "app",
    "cycle",
    "expect_100_continue",
    "flow",
    "headers",
    "loop",
    "parser",
    "pipeline",
    "root_path",
    "scope",
    "server_state",
    "tasks",
    "timeout_keep_alive",
    "transport",
    "url",
}
# Attributes of a request (uvicorn calls it a cycle), which rewrap.server.cycles.Cycle sets itself.
CYCLE_ATTRIBUTES = {
    "access_log",
    "access_logger",
    "chunked_encoding",
    "default_headers",
    "disconnected",
    "expected_content_length",
    "flow",
    "keep_alive",
    "logger",
    "message_event",
    "more_body",
    "on_response",
    "response_complete",
    "response_started",
    "scope",
    "transport",
    "waiting_for_100_continue",
}
# Methods of it that the classes there override.
CYCLE_METHODS = {"receive", "run_asgi", "send"}
# Methods that rewrap.server.workers.Supervisor overrides.
SUPERVISOR_METHODS = {
    "handle_hup",
    "handle_signals",
    "handle_ttin",
    "init_processes",
    "join_all",
    "keep_subprocess_alive",
}
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
