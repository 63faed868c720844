"""A real daemon with process plugins: start them, invoke them, read their logs, check that the daemon answers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.house import bundles, children, daemons, processes, raw_http
from tests.house.daemons import Daemon

CAPABILITIES = ("audit:read", "kv:read", "kv:write", "log:write")


@dataclass
class Host:
    """One daemon and the publisher it trusts."""

    daemon: Daemon
    author: bundles.Author

    def drop(self, plugin_id: str, artifact: bytes, **fields: Any) -> None:
        """Write a bundle; v1 when `v2` is False."""
        wanted = {"v2": True, "capabilities": list(CAPABILITIES), **fields}
        self.daemon.place.drop(plugin_id, author=self.author, id=plugin_id, artifact=artifact, **wanted)

    def up(self, plugin_id: str, artifact: bytes, **fields: Any) -> str:
        """Drop a bundle and have it armed; its id."""
        self.drop(plugin_id, artifact, **fields)
        self.daemon.activate(plugin_id)
        return plugin_id

    def activated(self, plugin_id: str, artifact: bytes, **fields: Any) -> raw_http.Answer:
        """The answer to its activation, whatever it is."""
        self.drop(plugin_id, artifact, **fields)
        self.daemon.until(lambda: self.daemon.plugin(plugin_id), f"{plugin_id} to be seen")
        assert self.daemon.set_status("installed", plugin_id).status == 200
        return self.daemon.set_status("active", plugin_id)

    def invoke(self, plugin_id: str, action: str, payload: Any = None) -> raw_http.Answer:
        return self.daemon.post(f"/api/plugins/by-id/{plugin_id}/invoke", {"action": action, "payload": payload})

    def result(self, plugin_id: str, action: str, payload: Any = None) -> Any:
        """The result of an action that succeeds."""
        answer = self.invoke(plugin_id, action, payload)
        assert answer.status == 200, answer
        assert answer.json()["ok"] is True, answer
        return answer.json()["result"]

    def runtime(self, plugin_id: str) -> dict[str, Any]:
        found = self.daemon.plugin(plugin_id)
        assert found is not None
        return dict(found["runtime"])

    def lines(self, plugin_id: str, stream: str = "stderr") -> list[str]:
        """The plugin's log lines so far."""
        answer = self.daemon.get(f"/api/plugins/by-id/{plugin_id}/logs")
        assert answer.status == 200, answer
        return [line["text"] for line in answer.json()["lines"] if line["stream"] == stream]

    def story(self, plugin_id: str) -> list[str]:
        """Its audited runtime changes, oldest first: `armed`, `failed exited`, `stopped`."""
        events = self.daemon.events(action="plugin.runtime", target=plugin_id)
        return [f"{event['detail']['state']} {event['code']}".strip() for event in events]

    def until_said(self, plugin_id: str, line: str) -> None:
        self.daemon.until(lambda: line in self.lines(plugin_id), f"{plugin_id} to say {line!r}")

    def processes(self) -> set[int]:
        """All running descendants of the daemon."""
        return {pid for pid in children.descendants(self.daemon.process.pid) if children.alive(pid)}

    def until_only(self, *plugin_ids: str) -> None:
        """Wait until the children of these plugins and their descendants are the only processes left."""

        def only() -> bool:
            pids = {pid for one in plugin_ids if (pid := self.runtime(one).get("pid"))}
            return not self.processes() - pids.union(*map(children.family, pids))

        self.daemon.until(only, f"nothing but {plugin_ids} to live")

    def until_story(self, plugin_id: str, *story: str) -> None:
        """Wait until its audited runtime changes are these: events are recorded a moment later."""
        self.daemon.until(lambda: self.story(plugin_id) == list(story), f"{plugin_id}: {story}")

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Within the block the daemon is asked for its health all the time, and answers each time."""
        pulse = _Pulse(self.daemon.place.socket)
        thread = threading.Thread(target=pulse.run, name="pulse")
        thread.start()
        try:
            yield
        finally:
            pulse.over.set()
            thread.join()
        assert pulse.faults == []
        assert pulse.answers > 0


@dataclass
class _Pulse:
    socket: Path
    answers: int = 0
    faults: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.faults and (self.answers == 0 or not self.over.wait(0.02)):
            try:
                status = raw_http.ask(self.socket, "GET", "/api/health").status
            except OSError as error:
                self.faults.append(repr(error))
            else:
                self.answers += 1
                if status != 200:
                    self.faults.append(f"health answered {status}")


@contextlib.contextmanager
def hosting(
    settings: str = "",
    *,
    user: processes.User | str | None = "stranger",
    probed: bool = False,
    builtins: str = "none",
) -> Iterator[Host]:
    """A fresh place with a running daemon; `builtins` is a name of `system.registry.SETS`."""
    author = bundles.author("acme")
    with daemons.placed(user, settings=f"{settings}\n[watch]\nquiet_s = 0.01", probed=probed) as place:
        place.builtins = (builtins, "")
        place.trust_us(author)
        with place.running() as daemon:
            yield Host(daemon=daemon, author=author)


def until_gone(pids: set[int]) -> None:
    """Wait until none of these processes runs."""
    processes.until(lambda: not any(map(children.alive, pids)), what="every child to be gone")
