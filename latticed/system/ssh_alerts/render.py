"""Events as notifications; the same event gives the same text. Pure.

Names, keys and messages are strangers' text: each stands behind a label in a line of its own, and is never a template.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from latticed.system.ssh_alerts.events import FailuresTold, Gap, LoginTold, MoreLogins
from latticed.system.ssh_alerts.watch import short

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import tzinfo

    from latticed.system.ssh_alerts.events import Event

Severity = Literal["info", "warning", "error", "critical"]

MOST_SHOWN: Final = 5
"""Of the networks and users that failures come from."""

# The first flag that a login has names its event.
_LOGIN: Final[tuple[tuple[str, str, Severity, str], ...]] = (
    ("outside", "ssh.login.outside", "critical", "SSH login that no rule allows"),
    ("guessed", "ssh.login.guessed", "error", "SSH login after failed attempts"),
    ("root", "ssh.login.root", "warning", "SSH login of root"),
    ("unclear", "ssh.login.unclear", "warning", "SSH login from an unclear address"),
    ("new", "ssh.login.new", "warning", "SSH login from a new network"),
    ("", "ssh.login", "info", "SSH login"),
)
_FLAGS: Final = {
    "outside": "no rule of the configuration allows it",
    "guessed": "its network had failed attempts before",
    "root": "the user is root",
    "new": "the first login of this user from this network",
    "unclear": "sshd's message can be read in two ways, or names no address",
}
_GAP: Final[dict[str, tuple[Severity, str, str]]] = {
    "dropped": (
        "warning",
        "journald dropped messages of sshd",
        "sshd logged faster than journald takes (RateLimitBurst in journald.conf); logins may be among them.",
    ),
    "unread": (
        "error",
        "A login could not be read",
        "A message of sshd begins as that of a login does, and goes on otherwise. See for yourself:",
    ),
    "gone": (
        "warning",
        "Entries of sshd were removed before they were read",
        "The journal was vacuumed, or the log rotated, while nobody read it; logins may be among them.",
    ),
    "source": ("warning", "Entries of sshd come from another source now", "What came meanwhile was not read."),
    "forgotten": (
        "warning",
        "SSH alerts begin anew",
        "What was remembered could not be read; what came meanwhile was not read, and every network is new.",
    ),
    "down": ("error", "SSH logins are not watched", "The entries of sshd cannot be read:"),
    "up": ("info", "SSH logins are watched again", "What was logged meanwhile is read now."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Parameters of notify.send."""

    title: str
    body: str
    severity: Severity
    event: str
    dedupe: str


def render(found: Event, zone: tzinfo) -> Message:
    match found:
        case LoginTold():
            return _login(found, zone)
        case MoreLogins():
            return _more(found, zone)
        case FailuresTold():
            return _failures(found, zone)
        case Gap():
            return _gap(found, zone)


def when(at_s: int, zone: tzinfo) -> str:
    return datetime.fromtimestamp(at_s, zone).strftime("%Y-%m-%d %H:%M:%S %Z")


def _login(found: LoginTold, zone: tzinfo) -> Message:
    login = found.login
    _, event, severity, title = next(row for row in _LOGIN if not row[0] or row[0] in found.flags)
    lines = {
        "user": login.user[:200],
        "address": login.address or "unclear",
        "method": login.method,
        "key": f"{login.key} {login.fingerprint}".strip()[:600],
        "time": when(found.at_s, zone),
        "network": _network(found, zone),
        "failed before": f"at least {found.failures}" if found.failures else "",
        "note": "; ".join(_FLAGS[flag] for flag in found.flags),
        "source": "" if found.trusted else "auth.log, into which other programs can write",
    }
    return Message(
        title=f"{title}: {short(login.user)} from {login.address or 'an unclear address'}",
        body=_lines(lines),
        severity=severity,
        event=event,
        dedupe=found.word,
    )


def _network(found: LoginTold, zone: tzinfo) -> str:
    if not found.network:
        return ""
    since = f"known since {when(found.since_s, zone)}" if found.since_s else "new"
    return f"{found.network}, {since}"


def _more(found: MoreLogins, zone: tzinfo) -> Message:
    about = found.about
    lines = {name: str(about.get(name, "")) for name in ("user", "network", "method", "fingerprint")}
    times = f"{when(found.since_s, zone)} to {when(found.at_s, zone)}"
    whose = f"of {about['user']} from {about.get('network') or 'unclear addresses'}" if about else "of several users"
    return Message(
        title=f"SSH: {found.more} more logins {whose}",
        body=_lines({**lines, "time": times}),
        severity="info",
        event="ssh.login.more",
        dedupe=found.word,
    )


def _failures(found: FailuresTold, zone: tzinfo) -> Message:
    attack = found.attack
    more = f"{found.more} failed SSH logins"
    title = {"begun": more, "on": f"{more} since the last message", "over": f"{more} more, and it is over"}[found.phase]
    lines = {
        "in all": str(attack.total),
        "time": f"{when(attack.first_s, zone)} to {when(attack.last_s, zone)}",
        "from": _frequent(attack.networks),
        "users": _frequent(attack.users),
    }
    return Message(
        title=title,
        body=_lines(lines),
        severity="info" if found.phase == "over" else "warning",
        event=f"ssh.failures.{found.phase}",
        dedupe=found.word,
    )


def _frequent(numbers: Mapping[str, int]) -> str:
    """The most frequent ones with the least they can be."""
    found = sorted(numbers.items(), key=lambda one: (-one[1], one[0]))
    shown = ", ".join(f"{name or '(none)'} (at least {count})" for name, count in found[:MOST_SHOWN])
    return f"{shown}{', and others' if len(found) > MOST_SHOWN else ''}" or "many, none of them often"


def _gap(found: Gap, zone: tzinfo) -> Message:
    severity, title, words = _GAP[found.kind]
    lines = {
        "messages": str(found.count) if found.count else "",
        "since": when(found.since_s, zone) if found.since_s else "",
        "time": when(found.at_s, zone),
        "message" if found.kind == "unread" else "reason": found.text,
    }
    body = f"{words}\n{_lines(lines)}"
    return Message(title=title, body=body, severity=severity, event=f"ssh.gap.{found.kind}", dedupe=found.word)


def _lines(found: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {text}" for name, text in found.items() if text)
