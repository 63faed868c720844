"""An intent as one JSON text: the core's configuration, and what the helper has to know besides.

    {"config": {…}, "core": "sing-box", "until": {"anna": 1800000000}}

The same intent gives the same bytes, whatever the order of its lists and keys. `applied` reads it again.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from latticed.system.proxy import singbox, xray
from latticed.system.proxy.intent import Core

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from latticed.system.proxy.intent import ProxyIntent


def render(intent: ProxyIntent, secrets: Mapping[str, str]) -> bytes:
    """The text of an intent that passed `check`; ASCII. `secrets`: the value of each reference, or what is shown."""
    made = (singbox if intent.core is Core.SING_BOX else xray).config(intent, secrets)
    until = {one.id: one.expires_at for one in intent.users if one.enabled and one.expires_at is not None}
    return text({"core": str(intent.core), "until": until, "config": made})


def text(document: dict[str, Any]) -> bytes:
    """JSON with a line for each object and list that holds no other, so that a diff shows users who come and go."""
    return ("".join(_written(document, "")) + "\n").encode("ascii")


def _written(value: Any, margin: str) -> Iterator[str]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(one, dict | list) for one in inner):
        yield json.dumps(value, sort_keys=True)
        return
    opened, closed = "{}" if isinstance(value, dict) else "[]"
    items = sorted(value.items()) if isinstance(value, dict) else [("", one) for one in value]
    for index, (name, one) in enumerate(items):
        yield f"{',' if index else opened}\n{margin} "
        if isinstance(value, dict):
            yield f"{json.dumps(name)}: "
        yield from _written(one, f"{margin} ")
    yield f"\n{margin}{closed}"
