"""Rows of host calls about a plugin's own data and this machine: kv, log, audit, notify, static, node, monitor."""

from __future__ import annotations

from tests.house.hostcall_row import READS_ONLY, Params, Row


def _kept(*keys: str) -> tuple[tuple[str, Params], ...]:
    return tuple(("kv.put", {"key": key, "value": "1"}) for key in keys)


_FILE = {"path": "a.txt", "content": "hello"}
_MONITOR = {"name": "web", "kind": "tcp", "target": "127.0.0.1:PORT"}
_SENT = {"title": "hello"}
_LABELS = {f"label-{number}": "x" for number in range(65)}

ROWS: dict[str, Row] = {
    "kv.get": Row(
        good={"key": "a"},
        before=_kept("a"),
        answers="ok value value_base64 version",
        bad=({}, {"key": 1}, {"key": None}, {"key": "a/b"}, {"key": "a", "bucket": "plugin:acme.other"}),
        down="ledger",
        why=READS_ONLY,
    ),
    "kv.list": Row(good={}, answers="keys next", bad=({"prefix": ["a"]}, {"key": "a"}), down="ledger", why=READS_ONLY),
    "kv.put": Row(
        good={"key": "a", "value": "1"},
        answers="ok",
        bad=(
            {"key": "a"},
            {"value": "1"},
            {"key": "a", "value": "1", "value_base64": "MQ=="},
            {"key": "a", "value_base64": "not base64!"},
        ),
        full=_kept("a", "b", "c"),
        down="ledger",
    ),
    "kv.delete": Row(
        good={"key": "a"}, before=_kept("a"), answers="ok", bad=({}, {"key": ".."}), down="ledger", why="it makes room"
    ),
    "log.write": Row(
        good={"message": "hello"},
        answers="ok",
        bad=({}, {"message": 1}, {"message": "a", "fields": []}),
        why="a line of the daemon's own log: it keeps nothing, and stands on nothing",
    ),
    "audit.query": Row(
        good={},
        answers="events next",
        bad=({"limit": 0}, {"limit": 501}, {"after": -1}, {"after": "1"}, {"actor": "plugin:acme.other"}),
        down="ledger",
        why=READS_ONLY,
    ),
    "notify.send": Row(
        good=_SENT,
        answers="ok id duplicate",
        bad=({}, {"title": " "}, {"title": "a", "severity": "loud"}, {"title": "a", "event": "A B"}),
        full=(("notify.send", _SENT),) * 3,
        down="ledger",
    ),
    "node.facts": Row(
        good={},
        answers="hostname os kernel machine cpus memory boot_time uptime_s disks interfaces hardware labels",
        bad=({"hardware": True},),
        down="ledger",
        why=READS_ONLY,
    ),
    "node.metrics": Row(
        good={},
        answers="uptime_s load memory cpu disks network",
        bad=({"a": 1},),
        why="it keeps nothing; what the kernel does not tell is null",
    ),
    "node.journal": Row(
        good={"filter": "sshd"},
        answers="entries cursor gap",
        bad=({}, {"filter": "other.service"}, {"filter": ""}, {"filter": "sshd", "limit": 501}),
        down="reader",
        why=READS_ONLY,
    ),
    "node.set_labels": Row(
        good={"labels": {"rack": "7"}},
        answers="ok labels",
        bad=({}, {"labels": {"A B": "x"}}, {"labels": {"a": "\n"}}, {"labels": {"a": 1}}),
        full=(("node.set_labels", {"labels": _LABELS}),),
        down="ledger",
    ),
    "monitor.list": Row(
        good={},
        before=(("monitor.put", _MONITOR),),
        answers="monitors next",
        bad=({"after": 1},),
        why="it keeps nothing, and what is watched is in memory",
    ),
    "monitor.results": Row(
        good={"name": "web"},
        before=(("monitor.put", _MONITOR),),
        answers="state results",
        bad=({}, {"name": "web", "limit": 0}, {"name": "web", "after": -1}),
        down="ledger",
        why=READS_ONLY,
    ),
    "monitor.put": Row(
        good=_MONITOR,
        answers="ok target",
        bad=(
            {},
            {**_MONITOR, "kind": "smell"},
            {**_MONITOR, "name": "a b"},
            {**_MONITOR, "interval_s": 0.1},
            {**_MONITOR, "target": "127.0.0.1"},
        ),
        full=(("monitor.put", _MONITOR), ("monitor.put", {**_MONITOR, "name": "other"})),
        down="ledger",
    ),
    "monitor.delete": Row(
        good={"name": "web"},
        before=(("monitor.put", _MONITOR),),
        answers="ok",
        bad=({}, {"name": 1}),
        down="ledger",
        why="it makes room",
    ),
    "static.get": Row(
        good={"path": "a.txt"},
        before=(("static.put", _FILE),),
        answers="ok content content_base64 bytes content_type etag modified_at",
        bad=({}, {"path": "../a.txt"}, {"path": "a.txt", "offset": -1}, {"path": "a.txt", "plugin": "acme.other"}),
        down="descriptors",
        why=READS_ONLY,
    ),
    "static.list": Row(
        good={},
        answers="files next publisher",
        bad=({"prefix": 1}, {"plugin": "acme.other"}),
        down="descriptors",
        why=READS_ONLY,
    ),
    "static.put": Row(
        good=_FILE,
        answers="ok bytes content_type etag",
        bad=({}, {"path": "a.txt"}, {"path": "a.exe", "content": ""}, {"path": "/etc/a.txt", "content": ""}),
        full=(("static.put", _FILE), ("static.put", {**_FILE, "path": "b.txt"})),
        down="descriptors",
    ),
    "static.delete": Row(
        good={"path": "a.txt"},
        before=(("static.put", _FILE),),
        answers="ok",
        bad=({}, {"path": ""}, {"path": "a//b.txt"}),
        down="descriptors",
        why="it makes room",
    ),
}
