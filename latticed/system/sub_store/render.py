"""What the host is asked for, and what the backend's answers mean. Pure; the same intent gives the same values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.system.sub_store.intent import Intent

SERVICE: Final = "backend"
"""Name of the service."""
FILES: Final = ("root.json", "sub-store.json")
"""What Sub-Store keeps: all of its state is in these two."""
NEVER: Final = frozenset({"SUB_STORE_BACKEND_DEFAULT_PROXY", "SUB_STORE_DATA_URL", "SUB_STORE_FRONTEND_HOST"})
"""Variables that would lead around what is in front: around the guarded way out, the backups, the only listener."""
MAX_VERSION: Final = 40


def environment(intent: Intent) -> dict[str, str]:
    """The variables that the backend gets of us. None is a secret: the login in front is what protects it, and its own
    prefix is no login.
    """
    wanted = {
        "SUB_STORE_BACKEND_API_HOST": "127.0.0.1",
        "SUB_STORE_BACKEND_API_PORT": str(intent.port),
        # Pages of other origins get nothing: the proxy gives it its own origin as that of the browser.
        "SUB_STORE_CORS_ALLOWED_ORIGINS": origin(intent),
        "SUB_STORE_DATA_BASE_PATH": "/data",
    }
    if intent.prefix:
        # Without the path it refuses to start with a prefix, and without it runs no scripts of subscriptions.
        wanted |= {"SUB_STORE_BACKEND_PREFIX": "1", "SUB_STORE_FRONTEND_BACKEND_PATH": intent.prefix}
    if intent.frontend:
        wanted |= {"SUB_STORE_BACKEND_MERGE": "1", "SUB_STORE_FRONTEND_PATH": intent.frontend}
    return wanted


def origin(intent: Intent) -> str:
    """The backend's origin in its own network."""
    return f"http://127.0.0.1:{intent.port}"


def service(intent: Intent) -> dict[str, Any]:
    """The parameters of service.put."""
    hosts = {"hosts": list(intent.hosts)} if intent.hosts else {}
    return {
        "name": SERVICE,
        "program": intent.program,
        "args": [intent.bundle],
        "environment": {**intent.environment, **environment(intent)},
        "restart": "always",
        "network": "own",
        "data": {"bytes": intent.data_bytes, "files": intent.data_files},
        **hosts,
    }


def route(intent: Intent) -> dict[str, Any]:
    """The parameters of route.put. Without a token downloads want the login, too."""
    opened = {"public": [f"{intent.prefix}/download/*/*"], "token": intent.token} if intent.token else {}
    return {
        "path": intent.path,
        "target": "service",
        "service": SERVICE,
        "origin": origin(intent),
        "login": intent.login,
        **opened,
    }


def probe(intent: Intent) -> dict[str, Any]:
    """The parameters of http.do that ask the backend what it is."""
    return {"method": "GET", "url": f"{origin(intent)}{intent.prefix}/api/utils/env", "service": SERVICE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a backend says of itself: its version, or why it is none that works (`fault`)."""

    version: str = ""
    fault: str = ""


def answer(status: int, body: bytes) -> Answer:
    """What an answer to `probe` means.

    200, {"status": "success", "data": {"backend": "Node", "version": "2.14.0", …}}  ->  version 2.14.0
    200, {"status": 200, "backend": "Node"}, as old ones say                          ->  version ""
    404, or anything else                                                             ->  a fault
    """
    if status != 200:
        return Answer(fault=f"it answers {status} to /api/utils/env")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return Answer(fault="its answer to /api/utils/env is no JSON")
    inner = found.get("data") if isinstance(found, dict) else None
    told: Mapping[str, Any] = inner if isinstance(inner, dict) else found if isinstance(found, dict) else {}
    if not isinstance(told.get("backend"), str):
        return Answer(fault="its answer to /api/utils/env names no backend")
    version = told.get("version")
    is_plain = isinstance(version, str) and version.isascii() and version.isprintable()
    return Answer(version=str(version)[:MAX_VERSION] if is_plain else "")
