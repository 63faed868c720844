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
    from collections.abc import Mapping

    from latticed.system.proxy.intent import ProxyIntent


def render(intent: ProxyIntent, secrets: Mapping[str, str]) -> bytes:
    """The text of an intent that passed `check`; ASCII. `secrets`: the value of each reference, or what is shown."""
    made = (singbox if intent.core is Core.SING_BOX else xray).config(intent, secrets)
    until = {one.id: one.expires_at for one in intent.users if one.enabled and one.expires_at is not None}
    return text({"core": str(intent.core), "until": until, "config": made})


def text(document: dict[str, Any]) -> bytes:
    """A line for each value, so that a diff shows the users who come and go."""
    return (json.dumps(document, sort_keys=True, indent=1) + "\n").encode("ascii")
