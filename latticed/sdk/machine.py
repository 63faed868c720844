"""Host calls about this machine, its monitors and published files: node, monitor, static."""

from __future__ import annotations

from latticed.sdk.calls import Calls, from_base64, given, pages, to_base64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any


class Node(Calls):
    """The machine that latticed runs on."""

    def facts(self) -> dict[str, Any]:
        """Hardware and system facts; None for what cannot be read (node:read)."""
        return dict(self._ask("node.facts", {}))

    def metrics(self) -> dict[str, Any]:
        """Load, memory, disks and network counters since boot; None for what cannot be read (node:read)."""
        return dict(self._ask("node.metrics", {}))

    def journal(
        self,
        filter: str,  # noqa: A002 - its name
        cursor: str = "",
        *,
        limit: int | None = None,
    ) -> tuple[list[dict[str, Any]], str]:
        """Journal entries after `cursor`, and the cursor to go on from (node:read).

        `filter` is `sshd`, or a unit that the operator listed.
        """
        page = self.journal_page(filter, cursor, limit=limit)
        return page["entries"], page["cursor"]

    def journal_page(
        self,
        filter: str,  # noqa: A002 - its name
        cursor: str = "",
        *,
        limit: int | None = None,
    ) -> dict[str, Any]:
        """As `journal`: `{entries, cursor, gap}`; `gap` when entries after `cursor` may be gone (node:read)."""
        page = self._ask("node.journal", given(filter=filter, cursor=cursor, limit=limit))
        return {"entries": list(page["entries"]), "cursor": str(page["cursor"]), "gap": bool(page["gap"])}

    def set_labels(self, labels: Mapping[str, str | None]) -> dict[str, str]:
        """Set labels of the machine; None removes one. Returns all labels (node:admin)."""
        return dict(self._ask("node.set_labels", {"labels": dict(labels)})["labels"])


class Monitor(Calls):
    """Checks that the host makes at intervals."""

    def list(self) -> Iterator[dict[str, Any]]:
        """This plugin's checks and those that others share, asked for page by page (monitor:read)."""
        return pages(self._ask, "monitor.list", "monitors", {})

    def results(
        self, name: str, *, owner: str | None = None, after: int | None = None, limit: int | None = None
    ) -> dict[str, Any]:
        """`{state, results}` of one check, of another plugin's (`owner`) if that is shared (monitor:read)."""
        return dict(self._ask("monitor.results", given(name=name, owner=owner, after=after, limit=limit)))

    def put(self, name: str, kind: str, target: str, **more: Any) -> dict[str, Any]:
        """Make or replace a check of kind http, tcp or ping: `{ok, target}`, the target in normal form (monitor:admin).

        `more`: interval_s, timeout_s, failures, statuses, body, certificate_days, shared; the defaults are in
        docs/write/services.md.
        """
        return dict(self._ask("monitor.put", {"name": name, "kind": kind, "target": target, **more}))

    def delete(self, name: str) -> bool:
        """Remove a monitor; whether there was one (monitor:admin)."""
        return bool(self._ask("monitor.delete", {"name": name})["ok"])


class Static(Calls):
    """Files that the host publishes for this plugin; `plugin` names another one that shares its files with it."""

    def list(
        self, prefix: str = "", *, plugin: str | None = None, digests: bool | None = None
    ) -> Iterator[dict[str, Any]]:
        """`{path, bytes, content_type, modified_at}` of each file, with `digests` also its `sha256`; asked for page by
        page (static:read).
        """
        return pages(self._ask, "static.list", "files", given(prefix=prefix, plugin=plugin, digests=digests))

    def get(
        self, path: str, *, offset: int | None = None, length: int | None = None, plugin: str | None = None
    ) -> dict[str, Any]:
        """A file's attributes with its contents, or a piece of them; `ok` is false if there is none (static:read).

        An answer holds at most 192 KiB from `offset` on; `bytes` is the size of the whole file.
        """
        return dict(self._ask("static.get", given(path=path, offset=offset, length=length, plugin=plugin)))

    def get_bytes(self, path: str, *, plugin: str | None = None) -> bytes | None:
        """All of one version of a file, or None when there is none; asked for piece by piece (static:read)."""
        held, etag = b"", None
        while (piece := self.get(path, offset=len(held), plugin=plugin))["ok"]:
            # The file was replaced between two pieces: begin again, so that no two versions are mixed.
            if etag not in {None, piece["etag"]}:
                held, etag = b"", None
                continue
            etag = piece["etag"]
            more = from_base64(piece["content_base64"])
            held += more
            # `not more` ends the loop also when a piece is empty before its time.
            if not more or len(held) >= piece["bytes"]:
                return held
        return None

    def put(self, path: str, content: str | bytes) -> dict[str, Any]:
        """Create or replace a file: `{ok, bytes, content_type, etag}`; its extension gives the type (static:write)."""
        text = {"content": content} if isinstance(content, str) else {"content_base64": to_base64(content)}
        return dict(self._ask("static.put", {"path": path, **text}))

    def delete(self, path: str) -> bool:
        """Remove a file; whether there was one (static:write)."""
        return bool(self._ask("static.delete", {"path": path})["ok"])
