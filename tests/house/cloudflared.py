#!/usr/bin/env python3
"""A cloudflared for tests: its command line, its `/ready`, its exit codes, what its check lets pass, and how it ends.

It connects to the tests' edge (`tests/house/edges.py`) where EDGE names one, carries requests to origins by the rules
of its configuration, and on SIGTERM takes no new ones and finishes those under way, as the real one does. Without an
edge it connects to nothing and says that it is ready.

Words in the names it serves select how it behaves: `offline`: no name service (exit 1); `unready`: it never connects;
`managed`: its rules come from the provider; `dies`: it exits a moment after it connected; `ponders`: its check never
ends. A secret of zeros is one that the provider refuses (exit 255). It runs confined, with the
standard library only.
"""

import argparse
import base64
import contextlib
import http.client
import http.server
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.parse

VERSION = "2025.11.1"
EDGE = ""
"""host:port of the edge; `edges.install` writes both of these."""
SERVICES = re.compile(
    r"(https?|ftp|tcp|ssh|rdp|smb)://[^/]+|unix:/.+|http_status:\d{3}|hello_world|bastion|socks-proxy"
)
CONNECTIONS = 2
"""To the edge; the real one has four."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="cloudflared")
    parser.add_argument("--version", action="version", version=f"cloudflared version {VERSION} (built 2025-11-07)")
    tunnel = parser.add_subparsers(dest="command", required=True).add_parser("tunnel")
    tunnel.add_argument("--config", required=True)
    tunnel.add_argument("--no-autoupdate", action="store_true")
    tunnel.add_argument("--metrics")
    actions = tunnel.add_subparsers(dest="action", required=True)
    actions.add_parser("run")
    actions.add_parser("ingress").add_subparsers(dest="check", required=True).add_parser("validate")
    args = parser.parse_args()
    with open(args.config) as file:
        config = json.load(file)
    if args.action == "ingress":
        return validate(config)
    if not args.no_autoupdate or not args.metrics:
        print("ERR it would update itself, or show its metrics to everybody", file=sys.stderr)
        return 1
    return run(args, config)


def validate(config) -> int:
    """The exit code of `validate`, as the real one gives it: duplicates, unusual schemes, malformed ids and unknown
    keys are accepted.
    """
    rules = config.get("ingress") or []
    if any("ponders" in rule.get("hostname", "") for rule in rules):
        threading.Event().wait()
    for number, rule in enumerate(rules, start=1):
        last = number == len(rules)
        is_open = rule.get("hostname", "") in ("", "*") and not rule.get("path")
        if not SERVICES.fullmatch(rule["service"]) or last != is_open or "refused" in rule.get("hostname", ""):
            print(f"Validation failed: rule {number} is invalid", file=sys.stderr)
            return 1
        re.compile(rule.get("path", ""))
    print("Validating rules\nOK")
    return 0 if rules else 1


def run(args, config) -> int:
    with open(config["credentials-file"]) as file:
        credentials = json.load(file)
    for path in (args.config, config["credentials-file"]):
        assert os.stat(path).st_mode & 0o777 == 0o600, path
        assert os.stat(path).st_uid == os.getuid(), path
    names = " ".join(rule.get("hostname", "") for rule in config["ingress"])
    print("INF Starting tunnel", config["tunnel"], "for", names, flush=True)
    if "offline" in names:
        print("ERR Failed to fetch features: lookup: no such host", file=sys.stderr)
        return 1
    if credentials["TunnelID"] != config["tunnel"] or not any(base64.b64decode(credentials["TunnelSecret"])):
        return refused()
    connector = Connector(config, credentials)
    for _ in range(CONNECTIONS if EDGE else 0):
        threading.Thread(target=connector.keep_connected, daemon=True).start()
    serve(args.metrics, connector, names)
    return 255 if connector.refused else 0


def refused() -> int:
    print("ERR Unauthorized: Invalid tunnel secret", file=sys.stderr)
    return 255


class Connector:
    """The connections to the edge, and the requests that come over them: a line of JSON each, as their answers."""

    def __init__(self, config, credentials) -> None:
        self.rules = config["ingress"]
        self.hello = {"tunnel": config["tunnel"], "secret": credentials["TunnelSecret"]}
        self.connected = 0
        self.refused = False
        self.ending = threading.Event()
        self.wires = []
        self.lock = threading.Lock()
        self.idle = threading.Condition(self.lock)
        self.under_way = 0
        self.stop = lambda: None

    def keep_connected(self) -> None:
        while not self.ending.is_set():
            with contextlib.suppress(OSError, ValueError):
                self.connect()
            self.ending.wait(0.05)

    def connect(self) -> None:
        host, port = EDGE.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=5) as sock, sock.makefile("rwb") as wire:
            sock.settimeout(None)
            self.say(wire, self.hello)
            said = json.loads(wire.readline() or b"{}")
            if said.get("refused"):
                self.refused = True
                refused()
                self.stop()
                return
            if not said.get("ok"):
                return
            with self.lock:
                self.connected += 1
                self.wires.append(wire)
            try:
                for line in wire:
                    if json.loads(line).get("bye"):
                        break
                    with self.lock:
                        self.under_way += 1
                    threading.Thread(target=self.answer, args=(wire, json.loads(line)), daemon=True).start()
                with self.lock:
                    self.idle.wait_for(lambda: not self.under_way, timeout=30)
            finally:
                with self.lock:
                    self.connected -= 1
                    self.wires.remove(wire)

    def answer(self, wire, asked) -> None:
        try:
            status, body = self.carried(asked)
        except (OSError, http.client.HTTPException) as error:
            status, body = 502, str(error)
        with contextlib.suppress(OSError, ValueError):
            self.say(wire, {"id": asked["id"], "status": status, "body": body})
        with self.lock:
            self.under_way -= 1
            self.idle.notify_all()

    def carried(self, asked):
        """(status, body) from the origin of the first rule that matches."""
        rule = next(rule for rule in self.rules if matches(rule, asked))
        if rule["service"].startswith("http_status:"):
            return int(rule["service"].partition(":")[2]), ""
        origin = urllib.parse.urlsplit(rule["service"])
        said = rule.get("originRequest", {}).get("httpHostHeader", origin.netloc)
        connection = http.client.HTTPConnection(origin.hostname, origin.port, timeout=30)
        try:
            connection.request("GET", asked["path"], headers={"Host": said})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def say(self, wire, message) -> None:
        with self.lock:
            wire.write(json.dumps(message).encode() + b"\n")
            wire.flush()

    def end(self) -> None:
        """Take no new requests, and return once those under way are answered."""
        self.ending.set()
        for wire in list(self.wires):
            with contextlib.suppress(OSError, ValueError):
                self.say(wire, {"unregister": True})
        until = time.monotonic() + 30
        while self.connected and time.monotonic() < until:
            time.sleep(0.005)
        self.stop()


def matches(rule, asked) -> bool:
    name = rule.get("hostname", "")
    named = name in ("", asked["host"]) or (name.startswith("*.") and asked["host"].endswith(name[1:]))
    return named and re.search(rule.get("path", ""), asked["path"]) is not None


def serve(place, connector, names) -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            count = connector.connected if EDGE else 4
            ready = count > 0 and "unready" not in names
            pages = {
                "/ready": (200 if ready else 503, {"status": 200 if ready else 503, "readyConnections": count}),
                "/healthcheck": (200, "OK"),
                "/config": (200, {"version": 0 if "managed" in names else -1, "config": {}}),
            }
            status, said = pages.get(self.path, (404, ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())
            if "dies" in names and self.path == "/config":
                os._exit(1)

        def log_message(self, *_):
            pass

    host, port = place.rsplit(":", 1)
    server = http.server.HTTPServer((host, int(port)), Page)
    connector.stop = lambda: threading.Thread(target=server.shutdown).start()
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=connector.end).start())
    server.serve_forever(poll_interval=0.02)
    print("INF Tunnel server stopped", flush=True)


if __name__ == "__main__":
    sys.exit(main())
