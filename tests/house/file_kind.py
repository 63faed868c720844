"""A kind of plan that owns one file, and the root helper with it: `python -I file_kind.py DIR [options]`.

Everything it does is real: programs write the file, a snapshot is its bytes. DIR/orders.json makes effects fail or
take long: `{"commit": "fail"}`, `{"commit_s": 1.5}`, `{"self_check": "bug"}`; see `_obey`.
The script is copied to a place of root's, because the helper runs no code that others can change.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latticed.model.errors import Problem
from latticed.plans.kind import Live, Tools
from latticed.plans.programs import failed
from latticed.plans.protocol import Finding

NAME = re.compile(r"[a-z]{1,16}")
NOTHING = b"\0nothing"
REFERENCE = re.compile(r"\$\{secret:([^}]+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKind:
    """Intents are `{"allow": [names], "key"?: "${secret:NAME#label}"}`; `admin` must be among the names.

    So should be those that orders.json says are `connected`: an operator may override that.
    """

    directory: Path
    name: str = "file"

    @property
    def programs(self) -> Mapping[str, str]:
        return {"tee": "/usr/bin/tee", "sleep": "/bin/sleep", "false": "/bin/false", "sh": "/bin/sh"}

    @property
    def target(self) -> str:
        return f"the file of {self.name}"

    @property
    def path(self) -> Path:
        return self.directory / f"{self.name}.target"

    def secrets(self, intent: dict[str, Any]) -> dict[str, str]:
        found = REFERENCE.fullmatch(intent.get("key", ""))
        return {found[1]: "password"} if found else {}

    def check(self, intent: dict[str, Any], live: Live | None, source: str) -> tuple[Finding, ...]:
        names = intent.get("allow")
        if intent.keys() - {"allow", "key"} or not isinstance(names, list):
            return (Finding(code="shape", path="intent", expected="allow and key", found=str(sorted(intent))[:80]),)
        found = [
            Finding(code="name", path=f"allow[{n}]", expected="a to z", found=repr(one)[:80])
            for n, one in enumerate(names)
            if not isinstance(one, str) or not NAME.fullmatch(one)
        ]
        if "admin" not in names:
            found.append(Finding(code="lockout", path="allow", expected="admin in it", found="none", hint="add admin"))
        connected = [] if live is None else live.facts["connected"]
        found += [
            Finding(code="lockout_source", path="allow", expected=f"{one} in it", found="none", overridable=True)
            for one in connected
            if one not in names
        ]
        return tuple(found)

    def render(self, intent: dict[str, Any], live: Live | None, secrets: Mapping[str, str]) -> bytes:
        lines = [f"allow {name}" for name in sorted(set(intent["allow"]))]
        if "key" in intent:
            lines.append(f"key {secrets[REFERENCE.fullmatch(intent['key'])[1]]}")
        return "".join(f"{line}\n" for line in lines).encode()

    def narrows(self, approved: dict[str, Any], new: dict[str, Any], *, now_s: int) -> bool:
        if "broken" in approved["allow"]:  # as an intent of an older version that is no longer understood
            raise KeyError("broken")
        return new.get("key") == approved.get("key") and set(new["allow"]) <= set(approved["allow"])

    def holds(self, rendering: bytes, live: Live) -> bool:
        return live.basis == rendering

    def observe(self, tools: Tools) -> Live:
        self._obey("observe", tools)
        data = self.path.read_bytes() if self.path.exists() else b""
        text = re.sub(r"(?m)^key .*$", "key (a secret)", data.decode())
        connected = self.orders().get("connected", [])
        return Live(facts={"lines": text.splitlines(), "connected": connected}, basis=data, text=text)

    def validate(self, rendering: bytes, tools: Tools) -> None:
        self._obey("validate", tools, rendering)
        ended = tools.run("tee", stdin=rendering)
        if ended.stdout != rendering:
            raise failed("tee", ended)

    def snapshot(self, tools: Tools) -> bytes:
        self._obey("snapshot", tools)
        return self.path.read_bytes() if self.path.exists() else NOTHING

    def commit(self, rendering: bytes, tools: Tools, *, may_wait: bool = False, live: Live | None = None) -> None:
        del may_wait, live
        orders = self.orders()  # once: a test that sees the change gives other ones
        order = orders.get("commit")
        if order == "half":  # the tool wrote a part and failed
            self.path.write_bytes(rendering[:5])
        if order == "late":  # first the change, then the wait
            self.path.write_bytes(rendering)
        self._obey("commit", tools, rendering, orders)
        ended = tools.run("tee", str(self.path), stdin=rendering)
        if ended.status:
            raise failed("tee", ended)

    def self_check(self, rendering: bytes, tools: Tools) -> None:
        self._obey("self_check", tools)
        if self.path.read_bytes() != rendering:
            raise Problem("apply_failed", "the file is not what was written")

    def restore(self, snapshot: bytes, tools: Tools) -> None:
        self._obey("restore", tools)
        if snapshot == NOTHING:
            self.path.unlink(missing_ok=True)
            return
        fresh = self.path.with_suffix(".restored")
        fresh.write_bytes(snapshot)
        os.replace(fresh, self.path)

    def orders(self) -> dict[str, Any]:
        try:
            return json.loads((self.directory / "orders.json").read_text())
        except FileNotFoundError:
            return {}

    def _obey(self, effect: str, tools: Tools, rendering: bytes = b"", orders: Mapping[str, Any] | None = None) -> None:
        """Take long, fail, or raise what no kind should, as ordered."""
        orders = self.orders() if orders is None else orders
        if seconds := orders.get(f"{effect}_s"):
            tools.run("sleep", str(seconds))
        match orders.get(effect):
            case "fail" | "half":
                raise failed("false", tools.run("false"))
            case "leak":  # as wg(8) repeats a key that it does not like
                raise failed("sh", tools.run("sh", "-c", "cat >&2; exit 1", stdin=b"x" * 380 + rendering))
            case "bug":
                raise ZeroDivisionError
            case "missing":
                raise Problem("tool_missing", "the tool is not there", "install it")


def kinds(directory: Path) -> dict[str, FileKind]:
    """Two of them, so that one can wait while the other is changed."""
    return {name: FileKind(directory=directory, name=name) for name in ("file", "other")}


if __name__ == "__main__":
    from latticed import apply

    place = sys.argv[1]
    again = (sys.executable, "-I", os.path.abspath(__file__), place)
    sys.exit(apply.main(sys.argv[2:], kinds=kinds(Path(place)), command=again))
