"""Plugin and publisher ids (contracts §2)."""

from __future__ import annotations

import re

_ID = re.compile(r"[a-z0-9][a-z0-9.-]{1,126}[a-z0-9]")

RESERVED_PREFIX = "latticed."
"""Ids that begin with this are of built-in plugins; bundles cannot claim them."""
RESERVED_PUBLISHER = "latticed"
"""The publisher of built-in plugins; bundles cannot name it."""


def is_valid(text: str) -> bool:
    """Whether `text` may name a plugin or a publisher: 3..128 of `[a-z0-9.-]`, alphanumeric at both ends, no `..`."""
    return _ID.fullmatch(text) is not None and ".." not in text


def is_reserved_plugin(plugin_id: str) -> bool:
    """Whether the id belongs to the built-in plugins, or is the name under which latticed itself acts and sends."""
    return plugin_id.startswith(RESERVED_PREFIX) or plugin_id == RESERVED_PUBLISHER
