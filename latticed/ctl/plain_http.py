"""`http.client` without TLS: a unix socket carries none, and `ssl` costs latticectl 10 ms at every start (P8).

http.client supports Pythons built without OpenSSL, so `ssl` is hidden while it is imported. Nothing is done in a
process that has loaded `ssl` already; in others it can still be imported later.
"""

from __future__ import annotations

import sys
from typing import Any, Final

_modules: Final[dict[str, Any]] = sys.modules  # None for a module means "there is none" to the import system
"""None for a module means "there is none" to the import system."""

if "ssl" in _modules:
    from http import client
else:
    _modules["ssl"] = None
    try:
        from http import client
    finally:
        del _modules["ssl"]

__all__ = ["client"]
