"""Host calls that run programs beside the plugin: task, service, tunnel."""

from __future__ import annotations

from latticed.sdk.calls import Calls, given

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class Task(Calls):
    """Scripts that run once, after an operator has approved exactly these bytes."""

    def list(self) -> Any:
        """The tasks there are (task:read)."""
        return self._ask("task.list", {})

    def get(self, task_id: str) -> Any:
        """One task, with its outcome when there is one (task:read)."""
        return self._ask("task.get", {"id": task_id})

    def submit(
        self,
        script: str,
        *,
        interpreter: str = "sh",
        targets: Sequence[str] | None = None,
        timeout_s: int | None = None,
    ) -> Any:
        """Ask for a script to be run by sh, bash, python3 or node (task:run)."""
        where = None if targets is None else [*targets]
        return self._ask(
            "task.submit", given(interpreter=interpreter, script=script, targets=where, timeout_s=timeout_s)
        )

    def cancel(self, task_id: str) -> Any:
        """Cancel a task before or while it runs (task:run)."""
        return self._ask("task.cancel", {"id": task_id})


class Service(Calls):
    """Helper processes that live as long as the plugin is active."""

    def put(self, name: str, **service: Any) -> Any:
        """Make or replace a helper process (task:run)."""
        return self._ask("service.put", {"name": name, **service})

    def delete(self, name: str) -> Any:
        """End and remove a helper process (task:run)."""
        return self._ask("service.delete", {"name": name})

    def status(self, name: str | None = None) -> Any:
        """State of one helper process, or of all (task:run)."""
        return self._ask("service.status", given(name=name))


class Tunnel(Calls):
    """Tunnels from the internet to services on this host."""

    def put(self, name: str, **tunnel: Any) -> Any:
        """Make or replace a tunnel (tunnel:admin)."""
        return self._ask("tunnel.put", {"name": name, **tunnel})

    def delete(self, name: str) -> Any:
        """End and remove a tunnel (tunnel:admin)."""
        return self._ask("tunnel.delete", {"name": name})

    def status(self, name: str | None = None) -> Any:
        """State of one tunnel, or of all (tunnel:admin)."""
        return self._ask("tunnel.status", given(name=name))
