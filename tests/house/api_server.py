"""A daemon's control API as latticectl sees it: a real HTTP server on a real unix socket, answers made here.

It keeps plugins, grants, values and events in memory and follows TRANSITIONS, so that it refuses what a daemon refuses.
`override` sets the answer of a route; `drop` closes connections without an answer; for each of `stopping` a request is
answered as by a daemon that stops, True: nothing was done. Event streams end after the last
event; `streams` replace the next ones, `resumed` has the Last-Event-IDs of requests.
"""

from __future__ import annotations

import contextlib
import copy
import json
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from latticed.model import lifecycle

Answer = tuple[int, Any]

A = TypeVar("A", bound="Api")

CANDIDATE: dict[str, Any] = {
    "version": "1.1.0",
    "artifact_sha256": "cd" * 32,
    "identity": "ef" * 32,
    "adds": ["http:egress"],
    "drops": [],
    "needs_downgrade": False,
}
"""A CandidateView as the daemon would send it."""

_STAMPS = {"installed": "installed_at", "active": "activated_at", "disabled": "disabled_at"}


def plugin(plugin_id: str = "acme.demo", **fields: Any) -> dict[str, Any]:
    """A PluginView as the daemon would send it."""
    return {
        "id": plugin_id,
        "name": "Demo",
        "type": "system",
        "version": "1.0.0",
        "publisher": "acme",
        "capabilities": ["kv:read"],
        "artifact_sha256": "ab" * 32,
        "available": True,
        "status": "verified",
        "runtime": {"state": "stopped", "runner": "noop", "health": "unknown", "message": ""},
        "granted": ["kv:read"],
        "builtin": False,
        "updated_at": "2025-01-31T08:00:00.000000Z",
        **fields,
    }


def event(seq: int, **fields: Any) -> dict[str, Any]:
    """One AuditRow; its hashes are no real chain."""
    return {
        "seq": seq,
        "ts": "2025-01-31T08:00:00.000000Z",
        "actor": "uid:0 user:root pid:1",
        "action": "plugin.status",
        "target": "acme.demo",
        "decision": "allow",
        "code": "",
        "reason": "",
        "detail": {},
        "prev": "00" * 32,
        "hash": f"{seq:064x}",
        **fields,
    }


def problem(status: int, code: str, detail: str = "", hint: str = "") -> Answer:
    return status, {
        "type": "about:blank",
        "title": code,
        "status": status,
        "code": code,
        "detail": detail or f"simulated {code}",
        "hint": hint,
    }


def sse(*events: dict[str, Any], upto: int | None = None) -> bytes:
    """Server-sent events as the daemon writes them; with `upto`, all there is up to that seq."""
    said = [": latticed events\n\n"]
    said += [f"id: {row['seq']}\nevent: {row['action']}\ndata: {json.dumps(row)}\n\n" for row in events]
    said += [f": up to date\nid: {upto}\n\n"] if upto is not None else []
    return "".join(said).encode()


