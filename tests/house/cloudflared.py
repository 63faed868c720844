#!/usr/bin/env python3
"""A cloudflared that connects to nothing: its command line, its `/ready`, its exit codes, and what its check lets pass.

Words in the names it serves select how it behaves: `offline`: no name service (exit 1); `unready`: it never connects;
`managed`: its rules come from the provider; `dies`: it exits a moment after it connected; `ponders`: its check never
ends. A secret of zeros is one that the provider refuses (exit 255). It runs confined, with the
standard library only.
"""

import argparse
import base64
import http.server
import json
import os
import re
import signal
import sys
import threading

SERVICES = re.compile(
    r"(https?|ftp|tcp|ssh|rdp|smb)://[^/]+|unix:/.+|http_status:\d{3}|hello_world|bastion|socks-proxy"
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="cloudflared")
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
        print("ERR Unauthorized: Invalid tunnel secret", file=sys.stderr)
        return 255
    serve(args.metrics, ready="unready" not in names, version=0 if "managed" in names else -1, dies="dies" in names)
    return 0


def serve(place, *, ready, version, dies) -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            pages = {
                "/ready": (200 if ready else 503, {"status": 200 if ready else 503, "readyConnections": 4 * ready}),
                "/healthcheck": (200, "OK"),
                "/config": (200, {"version": version, "config": {}}),
            }
            status, said = pages.get(self.path, (404, ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())
            if dies and self.path == "/config":
                os._exit(1)

        def log_message(self, *_):
            pass

    host, port = place.rsplit(":", 1)
    server = http.server.HTTPServer((host, int(port)), Page)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.02)
    print("INF Tunnel server stopped", flush=True)


if __name__ == "__main__":
    sys.exit(main())
