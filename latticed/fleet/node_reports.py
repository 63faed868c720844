"""What a node says of itself and of what it was asked, signed and as large as the engine takes. Pure."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from latticed.fleet import documents
from latticed.fleet.engine import STATUS_BYTES
from latticed.kit.text import sanitise

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from latticed.fleet.documents import Invocation
    from latticed.fleet.judging import NodeState
    from latticed.fleet.planning import Blocked, Has

_TOO_MUCH: Final = "too much to tell of each plugin"


def plugin_status(has: Has, report: Mapping[str, Any], trouble: Blocked | None) -> documents.PluginStatus:
    """What there is of one plugin, by the daemon's own report of it."""
    runtime = report.get("plugin", {}).get("runtime", {})
    return documents.PluginStatus(
        id=has.id,
        version=has.now.version[:64],
        identity=has.now.identity,
        status=has.status,
        state=str(runtime.get("state") or ""),
        health=str(runtime.get("health") or ""),
        restarts=int(runtime.get("restart_count") or 0),
        denied=int(report.get("calls", {}).get("denied") or 0),
        code=trouble.code[:64] if trouble else "",
        reason=sanitise(trouble.reason, 400) if trouble else "",
    )


def status(
    state: NodeState,
    found: Mapping[str, documents.PluginStatus],
    *,
    refused: tuple[str, str],
    trouble: tuple[str, str],
    plans: tuple[str, ...],
    at_s: int,
) -> documents.NodeStatus:
    """`refused`, `trouble`: (code, reason) of the newest document that does not count, and of a daemon that cannot be
    asked; empty where there is none.
    """
    present = state.present
    wanted = {one.id for one in present.plugins} if present else set()
    code, reason = trouble if trouble[0] else refused
    return documents.NodeStatus(
        fleet=state.fleet,
        node=state.node,
        at=at_s,
        epoch=state.epoch,
        generation=state.generation,
        intent=present.intent if present else "",
        settled=not trouble[0] and wanted <= state.settled and not any(one.code for one in found.values()),
        refused=code,
        reason=sanitise(reason, 400),
        plugins=tuple(found.values()),
        plans=plans,
        events=state.events,
        head=state.head,
        lists=state.lists,
    )


def in_words(made: documents.NodeStatus) -> str:
    """A status in a line, for a person on the host."""
    if made.refused:
        return f"{made.refused}: {made.reason}"
    if not made.intent:
        return "nothing assigned yet"
    waits = ", ".join(f"{one.id} {one.code}" for one in made.plugins if one.code)
    plans = f"; {len(made.plans)} plans wait for approval here (latticectl plan list)" if made.plans else ""
    return f"generation {made.generation} {'settled' if made.settled else f'under way {waits}'.rstrip()}{plans}"


def signed_status(made: documents.NodeStatus, key: Ed25519PrivateKey) -> bytes:
    """The envelope of a status, with as much of its plugins as the engine takes: of many first without reasons, then of
    those alone that are not as they were wanted, then none.
    """
    bare = tuple(msgspec.structs.replace(one, reason="") for one in made.plugins)
    for plugins in (made.plugins, bare, tuple(one for one in bare if one.code)):
        reason = made.reason or ("" if plugins is made.plugins else _TOO_MUCH)
        with contextlib.suppress(documents.Malformed):
            signed = documents.sign(msgspec.structs.replace(made, plugins=plugins, reason=reason), key)
            if len(signed) <= STATUS_BYTES:
                return signed
    return documents.sign(msgspec.structs.replace(made, plugins=(), reason=made.reason or _TOO_MUCH), key)


def signed_result(
    state: NodeState, asked: Invocation, key: Ed25519PrivateKey, *, code: str, reason: str, answer: dict[str, Any]
) -> bytes:
    """The envelope of an invocation's result; one that cannot be carried says that, as `too_large`."""
    made = documents.InvocationResult(
        fleet=state.fleet, node=state.node, nonce=asked.nonce, code=code, reason=sanitise(reason, 400), answer=answer
    )
    try:
        signed = documents.sign(made, key)
        if len(signed) <= STATUS_BYTES:
            return signed
    except documents.Malformed:  # numbers that no JSON of ours carries, or too much of it
        pass
    short = msgspec.structs.replace(made, code="too_large", reason="the answer cannot be carried", answer={})
    return documents.sign(short, key)
