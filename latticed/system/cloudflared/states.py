"""What is the matter with a tunnel, and what an operator can do about it, from what tunnel.status says. Pure."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from latticed.system.cloudflared import render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.system.cloudflared.intent import WantedTunnel

Level = Literal["ok", "pending", "degraded", "down"]
"""`degraded`: it answers, but not as it is configured; `down`: it does not answer."""
OLD_DAYS: Final = 365
"""The provider supports a version for one year."""
_RETRY: Final = "then latticectl invoke latticed.cloudflared retry"
FIXES: Final = {
    "no_name_service": "this host looks up no names: check its resolver, and that port 53 is open to it",
    "edge_unreachable": "let UDP and TCP out to port 7844 of region1.v2.argotunnel.com and region2.v2.argotunnel.com",
    "credentials_refused": f"put the present credentials of this tunnel into tunnel.credentials_dir, {_RETRY}",
    "credentials_unusable": "make the file root's or the daemon's user's, and chmod 600",
    "remotely_managed": "make a tunnel whose rules are kept here (cloudflared tunnel create), and configure that one",
    "change_undone": f"correct the configuration and set it again; if the cause was another one, mend that, {_RETRY}",
    "change_interrupted": "it is tried again",
    "egress_blocked": "latticectl caps grant latticed.cloudflared origin=SERVICE, with =ADDRESS behind a name",
    "bad_params": "correct the configuration and set it again",
    "quota_exceeded": "tunnel.plugin_tunnels of the settings says how many there may be",
    "program_unusable": "tunnel.program of the settings names cloudflared",
    "stopped": "name tunnel.program in the settings, and grant every origin",
}
"""By code; docs/system-plugins/cloudflared.md has them, too."""
_OF_CHANGES: Final = frozenset({"change_undone", "change_interrupted"})
_VERSION: Final = re.compile(r"(20[0-9]{2})\.([0-9]{1,2})\.[0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelState:
    """One tunnel. `code` and `message` are empty unless something is the matter; `at`: when that was noted."""

    name: str
    level: Level
    code: str = ""
    message: str = ""
    at: str = ""
    version: str = ""

    @property
    def fix(self) -> str:
        """What an operator can do; empty when there is nothing."""
        return FIXES.get(self.code, "")


def of_tunnel(
    wanted: WantedTunnel,
    view: Mapping[str, Any] | None,
    *,
    refused: tuple[str, str] | None,
    in_force: list[dict[str, str]] | None,
) -> TunnelState:
    """The state of one configured tunnel.

    `view`: what tunnel.status says of it, None when there is none; `refused`: code and message of a tunnel.put that was
    refused, and is not through; `in_force`: the rules that answer, None when they were not asked for.
    """
    if view is None:
        if refused is None:
            return TunnelState(name=wanted.name, level="pending", message="not started yet")
        return TunnelState(name=wanted.name, level="down", code=refused[0], message=refused[1])
    level, code, message, at = _of_view(view)
    if level == "ok":
        if view["trying"]:
            level, message = "pending", "a change is tried"
        elif refused is not None:
            level, code, at = "degraded", refused[0], ""
            message = f"{refused[1]}; what was configured before goes on"
        elif view["tunnel"] != wanted.tunnel or (in_force is not None and in_force != render.ingress(wanted)):
            level, code, message, at = "degraded", *_of_change(view)
    version = str(view.get("version") or "")
    return TunnelState(name=wanted.name, level=level, code=code, message=message, at=at, version=version)


def _of_view(view: Mapping[str, Any]) -> tuple[Level, str, str, str]:
    """(level, code, message, when) of what runs."""
    error = view["last_error"] or {"code": "", "message": "", "at": ""}
    told = str(error["code"]), str(error["message"]), str(error["at"])
    match view["state"]:
        case "connected":
            return "ok", "", "", ""
        # Between two tries that fail it is as down as before them.
        case "starting" if told[0] in {"", *_OF_CHANGES}:
            return "pending", "", "starting", ""
        case "connecting" if told[0] != "edge_unreachable":
            return "pending", "", "connecting", ""
        case "stopped":
            return "down", "stopped", "it may not run: no cloudflared is named, or an origin is not bound", told[2]
    return "down", *told


def _of_change(view: Mapping[str, Any]) -> tuple[str, str, str]:
    """(code, message, when) where other rules answer than those that are configured."""
    error = view["last_error"]
    if error and error["code"] in _OF_CHANGES:
        return str(error["code"]), str(error["message"]), str(error["at"])
    return "change_undone", "the rules before are in force", ""


def age_note(version: str, today: dt.date) -> str:
    """What to say of cloudflared's version, which is named by year and month: empty unless it is older than a year."""
    found = _VERSION.fullmatch(version)
    if found is None or not 1 <= int(found[2]) <= 12:
        return ""
    year, month = int(found[1]), int(found[2])
    # The last day of its month: it is not called old before it is.
    after = dt.date(year + month // 12, month % 12 + 1, 1)
    if (today - after).days < OLD_DAYS:
        return ""
    return f"cloudflared {version} is older than a year: install a newer one beside it and name that in tunnel.program"
