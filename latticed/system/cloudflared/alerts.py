"""When the operator is told of a tunnel. Pure: trouble that lasts, or that nothing but a person ends, and its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latticed.system.cloudflared.states import TunnelState

LASTS_S: Final = 60.0
"""Trouble that passes sooner is not told: cloudflared connects again by itself."""
AT_ONCE: Final = frozenset({"credentials_refused", "remotely_managed", "change_undone"})


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownTrouble:
    """What is known of one tunnel's trouble: its code (empty: none), since when (monotonic seconds), and the code that
    was told (empty: none).
    """

    code: str = ""
    since_s: float = 0.0
    told: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A notification, as notify.send takes it."""

    title: str
    body: str
    severity: str
    event: str
    dedupe: str = ""


def after(before: KnownTrouble, state: TunnelState, host: str, *, now_s: float) -> tuple[KnownTrouble, Alert | None]:
    """What is known after `state` was seen, and what the operator is told, if anything. `host` names this machine."""
    where = f" on {host}" if host else ""
    if state.level == "ok":
        if not before.told:
            return KnownTrouble(), None
        title = f"Tunnel {state.name}{where} is in order again"
        return KnownTrouble(), Alert(title=title, body="", severity="info", event="tunnel.up")
    if state.level == "pending":
        return before, None
    since_s = before.since_s if before.code else now_s
    lasts = state.code in AT_ONCE or now_s - since_s >= LASTS_S
    # A second cause of the same outage is told only where it changes what has to be done.
    new = not before.told or (state.code in AT_ONCE and state.code != before.told)
    if not (lasts and new):
        return KnownTrouble(code=state.code, since_s=since_s, told=before.told), None
    down = state.level == "down"
    title = f"Tunnel {state.name}{where} " + ("does not answer" if down else "is not as configured")
    alert = Alert(
        title=f"{title}: {state.code}",
        body="\n".join(line for line in (state.message, state.fix) if line),
        severity="error" if down else "warning",
        event="tunnel.down" if down else "tunnel.not_as_configured",
        # After a restart of the daemon the same trouble is the same message.
        dedupe=f"{state.name}:{state.code}:{state.at}" if state.at else "",
    )
    return KnownTrouble(code=state.code, since_s=since_s, told=state.code), alert
