"""The root helper's socket with answers that a test makes: for what a real helper would never say.

with root_helpers.serving(path) as helper:
    helper.answers["observe"] = root_helpers.observed(plans=[...])
    helper.answers["review"] = b"no JSON\\n"
"""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latticed.model import chain

AT = "2026-01-02T03:04:05.000000Z"
Scripted = dict[str, Any] | bytes | None
"""An answer: a message; bytes as they are; None to close without one."""


@dataclass
class HelperScript:
    """`answers` by verb: an answer, or a function that makes it from the request. `asked`: all requests, decoded."""

    answers: dict[str, Scripted | Callable[[dict[str, Any]], Scripted]] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)

    def verbs(self) -> list[str]:
        return [one["verb"] for one in self.asked]


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        line = self.rfile.readline()
        if not line:
            return
        request = json.loads(line)
        script: HelperScript = self.server.script  # type: ignore[attr-defined]
        script.asked.append(request)
        answer = script.answers.get(request["verb"])
        if callable(answer):
            answer = answer(request)
        if answer is not None:
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n"
            with contextlib.suppress(OSError):  # the caller has gone
                self.wfile.write(data)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = True


@contextlib.contextmanager
def serving(path: Path) -> Iterator[HelperScript]:
    """A helper at `path` that runs as the tests' own user."""
    script = HelperScript({"observe": observed()})
    with _Server(str(path), _Handler) as server:
        server.script = script  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield script
        finally:
            server.shutdown()
            thread.join()
            path.unlink()


def observed(
    *, plans: tuple[dict[str, Any], ...] = (), steps: tuple[dict[str, Any], ...] = (), **more: Any
) -> dict[str, Any]:
    """An answer to observe."""
    last = steps[-1]["seq"] if steps else 0
    return {
        "kinds": ["nft"],
        "targets": [],
        "live": None,
        "first_step": steps[0]["seq"] if steps else 0,
        "last_step": last,
        **more,
        "plans": list(plans),
        "steps": list(steps),
    }


def plan(sha256: str, state: str, **more: Any) -> dict[str, Any]:
    """A plan as the helper lists it."""
    plain = {"plan": sha256, "kind": "nft", "state": state, "review": "", "message": ""}
    return {**plain, "offered_at": AT, "updated_at": AT, **more}


def moved(sha256: str, state: str, **more: Any) -> dict[str, Any]:
    """What became of a plan."""
    return {"plan": sha256, "state": state, "review": "", "deadline_s": 0.0, "message": "", **more}


def fault(code: str, message: str = "it says why", **more: Any) -> dict[str, Any]:
    """An error."""
    return {"code": code, "message": message, "hint": "", "findings": [], **more}


def steps(*actions: str, target: str = "ab" * 32, after: int = 0, prev: str = chain.GENESIS) -> tuple[dict, ...]:
    """Linked steps of these actions by root, the first with the number `after` + 1."""
    found: list[dict[str, Any]] = []
    for seq, action in enumerate(actions, start=after + 1):
        step = {
            "seq": seq,
            "ts": AT,
            "actor": "uid:0 user:root pid:7",
            "action": action,
            "target": target,
            "decision": "allow",
            "code": "",
            "reason": "",
            "detail": {"kind": "nft"},
            "prev": found[-1]["hash"] if found else prev,
        }
        found.append({**step, "hash": chain.link(step["prev"], step)})
    return tuple(found)
