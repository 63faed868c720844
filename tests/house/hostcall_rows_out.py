"""Rows of host calls that reach out or change the host: http, mail, ddns, route, network, task, service, tunnel."""

from __future__ import annotations

from latticed.model import plan
from tests.house.hostcall_row import READS_ONLY, Row

_RECORD = {"name": "home.example.org", "type": "A"}
_FOLLOWS = {
    **_RECORD,
    "provider": "rfc2136",
    "secret": "${secret:BOUND}",
    "address": "93.184.215.14",
    "server": "127.0.0.1:PORT",
    "key": "update",
}
_MAIL = {"to": "ops@example.org", "subject": "hello", "body": "text"}
_PLAN = {"kind": "nft", "intent": {"never": ["203.0.113.0/24"]}}
_PLANNED = {"sha256": plan.sha256(plan.canonical(_PLAN["kind"], _PLAN["intent"]))}
_ROUTE = {"path": "/acme.route/x", "target": "template", "template": "hello {{path}}"}
_SCRIPT = {"interpreter": "sh", "script": "echo hello"}
_PROGRAM = {"name": "nap", "program": "sh", "args": ["-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"]}
TUNNEL_ID = "6ff42ae2-765d-4adf-8112-31c55c1551ef"
_TUNNEL = {
    "name": "main",
    "tunnel": TUNNEL_ID,
    "credentials": "main.json",
    "ingress": [{"service": "http_status:404"}],
}

