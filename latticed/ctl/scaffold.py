"""The artifacts that `latticectl new` writes: a minimal working one of each type."""

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

# A module that is called for each invocation and says hello (docs/write/wasm.md); as text:
# (module
#   (memory (export "memory") 1)
#   (global (mut i32) (i32.const 64))
#   (data (i32.const 0) "{\"ok\":true,\"message\":\"hello\"}")
#   (func (export "alloc") (param i32) (result i32)
#     (drop (memory.grow (i32.add (i32.shr_u (local.get 0) (i32.const 16)) (i32.const 1))))
#     (global.get 0)
#     (global.set 0 (i32.add (global.get 0) (local.get 0))))
#   (func (export "invoke") (param i32 i32) (result i64) (i64.const 29)))
_WASM: Final = bytes.fromhex(
    "0061736d01000000010c0260017f017f60027f7f017e030302000105030100010607017f0141c0000b071b03066d656d6f72"
    "79020005616c6c6f63000006696e766f6b6500010a1d021600200041107641016a40001a2300230020006a24000b0400421d"
    "0b0b23010041000b1d7b226f6b223a747275652c226d657373616765223a2268656c6c6f227d"
)

_ARTIFACTS: Final = {"system": _SYSTEM.encode(), "wasm": _WASM, "worker": _WORKER.encode()}
_CAPABILITIES: Final = {"system": ["log:write"], "wasm": ["log:write"], "worker": ["worker:route"]}


def artifact(kind: str) -> bytes:
    """The bytes of a minimal artifact of type `kind` (TYPES)."""
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
