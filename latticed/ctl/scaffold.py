"""The artifacts that `latticectl new` writes: the smallest of each type that does its part."""

from __future__ import annotations

from typing import Any, Final

TYPES: Final = ("system", "wasm", "worker")

_SYSTEM: Final = '''\
#!/usr/bin/env python3
"""A plugin that speaks latticed-stdio-1: JSON-RPC 2.0, one message a line, on stdin and stdout; stderr is the log."""

import json
import sys


def initialize(params):
    print(f"started as {params['id']} with {params['capabilities']}", file=sys.stderr)
    return {}


def health(params):
    return {"status": "healthy", "message": ""}


def invoke(params):
    """Do what was asked: `action` is a word, `payload` any JSON."""
    return {"ok": True, "message": f"did {params['action']}", "result": params.get("payload")}


def shutdown(params):
    return {}


METHODS = {"initialize": initialize, "health": health, "invoke": invoke, "shutdown": shutdown}


def answer(request):
    method = METHODS.get(request["method"])
    if method is None:
        error = {"code": -32601, "message": "no such method", "data": {"code": "not_found"}}
        return {"jsonrpc": "2.0", "id": request["id"], "error": error}
    return {"jsonrpc": "2.0", "id": request["id"], "result": method(request.get("params") or {})}


for line in sys.stdin:
    request = json.loads(line)
    if "id" in request and "method" in request:
        print(json.dumps(answer(request)), flush=True)
    if request.get("method") == "shutdown":
        break
'''

_WORKER: Final = "You asked for {{path}}.\n"

# (module (func (export "_start"))): a WASI command that returns at once. Sections: type, function, export, code.
_WASM: Final = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x0a\x01\x06_start\0\0\x0a\x04\x01\x02\0\x0b"

_ARTIFACTS: Final = {"system": _SYSTEM.encode(), "wasm": _WASM, "worker": _WORKER.encode()}
_CAPABILITIES: Final = {"system": ["log:write"], "wasm": ["log:write"], "worker": ["worker:route"]}


def artifact(kind: str) -> bytes:
    return _ARTIFACTS[kind]


def manifest(kind: str, *, plugin_id: str, name: str, publisher: str | None) -> dict[str, Any]:
    """A v2 manifest, ready to be signed: `latticectl sign` fills in digest and signature (contracts §3)."""
    plain: dict[str, Any] = {
        "schema": "latticed.manifest.v2",
        "id": plugin_id,
        "name": name,
        "type": kind,
        "version": "0.1.0",
        "capabilities": _CAPABILITIES[kind],
    }
    if publisher is not None:
        plain["publisher"] = publisher
    if kind == "worker":
        plain["routes"] = {"prefixes": [f"/{plugin_id}/"], "content_type": "text/plain"}
    return plain
