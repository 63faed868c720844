"""Artifacts that implement latticed-stdio-1 without the SDK, correctly or not."""

from __future__ import annotations

_PEER = b"""#!/usr/bin/env python3
import json, os, signal, sys, threading, time

speaking = threading.Lock()

def say(**message):
    line = json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\\n"
    with speaking:  # longer lines than a pipe takes at once would mix
        os.write(1, line)

def hear():
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return json.loads(line)

def answer(message):
    result = {"status": "healthy", "ok": True, "message": "", "result": None}
    say(id=message["id"], result=result)
    if message["method"] == "shutdown":
        os.write(2, b"asked by a message\\n")
        sys.exit(0)
    return message

def serve():
    while True:
        answer(hear())

"""


def peer(body: str, *, greet: bool = True) -> bytes:
    """A latticed-stdio-1 program without the SDK: it answers `initialize` and does `body`, which may use the above."""
    return _PEER + (b"answer(hear())\n" if greet else b"") + body.encode() + b"\n"


WIDE = peer(
    """
while True:
    message = hear()
    if message["method"] != "invoke":
        answer(message)
        continue
    line = b'{"jsonrpc": "2.0", "id": %d, "result": {"ok": true, "result": "wide"}' % message["id"]
    sys.stdout.buffer.write(line + b" " * (message["params"]["payload"] - len(line) - 1) + b"}\\n")
    sys.stdout.flush()
"""
)
"""The same, in a line."""


def hog(share: str) -> bytes:
    """A speaking program that uses much of a core: `share` is "own", or "child" for one that a child of it uses."""
    burn = """
def burn():
    while True:
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass
        time.sleep(0.03)

"""
    start = {
        "own": "threading.Thread(target=burn, daemon=True).start()",
        "child": "if os.fork() == 0:\n    os.close(0)\n    burn()",
    }
    return peer(burn + start[share] + "\nserve()\n")


POLITE = peer("serve()")

TERMINABLE = peer("""
def end(*_):
    os.write(2, b"asked by a signal\\n")
    os._exit(0)
signal.signal(signal.SIGTERM, end)
while True:
    message = hear()
    if message["method"] != "shutdown":
        answer(message)
    else:
        os.write(2, b"asked by a message\\n")
""")

DEAF = peer("""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    message = hear()
    if message["method"] == "shutdown":
        os.write(2, b"asked by a message\\n")
        while True:
            time.sleep(1000)
    answer(message)
""")
