"""Handler that names the active plugins which another trust policy would stop, before it is written."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from latticed.model.errors import Problem
from latticed.model.lifecycle import Status
from latticed.model.verdict import Refused
from latticed.rpc.api import Body
from latticed.trust import policy as policies

if TYPE_CHECKING:
    from latticed.rpc.api import Ask
    from latticed.rpc.responses import Foreseen, Stop


class Foresee(Body, frozen=True):
    """`policy` is the content of a trust.json."""

    policy: dict[str, Any]


async def foresee(ask: Ask) -> Foreseen:
    """Which active plugins would stop if the trust policy were this one; nothing is changed, no artifact is hashed."""
    body, api = await ask.body(Foresee), ask.api
    try:
        wanted = policies.decode(json.dumps(body.policy).encode("ascii"))
    except Problem as problem:
        raise Problem("bad_request", f"policy: {problem.reason}", problem.hint) from problem
    # What the daemon has seen revoked stays so under any policy (contracts §4).
    policy = policies.with_revocations(wanted, api.policy.current.revoked)
    verify = api.lifecycle.deps.store.verify
    stops: list[Stop] = []
    for record in [one for one in api.lifecycle.known() if one.status is Status.ACTIVE]:
        facts = record.facts
        if not api.lifecycle.presence(record.id).available:  # stopped already
            continue
        # On a thread: it reads the stored pair from disk.
        verdict = await asyncio.to_thread(
            verify, facts.identity, policy, host_version=api.version, sha256=facts.artifact_sha256
        )
        if isinstance(verdict, Refused):
            stops.append({"id": record.id, "version": facts.version, "code": verdict.code, "reason": verdict.reason})
    return {"stops": stops}
