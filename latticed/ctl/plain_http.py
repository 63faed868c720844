"""`http.client` without TLS: a unix socket carries none, and `ssl` costs latticectl 10 ms at every start (P8).

http.client is made to do without it (Pythons are built without OpenSSL), so the import is told that there is none. A
process that has `ssl` loaded already is left as it is; one that has not can import it afterwards as ever.
"""

from __future__ import annotations

import sys
from typing import Any, Final

_modules: Final[dict[str, Any]] = sys.modules  # None for a module means "there is none" to the import system

if "ssl" in _modules:
    from http import client
else:
    _modules["ssl"] = None
    try:
        from http import client
    finally:
        del _modules["ssl"]

__all__ = ["client"]
