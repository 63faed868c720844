"""docs/reference/events.md: actions of the audit record, and entries of the log."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import Final

from generate import shapes, source
from generate.markdown import Page, anchored, code, or_dash, sentence, slug
from latticed import wire
from latticed.host.notify import rules
from latticed.kit import rendering
from latticed.model import hostcall

ROOT: Final = source.ROOT
TEXTS: Final = Path(__file__).with_name("events.txt")
CATALOG: Final = ROOT.parent / "systemd/latticed.catalog"
_ACTION: Final = re.compile(
    r"(?:api|audit|bundle|ddns|kv|ledger|market|monitor|network|notify|plan|plugin|route|secret|task|trust)\.[a-z_]+"
)
NOTICES: Final = "host/notify/rules.py"
LEVELS: Final = ("debug", "info", "warning", "error", "critical")
MADE: Final = ("trust.added", "trust.removed", "trust.changed")
"""Actions that are put together of a kind of change."""
LOGGED: Final = {
    "info": "plugin_armed plugin_stopped plugin_failed plugin_said plugin_wrote schedule_ended"
    " service_stopped tunnel_stopped",
    "warning": "log_dropped ddns_unreadable monitor_unreadable service_unreadable tunnel_unreadable"
    " services_failed tunnels_failed ddns_failed monitor_failed service_failed tunnel_failed",
}
"""Entries whose name no call has as it is, by their level."""


def texts() -> dict[str, str]:
    """What events.txt says, by name."""
    lines = [line for line in TEXTS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split(": ", 1) for line in lines)


def commands() -> dict[str, str]:
    """The first command that the journal's catalog has for an event."""
    found = {}
    for part in CATALOG.read_text(encoding="utf-8").split("\n# ")[1:]:
        name, _, text = part.partition("\n-- ")
        lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
        if lines:
            found[name.split("\n")[-1]] = re.sub("@LATTICED_PLUGIN_ID@", "ID", lines[0])
    return found


def subjects() -> dict[str, str]:
    """What the journal's catalog says, by event."""
    found = re.findall(
        r"^# ([a-z_]+)\n-- [0-9a-f]{32}\nSubject: (.+)$", CATALOG.read_text(encoding="utf-8"), re.MULTILINE
    )
    return dict(found)


@functools.cache
def actions() -> set[str]:
    """Every action that the code records."""
    found = set(MADE)
    for place, tree in source.trees().items():
        if place.split("/")[0] in {"ctl", "sdk", "system", "model", "settings"} or place == NOTICES:
            continue
        for node in tree:
            if isinstance(node, ast.keyword) and node.arg == "action" and isinstance(node.value, ast.Constant):
                found.add(str(node.value.value))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _ACTION.fullmatch(node.value):
                # Actions that are called as a host call are.
                found |= {node.value} - (hostcall.CAPABILITY_OF.keys() if place != "rpc/kv.py" else set())
    return {one for one in found if "." in one and not one.endswith(".json")} | {"host.call"}


@functools.cache
def notices() -> dict[str, tuple[str, str]]:
    """The notifications that latticed sends itself: {event: (severity, an example of its title)}."""
    found: dict[str, tuple[str, str]] = {
        rules.DEGRADED: ("error", "channel ops is degraded: http_500"),
        "monitor.down": ("critical", "web is down"),
        "monitor.up": ("info", "web is up again"),
    }
    for place, tree in source.trees().items():
        for node in tree:
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "NotificationRow":
                given = {one.arg: one.value.value for one in node.keywords if isinstance(one.value, ast.Constant)}
                if "event" in given and place != NOTICES:
                    found[str(given["event"])] = str(given.get("severity", "info")), str(given.get("title", "-"))
    details: tuple[dict[str, object], ...] = (
        {},
        {"state": "failed"},
        {"state": "failed", "breaker": True},
        {"before": "1.0.0"},
    )
    for action in sorted(actions()):
        for decision in ("allow", "deny", "-"):
            for detail in details:
                event = {"action": action, "target": "acme.demo", "decision": decision, "code": "", "reason": ""}
                row = rules.own({**event, "detail": detail, "seq": 1, "hash": "0" * 64})
                if row is not None:
                    found.setdefault(row.event, (row.severity, row.title))
    return found


@functools.cache
def logged() -> dict[str, str]:
    """Every entry of the log, and the level that it has, the highest if there are several."""
    found = {name: level for level, names in LOGGED.items() for name in names.split()}
    for tree in source.trees().values():
        for node in tree:
            match node:
                case ast.Call(func=ast.Attribute(attr=level, value=on), args=[ast.Constant(value=str(name)), *_]):
                    logger = on.id if isinstance(on, ast.Name) else on.attr if isinstance(on, ast.Attribute) else ""
                    level = "error" if level == "exception" else level
                    ours = logger in {"log", "_log"} and ast.unparse(on) != "self.host.log"  # that is a host call
                    if ours and level in LEVELS and re.fullmatch(r"[a-z_]+", name):
                        found[name] = max(found.get(name, level), level, key=LEVELS.index)
    return found


def page() -> str:
    """The page."""
    said, warned = texts(), subjects()
    found = Page(
        "Events",
        "Every decision, refusal, start, stop and host call is an event of the audit record; what the daemon does is"
        " told in its log, under systemd the journal:",
    )
    found.block(
        "text",
        "latticectl audit query --action plugin.verdict --last 20\nlatticectl events            # as they happen\n"
        "journalctl -t latticed LATTICED_EVENT=verdict_refused\njournalctl -x -t latticed -p warning --since today",
    )
    found.heading("Actions of the audit record", anchor="audit")
    found.text("There are two chains: host calls (`host.call`), and everything else.")
    found.table(
        ("action", "when"),
        [(anchored(slug("audit", name), code(name)), sentence(said[name])) for name in sorted(actions())],
    )
    found.heading("Fields of an audit event", anchor="audit-fields")
    row = source.below(wire.AuditRow)
    found.table(
        ("field", "type", "meaning"),
        [(code(one.name), one.kind, or_dash(sentence(row.get(one.name)))) for one in shapes.fields(wire.AuditRow)],
    )
    found.heading("Notifications of latticed itself", anchor="notices")
    found.text(
        "What latticed sends to the channels without being asked by a plugin; rules of the notification plugin name"
        " them by"
        " their event."
    )
    found.table(
        ("event", "severity", "when", "title, for example"),
        [
            (anchored(slug("notice", name), code(name)), severity, sentence(said[name]), title)
            for name, (severity, title) in sorted(notices().items())
        ],
    )
    levels, helps = logged(), commands()
    found.heading("Entries of the log", anchor="log")
    found.text(
        "The name is in `LATTICED_EVENT`. For entries of `warning` and above `journalctl -x` shows what happened and"
        " the"
        " command that helps."
    )
    found.table(
        ("event", "level", "when", "what helps"),
        [
            (
                anchored(slug("log", name), code(name)),
                levels[name],
                sentence(warned.get(name) or said[name]),
                or_dash(code(helps.get(name, ""))),
            )
            for name in sorted(levels)
        ],
    )
    found.heading("Fields of the journal", anchor="journal-fields")
    found.text(
        "Entries have `SYSLOG_IDENTIFIER=latticed`, a plugin's own lines the identifier of the plugin. Which of"
        " these fields"
        " stand in an entry depends on the event; everything else is in `MESSAGE`."
    )
    found.items([", ".join(code(f"LATTICED_{name.upper()}") for name in sorted(rendering.FIELDS))])
    return str(found)