ROWS: dict[str, Row] = {
    "http.do": Row(
        good={"url": "http://127.0.0.1:PORT/"},
        answers="status_code header body_base64",
        bad=(
            {},
            {"url": "http://127.0.0.1:PORT/", "method": "STEAL"},
            {"url": "http://127.0.0.1:PORT/", "header": {"a": 1}},
            {"url": "http://127.0.0.1:PORT/", "header": {"host": "other"}},
            {"url": "http://127.0.0.1:PORT/", "body": "${secret:UNBOUND}"},
            {"url": "http://127.0.0.1:PORT/", "body_base64": "not base64!"},
            {"url": "http://127.0.0.1:PORT/", "sign": {"secret": "a value", "id": "m1"}},
            {"url": "http://127.0.0.1:PORT/", "sign": {"secret": "${secret:UNBOUND}", "id": "m1"}},
            {"url": "http://10.0.0.1:PORT/", "service": "web"},
            {"url": "https://127.0.0.1:PORT/", "service": "web"},
        ),
        down="target",
        why=READS_ONLY,
    ),
    "mail.send": Row(
        good=_MAIL,
        answers="ok message_id recipients",
        bad=(
            {},
            {**_MAIL, "to": []},
            {**_MAIL, "to": "nobody"},
            {**_MAIL, "subject": "a\r\nBcc: all@example.org"},
            {**_MAIL, "body": "${secret:UNBOUND}"},
        ),
        down="relay",
        why=READS_ONLY,
    ),
    "ddns.put": Row(
        good=_FOLLOWS,
        answers="ok name type state",
        bad=(
            {},
            {**_FOLLOWS, "type": "MX"},
            {**_FOLLOWS, "name": "home"},
            {**_FOLLOWS, "secret": "hunter2"},
            {**_FOLLOWS, "secret": "${secret:UNBOUND}"},
            {**_FOLLOWS, "address": "10.0.0.1"},
        ),
        full=(("ddns.put", _FOLLOWS), ("ddns.put", {**_FOLLOWS, "name": "other.example.org"})),
        down="ledger",
    ),
    "ddns.delete": Row(
        good=_RECORD,
        before=(("ddns.put", _FOLLOWS),),
        answers="ok",
        bad=({}, {"name": "home", "type": "A"}, {**_RECORD, "type": "MX"}),
        down="ledger",
        why="it makes room",
    ),
    "ddns.status": Row(
        good={},
        before=(("ddns.put", _FOLLOWS),),
        answers="records",
        bad=({"name": 1}, {"name": "home"}, {"type": "MX"}),
        why="it keeps nothing, and how records stand is in memory",
    ),
    "network.state": Row(
        good={"kind": "listeners"},
        answers="kind listeners complete",
        bad=({}, {"kind": "weather"}, {"kind": 1}),
        why="it keeps nothing; it reads what the kernel tells",
    ),
    "network.plan": Row(
        good=_PLAN,
        answers="ok sha256 kind state code reason number created_at updated_at",
        bad=(
            {},
            {**_PLAN, "kind": "weather"},
            {"kind": "nft"},
            {**_PLAN, "intent": {"a": 0.5}},
            {**_PLAN, "intent": []},
        ),
        down="ledger",
        why="an older plan makes way for a newer one",
    ),
    "network.plans": Row(
        good={},
        before=(("network.plan", _PLAN),),
        answers="plans next",
        bad=({"sha256": "abc"}, {"limit": 0}, {"after": -1}),
        down="ledger",
        why=READS_ONLY,
    ),
    "network.apply": Row(
        good=_PLANNED,
        before=(("network.plan", _PLAN),),
        answers="",
        refused="service_unavailable",
        bad=({}, {"sha256": "abc"}),
        down="ledger",
        why="it keeps nothing; what the root helper does is in its own state",
    ),
    "route.put": Row(
        good=_ROUTE,
        answers="ok path url message",
        bad=(
            {},
            {**_ROUTE, "target": "elsewhere"},
            {**_ROUTE, "template": "{{path"},
            {**_ROUTE, "path": "/acme.other/x"},
            {**_ROUTE, "path": "/acme.route/../x"},
            {**_ROUTE, "action": "greet"},
            {**_ROUTE, "service": "web"},
        ),
        full=tuple(("route.put", {**_ROUTE, "path": f"/acme.route/{number}"}) for number in range(33)),
        down="ledger",
    ),
    "route.delete": Row(
        good={"path": "/acme.route/x"},
        before=(("route.put", _ROUTE),),
        answers="ok",
        bad=({}, {"path": 1}),
        down="ledger",
        why="it makes room",
    ),
    "task.submit": Row(
        good=_SCRIPT,
        answers="ok id sha256 state",
        bad=(
            {},
            {**_SCRIPT, "interpreter": "perl"},
            {**_SCRIPT, "script": " "},
            {**_SCRIPT, "timeout_s": 0},
            {**_SCRIPT, "targets": ["\n"]},
            {**_SCRIPT, "script": "echo ${secret:BOUND}"},
        ),
        full=(("task.submit", _SCRIPT),) * 7,
        down="ledger",
    ),
    "task.list": Row(
        good={},
        before=(("task.submit", _SCRIPT),),
        answers="tasks next",
        bad=({"state": "odd"}, {"limit": 0}, {"after": -1}, {"before": -1}),
        down="ledger",
        why=READS_ONLY,
    ),
    "task.get": Row(
        good={"id": "LAST-ID"},
        before=(("task.submit", _SCRIPT),),
        answers="seq id plugin name interpreter sha256 state code reason exit_code signal script targets timeout_s run"
        " approved_by created_at approved_at started_at ended_at stdout stderr stdout_bytes stderr_bytes truncated",
        bad=({}, {"id": 1}),
        down="ledger",
        why=READS_ONLY,
    ),
    "task.cancel": Row(
        good={"id": "LAST-ID"},
        before=(("task.submit", _SCRIPT),),
        answers="ok state",
        bad=({}, {"id": 1}),
        down="ledger",
        why="it makes room",
    ),
    "service.put": Row(
        good=_PROGRAM,
        answers="ok name state",
        bad=(
            {},
            {**_PROGRAM, "name": "a/b"},
            {**_PROGRAM, "program": "bash"},
            {**_PROGRAM, "args": ["\u0000"]},
            {**_PROGRAM, "environment": {"LD_PRELOAD": "x"}},
            {**_PROGRAM, "args": ["${secret:BOUND}"]},
            {**_PROGRAM, "restart": "sometimes"},
            {**_PROGRAM, "hosts": ["api.example.org:443"]},
            {**_PROGRAM, "network": "own", "hosts": ["no port"]},
            {**_PROGRAM, "data": {"bytes": 1}},
            {**_PROGRAM, "data": {"bytes": 0, "files": 1}},
            {**_PROGRAM, "data": {"bytes": 1 << 50, "files": 1}},
        ),
        full=(("service.put", _PROGRAM), ("service.put", {**_PROGRAM, "name": "other"})),
        down="ledger",
    ),
    "service.delete": Row(
        good={"name": "nap"},
        before=(("service.put", _PROGRAM),),
        answers="ok",
        bad=({}, {"name": 1}, {"name": "a/b"}, {"name": "nap", "data": 1}),
        down="ledger",
        why="it makes room",
    ),
    "service.status": Row(
        good={"name": "nap"},
        before=(("service.put", _PROGRAM),),
        answers="services",
        bad=({"name": 1},),
        why="it keeps nothing, and what runs is in memory",
    ),
    "service.save": Row(
        good={"name": "nap", "files": ["kept.json"]},
        before=(("service.put", _PROGRAM),),
        answers="",
        refused="not_found",
        bad=(
            {},
            {"name": "nap", "files": []},
            {"name": "nap", "files": ["../kept.json"]},
            {"name": "nap", "files": ["index.json"]},
            {"name": "a/b", "files": ["kept.json"]},
        ),
        why="it keeps a number of copies, and this service has kept nothing that could be copied",
    ),
    "service.saved": Row(
        good={"name": "nap"},
        before=(("service.put", _PROGRAM),),
        answers="saved",
        bad=({}, {"name": "a/b"}),
        why=READS_ONLY,
    ),
    "service.revert": Row(
        good={"name": "nap", "id": "20260101T000000Z-01234567"},
        before=(("service.put", _PROGRAM),),
        answers="",
        refused="not_found",
        bad=({}, {"name": "a/b", "id": "x"}, {"name": "nap", "id": 1}),
        why="it keeps nothing more, and there is no copy of this service",
    ),
    "tunnel.put": Row(
        good=_TUNNEL,
        answers="ok name state trying",
        bad=(
            {},
            {**_TUNNEL, "ingress": []},
            {**_TUNNEL, "tunnel": "main"},
            {**_TUNNEL, "token": "main.token"},
            {**_TUNNEL, "credentials": "../main.json"},
            {**_TUNNEL, "ingress": [{"service": "file:///etc/passwd"}]},
        ),
        full=(("tunnel.put", _TUNNEL), ("tunnel.put", {**_TUNNEL, "name": "other"})),
        down="ledger",
    ),
    "tunnel.delete": Row(
        good={"name": "main"},
        before=(("tunnel.put", _TUNNEL),),
        answers="ok",
        bad=({}, {"name": 1}),
        down="ledger",
        why="it makes room",
    ),
    "tunnel.status": Row(
        good={"name": "main"},
        before=(("tunnel.put", _TUNNEL),),
        answers="tunnels",
        bad=({"name": 1},),
        why="it keeps nothing, and what runs is in memory",
    ),
}
