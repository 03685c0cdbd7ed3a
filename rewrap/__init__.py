"""rewrap turns any chat URL into an OpenAI API.

`from rewrap import create_app, Settings` reads no environment, opens no file and builds no app.

In a checkout, main.py and backends.py stand at the top of the tree. A wheel contains them inside this package. Both
forms have the same names: rewrap.main and rewrap.backends.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewrap.config.settings import Settings
    from rewrap.main import create_app
    from rewrap.types import APIError, ChatRequest, Delta, ResponseInfo

__version__ = "0.2.0"
__all__ = ["APIError", "ChatRequest", "Delta", "ResponseInfo", "Settings", "create_app"]

PACKAGE = Path(__file__).parent
if not (PACKAGE / "backends.py").exists():
    __path__.append(str(PACKAGE.parent))

HOMES = {
    "create_app": "rewrap.main",
    "Settings": "rewrap.config.settings",
    "APIError": "rewrap.types",
    "ChatRequest": "rewrap.types",
    "Delta": "rewrap.types",
    "ResponseInfo": "rewrap.types",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that `import rewrap` alone loads nothing."""
    if name not in HOMES:
        raise AttributeError(f"module 'rewrap' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(HOMES[name]), name)
