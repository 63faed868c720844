"""A built-in plugin that plans, in a real daemon, beside the real root helper in a network namespace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latticed.plans import protocol
from tests.house import apply_helpers, firewalled, hosting


class PlanSite:
    """One daemon that has the plugin `plugin_id` active, one helper, and the namespaces."""

    plugin_id: str

    def __init__(self, host: hosting.Host, helper: apply_helpers.Place, net: firewalled.Net) -> None:
        self.host, self.helper, self.net = host, helper, net

    def put(self, document: dict[str, Any]) -> None:
        """Set the plugin's configuration, and wait until the plugin is armed with it."""
        answer = self.host.daemon.ask("PUT", f"/api/plugins/by-id/{self.plugin_id}/config", {"config": document})
        assert answer.status == 200, answer
        what = f"{self.plugin_id} to be armed again"
        self.host.daemon.until(lambda: self.host.runtime(self.plugin_id)["state"] == "armed", what)

    def do(self, action: str, payload: Any = None) -> Any:
        return self.host.result(self.plugin_id, action, payload)

    def refused(self, action: str, payload: Any = None) -> str:
        """What the plugin, or the daemon, says against an invocation."""
        answer = self.host.invoke(self.plugin_id, action, payload)
        assert answer.status != 200 or answer.json()["ok"] is False, answer
        return answer.body.decode()

    def applied(self) -> str:
        """The name of the plugin's plan, approved by root, applied and confirmed."""
        plan = str(self.do("plan")["sha256"])
        review = self.helper.review(plan).review
        for request in (
            protocol.Approve(plan=plan, review=review),
            protocol.Apply(plan=plan, confirm_within_s=60),
            protocol.Confirm(plan=plan),
        ):
            answer = self.helper.ask(request)
            assert isinstance(answer, protocol.Moved), answer
        return plan

    def holding(self, *values: str) -> dict[str, list[str]]:
        """Which of these values, such as secrets, are found where others than root could see them: where, and what."""
        found = {where: [one for one in values if one.encode() in data] for where, data in self._seen()}
        return {where: some for where, some in found.items() if some}

    def _seen(self) -> Iterator[tuple[str, bytes]]:
        daemon = self.host.daemon
        plans = daemon.get("/api/plans").json()
        shown = [f"/api/plans/{one['sha256']}" for one in (plans["plans"] if isinstance(plans, dict) else plans)]
        yield "plans", b"".join(daemon.get(path).body for path in shown)
        for path in ("/api/audit?limit=1000", "/api/notifications", "/api/plugins", "/metrics"):
            answer = daemon.get(path)
            assert answer.status == 200, answer
            yield path, answer.body
        yield "host calls", str(daemon.events(action="host.call")).encode()
        yield "invocations", str(daemon.events(action="plugin.invoke")).encode()
        yield "log", str(daemon.log()).encode()
        yield "helper's log", self.helper.log().encode()
        backup = daemon.place.home / "searched.tar"
        ran = daemon.ctl("backup", str(backup))
        assert ran.returncode == 0, ran
        yield "backup", backup.read_bytes()
        backup.unlink()
        yield "state", b"".join(_of_files(daemon.place.state))
        for kind in ("cmdline", "environ"):
            yield kind, b"".join(_of_processes(kind))


def _of_files(top: Path) -> Iterator[bytes]:
    """What is in each file below `top`. Files and directories may go meanwhile: the daemon removes a backup once it was
    sent.
    """
    for folder, _, names in os.walk(top):  # unlike rglob, it goes on where a directory is gone
        for one in (Path(folder) / name for name in names):
            try:
                if one.is_file():
                    yield one.read_bytes()
            except FileNotFoundError:
                continue


def _of_processes(kind: str) -> Iterator[bytes]:
    """That file of every process but this one, which knows the values."""
    for pid in (int(one) for one in os.listdir("/proc") if one.isdecimal()):
        if pid != os.getpid():
            try:
                yield Path(f"/proc/{pid}/{kind}").read_bytes()
            except OSError:  # ended meanwhile
                continue
