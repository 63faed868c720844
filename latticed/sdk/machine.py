"""Host calls about this machine, its monitors and published files: node, monitor, static."""

from __future__ import annotations

from latticed.sdk.calls import Calls, from_base64, given, pages, to_base64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from latticed.sdk import answers


class Node(Calls):
    """The machine that latticed runs on."""

    def facts(self) -> answers.NodeFactsAnswer:
        """Names, versions, sizes and addresses; None for what cannot be read (node:read).

        Serial numbers and MACs are null without `node:admin`. At most 10 seconds old.

        Errors: those of every call.
        """
        found: answers.NodeFactsAnswer = self._ask("node.facts", {})
        return found

    def metrics(self) -> answers.NodeMetricsAnswer:
        """Load, memory, disks and network counters since boot; None for what cannot be read (node:read).

        At most a second old.

        Errors: those of every call.
        """
        found: answers.NodeMetricsAnswer = self._ask("node.metrics", {})
        return found

    def journal(
        self,
        filter: str,  # noqa: A002 - its name
        cursor: str = "",
        *,
        limit: int | None = None,
    ) -> tuple[list[answers.JournalLine], str]:
        """Journal entries after `cursor`, oldest first, and the cursor to go on from (node:read).

        `filter` is `sshd`, or a unit that the operator listed in `node.journal_units`. Without a cursor: the newest.

        Errors: bad_params for another unit, or a cursor of another filter; service_unavailable without a reader.
        Limits: `limit` is at most 500.
        """
        page = self.journal_page(filter, cursor, limit=limit)
        return page["entries"], page["cursor"]

    def journal_page(
        self,
        filter: str,  # noqa: A002 - its name
        cursor: str = "",
        *,
        limit: int | None = None,
    ) -> answers.NodeJournalAnswer:
        """As journal, with `gap`: whether entries after `cursor` may be gone (node:read)."""
        found: answers.NodeJournalAnswer = self._ask("node.journal", given(filter=filter, cursor=cursor, limit=limit))
        return found

    def set_labels(self, labels: Mapping[str, str | None]) -> dict[str, str]:
        """Set labels of the machine, all of them or none; None removes one. Returns all labels (node:admin).

        Every plugin that may read the machine sees them.

        Errors: bad_params for a name or text that is none; quota_exceeded for too many.
        Limits: 64 labels; a name is 1 to 63 of a-z, 0-9, `.`, `_`, `/`, `-`, a text at most 256 visible characters.
        """
        found: answers.NodeLabelsAnswer = self._ask("node.set_labels", {"labels": dict(labels)})
        return found["labels"]


class Monitor(Calls):
    """Checks that the host makes at intervals."""

    def list(self) -> Iterator[answers.MonitorFacts]:
        """This plugin's monitors and those that others share (monitor:read).

        Errors: those of every call.
        """
        return pages(self._ask, "monitor.list", "monitors", {})

    def results(
        self, name: str, *, owner: str | None = None, after: int | None = None, limit: int | None = None
    ) -> answers.MonitorResultsAnswer:
        """The state and newest results of one monitor, oldest first (monitor:read).

        `owner`: another plugin, if it shares the monitor. `after`: the number of a result.

        Errors: not_found when there is none, or its owner does not share it.
        Limits: `monitor.results` (500) of each are kept.
        """
        found: answers.MonitorResultsAnswer = self._ask(
            "monitor.results", given(name=name, owner=owner, after=after, limit=limit)
        )
        return found

    def put(  # noqa: PLR0913 - the fields of monitor.put
        self,
        name: str,
        kind: answers.MonitorKind,
        target: str,
        *,
        interval_s: float | None = None,
        timeout_s: float | None = None,
        failures: int | None = None,
        statuses: Sequence[int] | None = None,
        body: str | None = None,
        certificate_days: int | None = None,
        shared: bool | None = None,
    ) -> answers.MonitorPutAnswer:
        """Check a target from now on, in place of the monitor of that name (monitor:admin).

        `kind` is http (the target is a URL), tcp (`host:port`) or ping (a host). `failures`: equal results in a row
        that change the state, which is then a notification in this plugin's name. `statuses`, `body`,
        `certificate_days`: what an HTTP answer has to be, as in docs/write/services.md.

        Errors: bad_params names the field; quota_exceeded for too many. Where it may not go is a result, not an error.
        Limits: `monitor.plugin_monitors` (100); `interval_s` from `monitor.min_interval_s` (10) on, `timeout_s` to 60.
        """
        more = given(
            interval_s=interval_s,
            timeout_s=timeout_s,
            failures=failures,
            statuses=None if statuses is None else [*statuses],
            body=body,
            certificate_days=certificate_days,
            shared=shared,
        )
        found: answers.MonitorPutAnswer = self._ask(
            "monitor.put", {"name": name, "kind": kind, "target": target, **more}
        )
        return found

    def delete(self, name: str) -> bool:
        """Remove a monitor; whether there was one (monitor:admin).

        Errors: those of every call.
        """
        found: answers.Ok = self._ask("monitor.delete", {"name": name})
        return found["ok"]


class Static(Calls):
    """Files that the host publishes for this plugin; `plugin` names another one that shares its files with it.

    A path has at most 8 parts of `A-Z a-z 0-9 _ - .`; its extension gives the type.
    """

    def list(
        self, prefix: str = "", *, plugin: str | None = None, digests: bool | None = None
    ) -> Iterator[answers.PublishedFile]:
        """The files whose path begins with `prefix`, by path; with `digests` also the `sha256` of each (static:read).

        Errors: bad_params for a plugin that does not share its files.
        Limits: 500 files a host call; the next page is asked for when the iterator comes to it.
        """
        return pages(self._ask, "static.list", "files", given(prefix=prefix, plugin=plugin, digests=digests))

    def get(
        self, path: str, *, offset: int | None = None, length: int | None = None, plugin: str | None = None
    ) -> answers.StaticGetAnswer:
        """A file's attributes with its contents, or a piece of them; `ok` is false if there is none (static:read).

        Errors: bad_params for what is no path, or a plugin that does not share its files.
        Limits: 192 KiB from `offset` on; get_bytes reads all.
        """
        found: answers.StaticGetAnswer = self._ask(
            "static.get", given(path=path, offset=offset, length=length, plugin=plugin)
        )
        return found

    def get_bytes(self, path: str, *, plugin: str | None = None) -> bytes | None:
        """All of one version of a file, or None when there is none; asked for piece by piece (static:read).

        Errors: as get.
        """
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

    def put(self, path: str, content: str | bytes) -> answers.StaticPutAnswer:
        """Create or replace a file, whole and on disk when the call returns (static:write).

        Errors: bad_params for what is no path, or an extension that is not published; too_large; quota_exceeded.
        Limits: `static.file_bytes` (1 MiB) a file, within the parameters of a call; `static.plugin_files` (1,000) and
        `static.plugin_bytes` (16 MiB).
        """
        text = {"content": content} if isinstance(content, str) else {"content_base64": to_base64(content)}
        found: answers.StaticPutAnswer = self._ask("static.put", {"path": path, **text})
        return found

    def delete(self, path: str) -> bool:
        """Remove a file; whether there was one (static:write).

        Errors: bad_params for what is no path.
        """
        found: answers.Ok = self._ask("static.delete", {"path": path})
        return found["ok"]
