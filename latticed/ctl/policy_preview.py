"""Asks the daemon which plugins would stop under a new trust policy, before that is written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from latticed.ctl import replies
from latticed.model.errors import Problem
from latticed.trust import policy

if TYPE_CHECKING:
    from pathlib import Path

    from latticed.ctl.session import CtlSession
    from latticed.trust.policy import TrustPolicy


def show(session: CtlSession, new: TrustPolicy, path: Path) -> list[dict[str, Any]] | None:
    """The active plugins that would stop under `new`, also noted on stderr; None when the daemon cannot be asked."""
    screen = session.screen
    try:
        # Of another file than the daemon's it would answer about a policy that it will not get.
        if path.resolve() != session.settings().trust_file.resolve():
            raise Problem("usage", f"the daemon of these settings does not read {path}")
        body = {"policy": json.loads(policy.encode(new))}
        found = replies.mapping(session.client().post("trust", "foresee", body=body), "answer")
        stops = replies.rows(found.get("stops"), "list of plugins")
    # The edit does not need the daemon, so this is no reason to refuse it.
    except Problem as problem:
        screen.note(f"which plugins stop by this cannot be known: {problem.reason}")
        return None
    for one in stops:
        screen.note(f"stops: {one.get('id')} {one.get('version') or ''} ({one.get('code')})")
    if not stops:
        screen.note("stops: no active plugin")
    return stops