@dataclass
class Api:
    """The simulated daemon's state, and what it was asked."""

    socket: Path
    plugins: dict[str, dict[str, Any]] = field(default_factory=dict)
    hosts: dict[str, list[str]] = field(default_factory=dict)
    declared_hosts: dict[str, list[str]] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    denials: list[dict[str, Any]] = field(default_factory=list)
    values: dict[tuple[str, str], bytes] = field(default_factory=dict)
    secrets: dict[str, bytes] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    health: Answer = (200, {"status": "ok", "problems": []})
    fails_to_arm: set[str] = field(default_factory=set)
    override: dict[str, Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    streams: list[Answer] = field(default_factory=list)
    metrics: str = ""
    drop: int = 0
    stopping: list[bool] = field(default_factory=list)
    page: int = 2
    left: dict[str, int] = field(default_factory=dict)

    def add(self, plugin_id: str = "acme.demo", **fields: Any) -> dict[str, Any]:
        self.plugins[plugin_id] = plugin(plugin_id, **fields)
        return self.plugins[plugin_id]

    def until_asked(self, times: int, *, within_s: float = 20.0) -> None:
        """Wait until so many requests have come."""
        deadline_s = time.monotonic() + within_s
        while len(self.asked) < times:
            assert time.monotonic() < deadline_s, f"expected {times} requests, got {self.asked}"
            time.sleep(0.002)

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        """Status and body (bytes, or a JSON value) for one request; `path` without /api/."""
        if found := self.override.get(f"{method} {path}"):
            return found
        parts = [unquote(part, errors="surrogateescape") for part in path.split("/")]
        match method, parts:
            case "GET", ["status"]:
                return 200, self._status()
            case "GET", ["health"]:
                return self.health
            case "GET", ["plugins"] | ["plugins", "brief"]:
                return 200, list(self.plugins.values())
            case "GET", ["plugins", "rejected"]:
                about = query.get("about")
                found = [one for one in self.rejected if about in {None, one.get("id"), one["name"]}]
                return 200, found[: int(query["limit"])] if "limit" in query else found
            case "POST", ["plugins", "lifecycle"]:
                return self._change(json.loads(body))
            case _, ["plugins", "by-id", plugin_id, *rest]:
                return self._one(method, plugin_id, rest, body)
            case _, ["kv", *names]:
                return self._kv(method, names, query, body)
            case "PUT", ["secrets", name]:
                self.secrets[name] = body
                return 204, b""
            case "POST", ["trust", "lift"]:
                return 200, {**json.loads(body), "lifted": True}
            case "GET", _:
                return self._seen(parts, query)
        return problem(404, "not_found", f"no route {path}")

    def _seen(self, parts: list[str], query: dict[str, str]) -> Answer:
        match parts:
            case ["audit"]:
                return 200, self._audit(query)
            case ["events"]:
                return self.streams.pop(0) if self.streams else (200, self._stream(query))
            case ["", "metrics"]:
                return 200, self.metrics.encode()
            case ["audit", "verify"]:
                return 200, {"ok": True, "events": len(self.events), "heads": 1, "head": {"seq": 3, "hash": "f" * 64}}
        return problem(404, "not_found", f"no route {'/'.join(parts)}")

    def _status(self) -> dict[str, Any]:
        return {
            "version": "9.8.7",
            "started_at": "2025-01-31T08:00:00.000000Z",
            "uptime_s": 7260,
            "plugins": {"active": 2, "verified": 0, "installed": 1},
            "rejected": 1,
            "runtime": {"armed": 1, "failed": 1},
            "state": "ok",
            "audit": {"seq": 12, "head": "ab" * 32},
            "public_key": "aG9zdCBrZXk=",
        }

    def _change(self, wanted: dict[str, Any]) -> Answer:
        found = self.plugins.get(wanted["id"])
        if found is None:
            return problem(404, "not_found", f"no plugin {wanted['id']}")
        if wanted.get("dry_run"):
            found = copy.deepcopy(found)
        accepted = wanted["status"] == "installed" and found["status"] != "verified"
        if wanted.get("already_so") and (accepted or found["status"] == wanted["status"]):
            return 200, {**found, "changed": False}
        if wanted["status"] not in lifecycle.TRANSITIONS[lifecycle.Status(found["status"])]:
            return problem(409, "invalid_transition", f"{found['id']} is {found['status']}", "see latticectl info")
        found["status"] = wanted["status"]
        found[_STAMPS[wanted["status"]]] = "2025-01-31T09:00:00.000000Z"
        found["granted"] = sorted({*found["granted"], *wanted.get("accept", [])})
        if not wanted.get("dry_run"):
            self.hosts.setdefault(found["id"], []).extend(wanted.get("accept_hosts", []))
            self._arm(found)
        return 200, found

    def _arm(self, found: dict[str, Any]) -> None:
        runtime = found["runtime"]
        runtime["state"] = "armed" if found["status"] == "active" else "stopped"
        if found["status"] == "active" and found["id"] in self.fails_to_arm:
            runtime["state"] = "failed"
            runtime["last_error"] = {"code": "start_timeout", "message": "no answer within 10 s"}

    def _one(self, method: str, plugin_id: str, rest: list[str], body: bytes) -> Answer:
        found = self.plugins.get(plugin_id)
        if found is None:
            return problem(404, "not_found", f"no plugin {plugin_id}")
        match method, rest:
            case "GET", []:
                verdict = {"ok": found["available"], "code": None, "reason": None, "hint": None}
                grants = self._grants(found)
                return 200, {"plugin": found, "verdict": verdict, "grants": grants, "denials": self.denials}
            case "GET", ["grants"]:
                return 200, self._grants(found)
            case "PUT", ["grants"]:
                return 200, self._regrant(found, json.loads(body))
            case "POST", ["restart"]:
                self._arm(found)
                return 200, found
            case "POST", ["upgrade"]:
                return self._upgrade(found, json.loads(body))
            case "POST", ["forget"]:
                del self.plugins[plugin_id]
                purge = json.loads(body).get("purge", False)
                return 200, {"id": plugin_id, "forgotten": True, "purged": purge, "data": self.left}
        return problem(404, "not_found", "no such route")

    def _grants(self, found: dict[str, Any]) -> dict[str, Any]:
        masked = [name for name in found["capabilities"] if name not in found["granted"]]
        grants = {"declared": found["capabilities"], "granted": found["granted"], "masked": masked}
        hosts = self.hosts.get(found["id"], [])
        withheld = [one for one in self.declared_hosts.get(found["id"], []) if one not in hosts]
        return copy.deepcopy({"id": found["id"], **grants, "hosts": hosts, "withheld_hosts": withheld})

    def _regrant(self, found: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
        caps = {field: {one for one in change[field] if "=" not in one} for field in ("grant", "trim")}
        found["granted"] = sorted({*found["granted"], *caps["grant"]} - caps["trim"])
        named = {f: [one[5:] for one in change[f] if one.startswith("host=")] for f in ("grant", "trim")}
        known = [*self.hosts.get(found["id"], []), *named["grant"]]
        self.hosts[found["id"]] = [one for one in dict.fromkeys(known) if one not in named["trim"]]
        if "hosts" in change:
            self.hosts[found["id"]] = change["hosts"]
        return self._grants(found)

    def _upgrade(self, found: dict[str, Any], consent: dict[str, Any]) -> Answer:
        candidate = found.get("candidate")
        if candidate is None:
            there = found["status"] != "verified" and found["available"] and "accept_publisher" not in consent
            if there and consent.get("already_so"):
                return 200, {**found, "changed": False}
            return problem(409, "no_candidate", f"{found['id']} has no candidate")
        if candidate["needs_downgrade"] and not consent.get("allow_downgrade"):
            return problem(409, "version_downgrade", f"{candidate['version']} is below {found['version']}")
        if consent.get("identity", candidate["identity"]) != candidate["identity"]:
            return problem(409, "identity_mismatch", f"found {candidate['identity']}", "latticectl info acme.demo")
        if consent.get("dry_run"):
            found = copy.deepcopy(found)
            found["identity"] = candidate["identity"]
        del found["candidate"]
        found["version"] = candidate["version"]
        return 200, found

    def _kv(self, method: str, names: list[str], query: dict[str, str], body: bytes) -> Answer:
        if len(names) == 1:
            keys = sorted(k for b, k in self.values if b == names[0] and k.startswith(query.get("prefix", "")))
            keys = [key for key in keys if key > query.get("after", "")]
            return 200, {"keys": keys[: self.page], "next": keys[self.page - 1] if len(keys) > self.page else None}
        bucket, key = names
        if method == "PUT":
            self.values[bucket, key] = body
            return 204, b""
        if (bucket, key) not in self.values:
            return problem(404, "not_found", f"no key {key}")
        if method == "DELETE":
            del self.values[bucket, key]
            return 200, {"bucket": bucket, "key": key, "deleted": True}
        return 200, self.values[bucket, key]

    def _stream(self, query: dict[str, str]) -> bytes:
        last = self.events[-1]["seq"] if self.events else 0
        after = int(str(self.resumed[-1] or query.get("after", last)).partition(".")[0])
        rows = [row for row in self.events if row["seq"] > after]
        return sse(*(row for row in rows if query.get("host_calls") == "1" or row["action"] != "host.call"), upto=last)

    def _audit(self, query: dict[str, str]) -> dict[str, Any]:
        if query.get("calls"):
            return {"events": [], "next": None}
        names = ("actor", "action", "target", "decision")
        after, limit = int(query.get("after", "0").partition(".")[0]), int(query.get("limit", 100))
        rows = [row for row in self.events if all(row[n] == query[n] for n in names if n in query)]
        if query.get("newest"):
            return {"events": rows[::-1][:limit], "next": None}
        rows = [row for row in rows if row["seq"] > after]
        return {"events": rows[:limit], "next": rows[limit - 1]["seq"] if len(rows) > limit else None}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_request(self) -> None:
        api = self.server.api
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        split = urlsplit(self.path)
        api.asked.append(f"{self.command} {self.path}")
        api.bodies.append(body)
        if split.path == "/api/events":
            api.resumed.append(self.headers.get("Last-Event-ID", ""))
        if api.drop > 0:
            api.drop -= 1
            self.close_connection = True
            return
        path = split.path.removeprefix("/api/")
        undone = False
        if api.stopping:
            undone = api.stopping.pop(0)
            status, answer = 503, {"code": "stopping", "detail": "the daemon stops", "hint": ""}
        else:
            status, answer = api.answer(self.command, path, dict(parse_qsl(split.query)), body)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        kind = "application/octet-stream" if isinstance(answer, bytes) else "application/json"
        self.send_response(status)
        self.send_header("Content-Type", kind if status < 400 else "application/problem+json")
        if undone:
            self.send_header("Retry-After", "1")
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data if status != 204 else b"")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.handle_request
        raise AttributeError(name)

    def log_message(self, *args: Any) -> None:
        """Log nothing: tests read `asked`."""


class _Server(socketserver.UnixStreamServer):
    def __init__(self, api: Api) -> None:
        self.api = api
        super().__init__(str(api.socket), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has read enough may be gone; anything else is printed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving(socket: Path, kind: type[A] = Api) -> Iterator[A]:  # type: ignore[assignment]
    """The simulated API, listening at `socket` while the context lasts; `kind`: another's."""
    api = kind(socket=socket)
    with _Server(api) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield api
        finally:
            server.shutdown()
            thread.join()
            socket.unlink(missing_ok=True)
