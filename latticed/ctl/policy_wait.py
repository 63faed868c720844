"""Waits until the daemon has applied a trust policy that was just written, and stopped the plugins it refuses."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import replies
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from pathlib import Path

    from latticed.ctl.session import CtlSession
    from latticed.trust.policy import TrustPolicy

WITHIN_S: Final = 5.0
"""The daemon polls the file every second or so (contracts §4)."""
LOOK_S: Final = 0.1
"""Between two requests."""


def wait(session: CtlSession, path: Path, policy: TrustPolicy) -> str:
    """Wait until the daemon has applied `policy` from `path`; returns empty text, or a note after WITHIN_S seconds.

    Returns at once when the settings name another file, or no daemon answers the caller.
    """
    until_s = time.monotonic() + WITHIN_S
    try:
        if path != session.settings().trust_file:
            return ""
        client = session.client()
        while not _shows(replies.mapping(client.get("trust"), "trust policy"), policy):  # answered when it has effect
            if time.monotonic() > until_s:
                return "the daemon has not taken this up yet: `latticectl health` says what is in its way"
            time.sleep(LOOK_S)
    # The file is written, which is what was asked for: no daemon, or no right to ask it, is not a failure.
    except Problem:
        return ""
    return ""


def _shows(plain: dict[str, Any], policy: TrustPolicy) -> bool:
    """Whether the daemon's publishers and switches are those of `policy`, and its revocations include those."""
    if any(plain.get(name) != getattr(policy, name) for name in ("require_signature", "allow_unsigned_host_risk")):
        return False
    wanted = {
        name: (set(one.keys), set(one.ids), one.max_risk.word if one.max_risk is not None else None)
        for name, one in policy.publishers.items()
    }
    shown = {
        str(one.get("publisher")): (
            set(replies.texts(one.get("keys"))),
            set(replies.texts(one.get("ids"))),
            one.get("max_risk"),
        )
        for one in replies.rows(plain.get("publishers") or [], "list of publishers")
    }
    revoked = plain.get("revoked")
    known = revoked if isinstance(revoked, dict) else {}
    # The daemon remembers revocations until they are lifted, so it may have more than the file.
    return shown == wanted and all(
        getattr(policy.revoked, kind) <= set(replies.texts(known.get(kind))) for kind in ("keys", "digests", "plugins")
    )
