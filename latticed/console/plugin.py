"""A plugin's page: what it may do by risk, what it did, and its candidate. Pure."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from latticed.console import forwarded, plain, plots, words
from latticed.model.capability import RISKS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from latticed.console.plots import Plot

QUARTERS: Final = 96
_MINUTES_A_STEP: Final = 60.0
_DAYS: Final = 14


class MayDo(NamedTuple):
    """One capability. `use`: whether it was used lately; `command`: what grants it where a page must not."""

    name: str
    says: str
    risk: str
    granted: bool
    use: str
    tone: str
    command: str
    grantable: bool


class RiskGroup(NamedTuple):
    risk: str
    says: str
    capabilities: list[MayDo]


class AddedPermission(NamedTuple):
    """Something that a candidate adds. `consent`: the page may give it; else `command` does, or nothing has to."""

    name: str
    says: str
    must: bool
    consent: bool


class ShownCandidate(NamedTuple):
    version: str
    identity: str
    adds: list[AddedPermission]
    drops: list[str]
    bad: str
    command: str
    by_page: bool


class ExplainedStep(NamedTuple):
    """One link of the chain that leads to what a plugin is now."""

    name: str
    says: str
    tone: str


def by_risk(plugin: Any, usage: Any) -> list[RiskGroup]:
    """What it may do, the highest risk first; `usage` is None where it could not be asked for."""
    granted = set(plain.texts(plugin, "granted"))
    names = sorted(set(plain.texts(plugin, "capabilities")))
    found = [_capability(plain.text(plugin, "id"), name, granted, usage) for name in names]
    groups = [RiskGroup(risk, says, [one for one in found if one.risk == risk]) for risk, says in words.RISKS.items()]
    return [one for one in groups if one.capabilities]


def _capability(plugin_id: str, name: str, granted: set[str], usage: Any) -> MayDo:
    # One that this version does not know may be anything.
    risk = RISKS[name].word if name in RISKS else "host"
    has = name in granted
    use = _use(name, usage) if has else ""
    command = "" if has else shlex.join(["latticectl", "caps", "grant", plugin_id, name])
    tone = "" if not has else "warn" if use.startswith("not used") else "good"
    return MayDo(
        name=name,
        says=words.CAPABILITIES.get(name, "is not known to this version of latticectl"),
        risk=risk,
        granted=has,
        use=use,
        tone=tone,
        command=command,
        grantable=forwarded.may_consent(name),
    )


def _use(name: str, usage: Any) -> str:
    """Whether a granted capability was used, as far as that is known."""
    if not isinstance(usage, dict):
        return "use not shown"
    if name in plain.texts(usage, "unused"):
        return f"not used in the last {_DAYS} days"
    if not plain.flag(usage, "enough"):
        return "watched for too short a time to tell"
    return f"used in the last {_DAYS} days"


def candidate(plugin: Any) -> ShownCandidate | None:
    """What an upgrade would take; None without a candidate."""
    found = plain.mapping(plugin, "candidate")
    if not found:
        return None
    must = plain.texts(found, "must_name")
    adds = [_wanted(name, must) for name in sorted({*plain.texts(found, "adds"), *must})]
    accept = [part for name in must for part in ("--accept", name)]
    downgrade = plain.flag(found, "needs_downgrade")
    bad = plain.mapping(found, "bad")
    identity = plain.text(found, "identity")
    more = [
        "--identity",
        identity,
        *accept,
        *(["--allow-downgrade"] if downgrade else []),
        *(["--retry"] if bad else []),
    ]
    return ShownCandidate(
        version=plain.text(found, "version") or "without a number",
        identity=identity,
        adds=adds,
        drops=plain.texts(found, "drops"),
        bad=": ".join(filter(None, (plain.text(bad, "code"), plain.text(bad, "reason")))),
        command=shlex.join(["latticectl", "upgrade", plain.text(plugin, "id"), *more]),
        by_page=not downgrade and not bad and all(one.consent for one in adds if one.must),
    )


def _wanted(name: str, must: Sequence[str]) -> AddedPermission:
    return AddedPermission(name, words.CAPABILITIES.get(name, ""), name in must, forwarded.may_consent(name))


def day(history: Any) -> list[Plot]:
    """The last 24 hours in quarters of an hour."""
    found = plain.mapping(history, "day")
    step_s = plain.number(found, "step_s") or 900
    minutes = step_s / _MINUTES_A_STEP

    def drawn(title: str, name: str, factor: float, said: Any) -> Plot:
        values = [None if one is None else one * factor for one in plain.numbers(found, name)]
        return plots.plot(title, values, QUARTERS, said)

    return [
        drawn("Processor", "cpu_s", 100 / step_s, plots.percent),
        drawn("Memory", "memory_bytes", 1, plots.mebibytes),
        drawn("Host calls", "calls", 1 / minutes, plots.a_minute),
        drawn("Denied", "denied", 1 / minutes, plots.a_minute),
        drawn("Restarts", "restarts", 1, plots.times),
    ]


def delegated(kind: str, answer: Any, plugin_id: str) -> list[dict[str, str]]:
    """Routes, monitors, services or DNS records of one plugin: name, state and what is wrong with each, and the act
    that tries it again.
    """
    return [_item(kind, row) for row in plain.rows(answer, _MEMBERS[kind]) if plain.text(row, "plugin") == plugin_id]


_MEMBERS: Final = {"routes": "routes", "monitors": "monitors", "services": "services", "ddns": "records"}
_BAD: Final = frozenset({"failed", "refused", "denied", "down", "broken"})
_GOOD: Final = frozenset({"served", "up", "running", "published", "ok"})


def _item(kind: str, row: dict[str, Any]) -> dict[str, str]:
    state = "resting" if plain.flag(row, "resting") else plain.text(row, "state")
    # The last error of a record or a service stays in its row after a success.
    error = plain.mapping(row, "last") or ({} if state in _GOOD else plain.mapping(row, "last_error"))
    fault = ": ".join(
        filter(None, (plain.text(error, "code"), plain.text(error, "message") or plain.text(error, "reason")))
    )
    about = {
        "routes": plain.text(row, "target"),
        "monitors": f"{plain.text(row, 'kind')} {plain.text(row, 'target')}",
        "services": plain.text(row, "program"),
        "ddns": f"{plain.text(row, 'type')} {plain.text(row, 'published') or 'not published yet'}",
    }[kind]
    return {
        "name": plain.text(row, "path" if kind == "routes" else "name"),
        "about": about,
        "state": state,
        "tone": "bad" if state in _BAD else "good" if state in _GOOD else "warn",
        "fault": plain.text(row, "reason") or fault,
        "act": "retry_dns" if kind == "ddns" and state != "published" else "",
    }


def acts(plugin: Any) -> Iterator[tuple[str, str]]:
    """What can be decided about it now: the act and its label. Host risk, a downgrade and the like take the command."""
    status = plain.text(plugin, "status")
    available = plain.flag(plugin, "available")
    if status == "verified" and available:
        yield "install", "Install"
    if status in {"installed", "disabled"} and available:
        yield "activate", "Activate"
    if status == "active":
        yield "restart", "Restart"
    if status in {"installed", "active"}:
        yield "disable", "Disable"
    if status != "active":
        yield "forget", "Forget"


def steps(found: Iterable[tuple[str, str, str]]) -> list[ExplainedStep]:
    """The chain, as `explain` says it; what it left out is left out."""
    return [ExplainedStep(*one) for one in found if one[1]]


def hosts(grants: Any, usage: Any) -> list[tuple[str, str, str]]:
    """Each host that it may reach; when it did last (empty: not known), and what is known of its use."""
    unused, reached = plain.texts(usage, "unused_hosts"), plain.rows(usage, "hosts")
    last = {plain.text(one, "host"): plain.text(one, "last_at") for one in reached}
    said = dict.fromkeys(unused, f"not used in the last {_DAYS} days")
    return [(name, last.get(name, ""), said.get(name, "")) for name in plain.texts(grants, "hosts")]


def withheld(plugin_id: str, grants: Any) -> list[tuple[str, str]]:
    """What was declared besides capabilities and not accepted, with the command that does."""
    names = [f"host={name}" for name in plain.texts(grants, "withheld_hosts")]
    names += [name for name in plain.texts(grants, "withheld") if name not in RISKS]
    return [(name, shlex.join(["latticectl", "caps", "grant", plugin_id, name])) for name in names]


def taking(row: Any) -> list[ExplainedStep]:
    """The steps of a plugin that is being taken: those that were passed, the one under way, those to come."""
    passed = {plain.text(one, "step"): plain.text(one, "detail") for one in plain.rows(row, "steps")}
    rest = iter([name for name in words.TAKING if name not in passed])
    now = next(rest, "")
    found = [ExplainedStep(words.TAKING.get(name, name), says or "passed", "good") for name, says in passed.items()]
    if now:
        here = f"{plain.number(row, 'bytes')} bytes of {plain.text(row, 'file') or 'it'} are here"
        found.append(ExplainedStep(words.TAKING[now], here, "warn"))
    return [*found, *(ExplainedStep(words.TAKING[name], "to come", "") for name in rest)]


def take(plugin_id: str, must: Sequence[str]) -> dict[str, Any]:
    """How a plugin is taken from the market: the command, and whether the page may."""
    accept = [
        part
        for name in must
        for part in (("--accept-host", name[5:]) if name.startswith("host=") else ("--accept", name))
    ]
    command = shlex.join(["latticectl", "market", "install", plugin_id, *accept])
    return {"command": command, "by_page": all(forwarded.may_consent(name) for name in must)}
