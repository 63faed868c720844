"""Values of secrets in the words of the cores; a reference that is only shown stays as it is."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Final

from latticed.system.proxy.intent import Method

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHOWN: Final = "${secret:"
_HIDDEN: Final = "(a secret)"
_FIELDS: Final = frozenset({"uuid", "password", "secret", "private_key", "privateKey", "id"})
"""Names under which the cores' files have values of secrets."""
_KEY_BYTES: Final = {Method.AES_128: 16, Method.AES_256: 32}


def shown(references: Mapping[str, str]) -> dict[str, str]:
    """Instead of values, for a rendering that may be read: `{"A#b": "${secret:A#b}"}`."""
    return {name: f"{_SHOWN}{name}}}" for name in references}


def shadowsocks(key: str, method: Method) -> str:
    """The key of a method, in base64, from one of 32 bytes: the first of them."""
    if key.startswith(_SHOWN):
        return key
    return base64.b64encode(base64.b64decode(key)[: _KEY_BYTES[method]]).decode("ascii")


def x25519(key: str) -> str:
    """A key of REALITY, in base64url without padding."""
    return key if key.startswith(_SHOWN) else key.replace("+", "-").replace("/", "_").rstrip("=")


def redacted(rendering: bytes) -> dict[str, Any]:
    """A rendering as JSON values that may be shown: without the values of secrets."""
    found: dict[str, Any] = _redacted(json.loads(rendering))
    return found


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _HIDDEN if name in _FIELDS else _redacted(inner) for name, inner in value.items()}
    return [_redacted(one) for one in value] if isinstance(value, list) else value
