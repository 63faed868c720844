"""Host calls about this machine and what it watches and serves: node, monitor, static."""

from __future__ import annotations

from latticed.sdk.calls import Calls, from_base64, given, to_base64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class Node(Calls):
    """The machine that latticed runs on."""

    def facts(self) -> dict[str, Any]:
        """What it is: best effort, None for what cannot be found out (node:read)."""
        return dict(self._ask("node.facts", {}))

    def metrics(self) -> dict[str, Any]:
        """How it does (node:read)."""
        return dict(self._ask("node.metrics", {}))

    def journal(
        self,
        cursor: str | None = None,
        *,
        limit: int | None = None,
        filter: str | None = None,  # noqa: A002 - its name
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Journal entries after `cursor`, and the cursor to go on from (node:read)."""
        page = self._ask("node.journal", given(cursor=cursor, limit=limit, filter=filter))
        return list(page["entries"]), page.get("cursor")

    def set_labels(self, labels: Mapping[str, str]) -> Any:
        """Say what this machine is called and used for (node:admin)."""
        return self._ask("node.set_labels", {"labels": dict(labels)})


class Monitor(Calls):
    """Checks that the host makes at intervals."""

    def list(self) -> Any:
        """The checks there are (monitor:read)."""
        return self._ask("monitor.list", {})

    def results(self, name: str, *, limit: int | None = None) -> Any:
        """The latest results of one check (monitor:read)."""
        return self._ask("monitor.results", given(name=name, limit=limit))

    def put(self, name: str, **check: Any) -> Any:
        """Make or replace a check (monitor:admin)."""
        return self._ask("monitor.put", {"name": name, **check})

    def delete(self, name: str) -> Any:
        """Check no more (monitor:admin)."""
        return self._ask("monitor.delete", {"name": name})


class Static(Calls):
    """Files that the host serves for this plugin."""

    def list(self, prefix: str | None = None) -> Any:
        """The files there are (static:read)."""
        return self._ask("static.list", given(prefix=prefix))

    def get(self, path: str) -> Any:
        """One file (static:read)."""
        return self._ask("static.get", {"path": path})

    def get_bytes(self, path: str) -> bytes:
        """The contents of one file (static:read)."""
        return from_base64(self.get(path)["body_base64"])

    def put(self, path: str, body: str | bytes, *, content_type: str | None = None) -> Any:
        """Make or replace a file (static:write)."""
        text = {"body": body} if isinstance(body, str) else {"body_base64": to_base64(body)}
        return self._ask("static.put", given(path=path, content_type=content_type, **text))

    def delete(self, path: str) -> Any:
        """Serve it no more (static:write)."""
        return self._ask("static.delete", {"path": path})
