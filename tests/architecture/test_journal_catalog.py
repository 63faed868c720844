"""The journal's catalog says of every event of warning and above what happened and which command helps."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

from latticed.ctl import main
from latticed.kit.rendering import message_id

ROOT = Path(__file__).resolve().parents[2]
LEVELS = {"warning", "error", "critical", "exception"}
LOGS = {"log", "_log"}
KINDS = ("ddns", "monitor", "service", "tunnel")
"""What the keepers of `latticed/host` name their events by."""
COMPUTED = {
    *(f"{kind}_unreadable" for kind in KINDS),
    *(f"{kind}_failed" for kind in KINDS),
    *("services_failed", "tunnels_failed"),
    # The level depends on how it went.
    *("schedule_ended", "plugin_said"),
    # `kit.logs` writes it itself.
    "log_dropped",
}
"""Events whose call has no literal name or level."""


def catalog() -> dict[str, tuple[str, str, list[str]]]:
    """Event -> its number, its subject, and its commands."""
    found = {}
    for part in re.split(r"^# (?=[a-z_]+\n-- )", (ROOT / "systemd/latticed.catalog").read_text(), flags=re.MULTILINE)[
        1:
    ]:
        event, number, subject = part.split("\n")[:3]
        commands = [line.strip() for line in part.split("\n") if line.startswith("    ")]
        found[event] = (number.removeprefix("-- "), subject.removeprefix("Subject: "), commands)
    return found


CATALOG = catalog()


def logged() -> tuple[set[str], list[str]]:
    """Events of warning and above with a literal name; and where there is a call without one."""
    events, others = set(), []
    for path in (ROOT / "latticed").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            match node:
                case ast.Call(func=ast.Attribute(attr=level, value=on), args=[first, *_]) if level in LEVELS:
                    name = on.id if isinstance(on, ast.Name) else on.attr if isinstance(on, ast.Attribute) else ""
                    if name not in LOGS or ast.unparse(on) == "self.host.log":  # the latter is a host call
                        continue
                    if isinstance(first, ast.Constant):
                        events.add(first.value)
                    else:
                        others.append(f"{path.relative_to(ROOT)}: {ast.unparse(first)}")
    return events, others


def test_every_event_of_warning_and_above_is_in_the_catalog():
    """And no other: an entry for an event that nobody logs is out of date."""
    events, others = logged()
    missing = sorted((events | COMPUTED) - CATALOG.keys())
    assert missing == [], "add to systemd/latticed.catalog:\n" + "\n".join(
        f"# {e}\n-- {message_id(e)}" for e in missing
    )
    assert CATALOG.keys() - events - COMPUTED == set(), "nobody logs these"
    # Of `Keeper`, `ScheduledKeeper` (twice) and `SupervisedKeeper`: what they can be is in COMPUTED.
    assert sorted(others) == [
        "latticed/host/keeper.py: event",
        "latticed/host/program/supervised_keeper.py: failed",
        *["latticed/host/scheduled.py: event"] * 2,
    ]


def test_kinds_of_keepers_are_those_that_the_catalog_knows():
    named = r"super\(\).__init__\(\s*(?:self\.)?_?ledger,\s*\"([a-z]+)\""
    found = {kind for path in (ROOT / "latticed/host").rglob("*.py") for kind in re.findall(named, path.read_text())}
    assert found == set(KINDS)


def test_entries_have_the_number_of_their_event_and_commands():
    """A command of latticectl is one that it takes."""
    for event, (number, subject, commands) in CATALOG.items():
        assert number == message_id(event), event
        assert subject, event
        assert commands, f"{event}: what is to be done?"
        for command in commands:
            words = shlex.split(re.sub("@[A-Z_]+@", "acme.demo", command))
            if words[0] == "latticectl":
                main.verb_parser(words[1], main.load(words[1])).parse_args(words[2:])
