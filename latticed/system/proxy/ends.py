"""What of an applied intent has to end: documents in, documents out, since plans are made of documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

Plain = dict[str, Any]
"""An intent, an inbound or a user as JSON values."""


def cut(applied: Plain, off: Collection[str]) -> Plain:
    """The intent with the users in `off` disabled, and without inbounds that nobody is left for.

    It passes `check.check` where `applied` does, and `narrows.narrows` says that it only takes away.
    """
    users = [{**one, "enabled": False} if one["id"] in off else one for one in applied.get("users", [])]
    enabled = [one for one in users if one.get("enabled", True)]
    inbounds = [
        one
        for one in applied.get("inbounds", [])
        if any("inbounds" not in user or one["tag"] in user["inbounds"] for user in enabled)
    ]
    tags = {one["tag"] for one in inbounds}
    left = [
        {**one, "inbounds": [tag for tag in one["inbounds"] if tag in tags]} if "inbounds" in one else one
        for one in users
    ]
    return {**applied, "inbounds": inbounds, "users": left}
