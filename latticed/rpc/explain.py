"""The `causes` that `latticectl explain` asks for: what would refuse the next step, and signs of why a plugin fails."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from latticed.bundle.refusal import BundleRefused
from latticed.ledger import audit as rows
from latticed.model.audit import Actor
from latticed.model.chain import DECISIONS
from latticed.model.errors import Problem
from latticed.model.hostcall import FIX
from latticed.model.lifecycle import Status
from latticed.model.runtime import RuntimeState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from latticed.model.fault import Fault
    from latticed.model.lifecycle import Record
    from latticed.rpc.api import Api
    from latticed.rpc.responses import Causes, FailedService, LastEnd, Refusal, Sign
    from latticed.runners.output import OutputLine

LINES: Final = 200
"""How many of a plugin's newest output lines are searched for signs."""
_NEXT: Final = {
    Status.VERIFIED: Status.INSTALLED,
    Status.INSTALLED: Status.ACTIVE,
    Status.DISABLED: Status.ACTIVE,
}
"""The step that an operator would take next from each status."""
_SIGNS: Final = (
    ("missing_module", re.compile(r"ModuleNotFoundError: No module named '(?P<value>[\w.]{1,100})'")),
    ("missing_module", re.compile(r"Cannot find module '(?P<value>[^'\s]{1,100})'")),
    (
        "cannot_fork",
        re.compile(r"(?i)(?P<value>\b(?:cannot|can't) fork\b|\bfork: |_fork_exec\(|\bos\.fork\(|\bposix_spawn)"),
    ),
    ("cannot_fork", re.compile(r"spawn \S+ (?P<value>EPERM|EAGAIN)\b")),
    ("cannot_thread", re.compile(r"(?P<value>can't start new thread|pthread_create)")),
)
"""(sign, pattern) of what interpreters write to stderr when a package is missing or the sandbox refuses a process."""


async def causes(api: Api, record: Record, denials: Sequence[dict[str, Any]]) -> Causes:
    """See `responses.Causes`; `denials` are the plugin's newest audit rows of denials.

    Output from before the record last changed is ignored: it may be of another version or of other grants.
    """
    lines = api.outputs.ring(record.id).since(0)[-LINES:]
    return {
        "refusal": await _refusal(api, record),
        "upgrade": await _upgrade(api, record),
        "denied_records": [
            {"name": one.name, "code": one.status.code, "reason": one.status.reason}
            for one in api.ddns.of(record.id)
            if one.status.state == "denied"
        ],
        "failed_services": _failed_services(api, record.id),
        "signs": signs(line for line in lines if line.at >= record.updated_at),
        "working": await _working(api, record, {str(row["target"]) for row in denials}),
        "ended": await _ended(api, record),
        "missing_secrets": _missing_secrets(api, denials),
    }


async def _refusal(api: Api, record: Record) -> Refusal | None:
    """Why an install or activation would be refused now, or None. Changes and records nothing."""
    wanted = _NEXT.get(record.status)
    try:
        if wanted is not None:
            # The rules of the lifecycle first, then what the runner and this host can give: in the order of a real
            # decision.
            after = api.lifecycle.decisions.foresee(record.id, wanted)
            if wanted is Status.ACTIVE:
                await api.supervisor.admit(api.lifecycle.plugins[record.id])
            await api.lifecycle.decisions.need_config(after)
    except (Problem, BundleRefused) as error:
        return _told(error.fault)
    return None


async def _upgrade(api: Api, record: Record) -> Refusal | None:
    """Why an upgrade to the candidate would be refused now; None if it would not, or there is no candidate."""
    if api.lifecycle.presence(record.id).candidate(record) is None:
        return None
    try:
        after = api.lifecycle.decisions.foresee(record.id, "upgrade")
        await api.lifecycle.decisions.need_config(after)
    except Problem as problem:
        return _told(problem.fault)
    return None


def _missing_secrets(api: Api, denials: Sequence[dict[str, Any]]) -> list[str]:
    """The secrets that denied calls named and that nobody has set, by name."""
    fixes = [str(row["detail"].get(FIX, "")).partition("=") for row in denials]
    return sorted({name for kind, _, name in fixes if kind == "secret"} - {one.name for one in api.secrets.known()})


def _failed_services(api: Api, plugin_id: str) -> list[FailedService]:
    """The plugin's services that stay as they are until something is done, by name."""
    return [
        {"name": one.name, "code": one.program.error[0], "reason": one.program.error[1]}
        for one in api.programs.of(plugin_id)
        if one.program.state in {"failed", "stopped"} and one.program.error is not None
    ]


def _told(fault: Fault) -> Refusal:
    """A fault in the shape of `responses.Refusal`."""
    return {"code": str(fault.code), "detail": fault.reason, "hint": fault.hint}


def signs(lines: Iterable[OutputLine]) -> list[Sign]:
    """Known failures recognised in stderr lines, each once. Returns no line itself: those take another scope."""
    found: dict[tuple[str, str], Sign] = {}
    for line in lines:
        for sign, pattern in _SIGNS:
            if line.stream == "stderr" and (match := pattern.search(line.text)):
                # The one text taken from the output, and the pattern bounds what it can be.
                value = match["value"] if sign == "missing_module" else ""
                found.setdefault((sign, value), {"sign": sign, "value": value})
    return list(found.values())


async def _ended(api: Api, record: Record) -> LastEnd | None:
    """The failure recorded before the running instance was started; None if it is not running or never restarted."""
    runtime = api.supervisor.runtime(record.id)
    if runtime.state is not RuntimeState.ARMED or not runtime.restart_count:
        return None
    last = await rows.query_in_parts(
        api.ledger.read_slow,
        chains=(DECISIONS,),
        action="plugin.runtime",
        target=record.id,
        newest_first=True,
        # Two: the running instance's start is the newest, the failure before it the next.
        limit=2,
    )
    failed = next((row for row in last if row["detail"].get("state") == RuntimeState.FAILED), None)
    if failed is None:
        return None
    return {"code": failed["code"], "reason": failed["reason"], "at": failed["ts"], "ts": failed["ts"]}


async def _working(api: Api, record: Record, calls: set[str]) -> list[str]:
    """Those of `calls` whose newest audit row is an allow, sorted."""
    last = await rows.last_calls(
        api.ledger.read_slow, actor=str(Actor(kind="plugin", name=record.id)), calls=frozenset(calls)
    )
    return sorted(call for call, decision in last.items() if decision == "allow")
