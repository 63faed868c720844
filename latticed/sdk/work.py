"""Host calls that run programs beside the plugin: task, service, tunnel."""

from __future__ import annotations

from latticed.sdk.calls import Calls, given

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class Task(Calls):
    """Scripts that run once in a sandbox, after an operator has approved exactly these bytes."""

    def list(self) -> Any:
        """The first page of this plugin's tasks: `{tasks, next}`, newest first, without scripts (task:read).

        `self.call("task.list", after=next)` answers with the following page.
        """
        return self._ask("task.list", {})

    def get(self, task_id: str) -> Any:
        """Everything of one task, with its outcome when there is one; HostError("not_found") (task:read)."""
        return self._ask("task.get", {"id": task_id})

    def submit(
        self,
        script: str,
        *,
        interpreter: str = "sh",
        targets: Sequence[str] | None = None,
        timeout_s: int | None = None,
    ) -> Any:
        """Ask for a script to be run by sh, bash, python3 or node: `{ok, id, sha256, state}` (task:run).

        `targets` are its arguments, texts of visible characters; `timeout_s` is 1 to 600 (default 30).
        """
        where = None if targets is None else [*targets]
        return self._ask(
            "task.submit", given(interpreter=interpreter, script=script, targets=where, timeout_s=timeout_s)
        )

    def cancel(self, task_id: str) -> Any:
        """Cancel a task before or while it runs: `{ok, state}`; `ok` is false when it has ended already (task:run)."""
        return self._ask("task.cancel", {"id": task_id})


class Service(Calls):
    """Long-lived programs of the operator's list, run while the plugin is active."""

    def put(self, name: str, **service: Any) -> Any:
        """Make or replace a program: `{ok, name, state}` (task:run).

        `service`: program, args, environment, restart, network, data, hosts, as in docs/write/services.md.
        """
        return self._ask("service.put", {"name": name, **service})

    def delete(self, name: str, *, data: bool | None = None) -> Any:
        """End and remove a program, with `data` also what it kept: `{ok}`, whether there was anything (task:run)."""
        return self._ask("service.delete", given(name=name, data=data))

    def status(self, name: str | None = None) -> Any:
        """`{services}`: the state of one program, then with its `output`, or of all (task:run)."""
        return self._ask("service.status", given(name=name))

    def save(self, name: str, files: Sequence[str], *, keep: int | None = None, spare: str | None = None) -> Any:
        """Copy files that it keeps: `{ok, id, new, at, files}`; `new` is false for one like the newest (task:run).

        `keep`: how many copies there are afterwards at most (default 7); `spare`: the id of one that stays besides.
        """
        return self._ask("service.save", given(name=name, files=[*files], keep=keep, spare=spare))

    def saved(self, name: str) -> Any:
        """`{saved}`: its copies, newest first (task:run)."""
        return self._ask("service.saved", {"name": name})

    def revert(self, name: str, copy_id: str) -> Any:
        """Have it keep exactly what was copied; it is stopped for that moment: `{ok, id}` (task:run)."""
        return self._ask("service.revert", {"name": name, "id": copy_id})


class Tunnel(Calls):
    """Tunnels from the internet to services on this host, by cloudflared."""

    def put(self, name: str, **tunnel: Any) -> Any:
        """Make or replace a tunnel: `{ok, name, state, trying}`, before it is connected (tunnel:admin).

        `tunnel`: tunnel, ingress, and credentials or token, as in docs/write/services.md.
        """
        return self._ask("tunnel.put", {"name": name, **tunnel})

    def delete(self, name: str) -> Any:
        """End and remove a tunnel: `{ok}`, whether there was one (tunnel:admin)."""
        return self._ask("tunnel.delete", {"name": name})

    def status(self, name: str | None = None) -> Any:
        """`{tunnels}`: the state of one tunnel, then with `ingress` and `output`, or of all (tunnel:admin)."""
        return self._ask("tunnel.status", given(name=name))
