"""static.*: files that a plugin publishes (system-plugins.md, Host services).

`read` is for routes: the same files as HTTP answers with their headers (RFC 9110 sections 8.8, 13 and 14).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

from latticed.host import values
from latticed.host.call import Caller, HostError, Params, Served, Whole
from latticed.host.static.tree import StaticFiles, StaticQuota
from latticed.kit import text
from latticed.kit.clock import rfc3339
from latticed.kit.value import Value
from latticed.model import ids, published
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from latticed.settings.shapes import StaticSettings as Limits

T = TypeVar("T")

MAX_ANSWER_BYTES: Final = 192 << 10
"""Bytes of a file in one answer of static.get; callers get the rest with `offset`."""
PAGE: Final = 500
"""Files in one answer of static.list."""
THREADS: Final = 2
"""Threads of the default executor that a slow disk can occupy here."""
# One range. At most 18 digits, which bounds the work of int().
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class StaticPut(Params, frozen=True):
    """Parameters of static.put."""

    path: str
    """At most 8 parts and 512 characters; a part is 1 to 128 of `A-Z a-z 0-9 _ - .`, first a letter, digit or `_`.
    The extension decides the content type.
    """
    content: str | None = None
    """What the file is to have as text; exactly one of both."""
    content_base64: str | None = None
    """The same as bytes in base64."""


class StaticGet(Params, frozen=True):
    """Parameters of static.get."""

    path: str
    """Path of the file."""
    offset: Whole = 0
    """The first byte that is wanted."""
    length: Whole = MAX_ANSWER_BYTES
    """How many bytes; an answer has 192 KiB at most."""
    plugin: str = ""
    """Whose file; empty: the caller's."""


class ListFiles(Params, frozen=True):
    """Parameters of static.list."""

    prefix: str = ""
    """Only paths that begin so."""
    after: str = ""
    """The `next` of the page before."""
    plugin: str = ""
    """Whose files; empty: the caller's."""
    digests: bool = False
    """Whether to answer the SHA-256 of each."""


class StaticDelete(Params, frozen=True):
    """Parameters of static.delete."""

    path: str
    """Path of the file."""


class StaticFile(Value, frozen=True, kw_only=True):
    """An HTTP answer: status 200, 206, 304 or 416, headers and body. Content-Length is left to the server."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class StaticCalls:
    """The host calls `static.get`, `static.list`, `static.put` and `static.delete`, and `read` for routes.

    Files are kept below `directory`. `limits` are the settings. `publisher(owner)`: the publisher of the owner, empty
    when it is unsigned. `may_read(reader, owner)`: whether a plugin may now read the files of another one, or serve
    those of the owner, which may be itself.
    """

    def __init__(
        self,
        directory: Path,
        *,
        limits: Limits,
        publisher: Callable[[str], str] = lambda _owner: "",
        may_read: Callable[[str, str], bool] = lambda reader, owner: reader == owner,
        shares: Callable[[str, str], bool] = lambda reader, owner: reader == owner,
    ) -> None:
        self._files = StaticFiles(directory)
        self.limits = limits
        self.may_read, self._shares = may_read, shares
        self._publisher = publisher
        self._slots = asyncio.Semaphore(THREADS)

    def calls(self) -> tuple[Served, ...]:
        """The calls with their parameters and handlers, for `host.call.table`."""
        return (
            Served(method="static.get", params=StaticGet, serve=self._get),
            Served(method="static.list", params=ListFiles, serve=self._list),
            Served(method="static.put", params=StaticPut, serve=self._put),
            Served(method="static.delete", params=StaticDelete, serve=self._delete),
        )

    async def read(
        self,
        reader: str,
        owner: str,
        path: str,
        wanted: str = "",
        *,
        if_none_match: str = "",
        if_range: str = "",
    ) -> StaticFile:
        """A file of `owner` as the HTTP answer of a route of `reader`; `wanted` is the Range header, the others are
        those of their name, each empty when absent. The path may be anything: it comes from a URL.

        HostError not_found when there is no such file, or it (or its type) may not be served now; service_unavailable
        for errors of the disk.
        """
        # Before a thread is used: nothing is opened for a path or type that cannot be published.
        kind = self._content_type(path) if ids.is_valid(owner) and published.path_fault(path) is None else None
        found = await self._read(reader, owner, path) if kind else None
        # One answer for all of these, so that a visitor learns nothing about files that are not published.
        if found is None or kind is None:
            raise HostError(Denial.NOT_FOUND, "there is no such file")
        return answer(found[0], kind, wanted=wanted, if_none_match=if_none_match, if_range=if_range)

    async def _read(self, reader: str, owner: str, path: str) -> tuple[bytes, int] | None:
        """The bytes and mtime (µs) of a file that `owner` publishes; None when there is none, or `reader` may not have
        it.
        """
        if not self.may_read(reader, owner):
            return None
        directory = self._directory_of(owner)
        found = await self._in_thread(lambda: self._files.read(directory, path))
        # Asked again: permission may have been lost meanwhile, or the id have passed to another publisher.
        return found if self.may_read(reader, owner) and self._directory_of(owner) == directory else None

    async def count_files(self, plugin_id: str) -> int:
        """The number of files of a plugin id, those under past publishers included; HostError service_unavailable."""
        return await self._in_thread(
            lambda: sum(len(self._files.entries(owner)) for owner in self._files.owners(plugin_id))
        )

    async def purge(self, plugin_id: str) -> int:
        """Remove all files of a plugin id, those under past publishers included; the number of directories removed.
        HostError service_unavailable.
        """
        return await self._in_thread(lambda: sum(self._files.remove(owner) for owner in self._files.owners(plugin_id)))

    async def _get(self, caller: Caller, asked: StaticGet) -> dict[str, Any]:
        """A part of a file, as base64 and, where it is UTF-8, as text; `ok` false when there is no such file."""
        owner, path = self._owner(caller, asked.plugin), _checked(asked.path)
        found = await self._in_thread(lambda: self._files.read(owner, path))
        # Judged again, see `_read`.
        if found is None or self._owner(caller, asked.plugin) != owner:
            return {"ok": False}
        data, modified_us = found
        # The whole file is read even for a part: the ETag is the hash of all of it.
        part = data[asked.offset : asked.offset + min(asked.length, MAX_ANSWER_BYTES)]
        return {
            "ok": True,
            "content": values.as_text(part),
            "content_base64": base64.b64encode(part).decode("ascii"),
            "bytes": len(data),
            "content_type": self._content_type(path),
            "etag": etag(data),
            "modified_at": rfc3339(modified_us),
        }

    async def _list(self, caller: Caller, asked: ListFiles) -> dict[str, Any]:
        """A page of the files, by path; `next` is null on the last one."""
        owner = self._owner(caller, asked.plugin)
        # All files are walked for each page: there are at most `static.plugin_files`.
        found = await self._in_thread(lambda: self._files.entries(owner))
        wanted = [entry for entry in found if entry.path.startswith(asked.prefix) and entry.path > asked.after]
        page = wanted[:PAGE]
        digests = await self._in_thread(lambda: self._files.digests(owner, page)) if asked.digests else {}
        # Judged again, see `_read`.
        if self._owner(caller, asked.plugin) != owner:
            raise HostError(Denial.NOT_FOUND, "there are no such files any more")
        shown = [
            {
                "path": entry.path,
                "bytes": entry.size,
                "content_type": self._content_type(entry.path),
                "modified_at": rfc3339(entry.modified_us),
                **({"sha256": digests[entry.path]} if asked.digests else {}),
            }
            for entry in page
            if not asked.digests or entry.path in digests
        ]
        publisher = self._publisher(asked.plugin or caller.plugin_id)
        return {"files": shown, "next": page[-1].path if len(wanted) > PAGE else None, "publisher": publisher}

    async def _put(self, caller: Caller, asked: StaticPut) -> dict[str, Any]:
        """Store a file in place of the previous one of its path; on disk when it returns. HostError bad_params,
        too_large, quota_exceeded, service_unavailable.
        """
        path, limits = _checked(asked.path), self.limits
        data = values.from_text_or_base64(asked.content, asked.content_base64, name="content")
        if (kind := self._content_type(path)) is None:
            raise HostError(Denial.BAD_PARAMS, f"files like {path} are not published: {self._kinds()}")
        if len(data) > limits.file_bytes:
            found = f"expected a file of at most {limits.file_bytes} bytes, found {len(data)}"
            raise HostError(Denial.TOO_LARGE, found)
        directory = self._directory_of(caller.plugin_id)
        quota = StaticQuota(files=limits.plugin_files, total_bytes=limits.plugin_bytes)
        await self._in_thread(lambda: self._files.put(directory, path, data, quota))
        return {"ok": True, "bytes": len(data), "content_type": kind, "etag": etag(data)}

    async def _delete(self, caller: Caller, asked: StaticDelete) -> dict[str, Any]:
        """Delete a file of the caller; `ok` is whether there was one."""
        path, directory = _checked(asked.path), self._directory_of(caller.plugin_id)
        return {"ok": await self._in_thread(lambda: self._files.delete(directory, path))}

    def _owner(self, caller: Caller, wanted: str) -> str:
        """The directory of the plugin whose files are asked for (empty: the caller); HostError bad_params unless it
        shares them.
        """
        if wanted in {"", caller.plugin_id}:
            return self._directory_of(caller.plugin_id)
        if ids.is_valid(wanted) and self.may_read(caller.plugin_id, wanted):
            return self._directory_of(wanted)
        raise self.not_shared(caller.plugin_id, wanted)

    def not_shared(self, reader: str, owner: str) -> HostError:
        """The refusal to let `reader` read the files of `owner`, with what helps: the grant, unless there is one."""
        shown = text.sanitise(owner, 80)
        reason = f"plugin: the files of {shown!r} are not shared with this plugin, or that one may not publish now"
        fix = "" if self._shares(reader, owner) else f"share={owner}"
        return HostError(Denial.BAD_PARAMS, f"{reason} (caps grant ID share={shown})", fix=fix)

    def _directory_of(self, plugin_id: str) -> str:
        """The directory of a plugin's files, as `publisher/id`: another publisher of the id must not get them."""
        return published.directory(self._publisher(plugin_id), plugin_id)

    def _content_type(self, path: str) -> str | None:
        """The Content-Type by the settings, or None: not published. Asked at each use, as `static.html` and
        `static.svg` may be switched off while there are such files.
        """
        limits = self.limits
        return published.content_type(path, html=limits.html, svg=limits.svg)

    def _kinds(self) -> str:
        """What a refusal says was expected: the extensions that can be published, and which of them are off."""
        limits = self.limits
        off = [word for word, on in (("html", limits.html), ("svg", limits.svg)) if not on]
        known = ", ".join(published.TYPES)
        return f"expected a name that ends in one of {known}" + (f" ({', '.join(off)} are off)" if off else "")

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """The result of `work`, run in a thread, of which at most THREADS run. If the caller is cancelled, `work` is
        completed all the same.
        """
        await self._slots.acquire()
        running = asyncio.get_running_loop().run_in_executor(None, work)
        # Released by the thread's end, not by the caller's: a cancelled caller would otherwise free a slot whose thread
        # still hangs at a slow disk.
        running.add_done_callback(lambda _: self._slots.release())
        return await asyncio.shield(running)


def etag(data: bytes) -> str:
    """A strong validator (RFC 9110, section 8.8.3), with its quotes: equal for equal bytes, whenever they were put
    there.
    """
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def answer(data: bytes, kind: str, *, wanted: str = "", if_none_match: str = "", if_range: str = "") -> StaticFile:
    """`data` as the answer to a GET with these headers, each empty when absent.

    wanted="bytes=0-3"                  ->  206 with 4 bytes
    wanted="bytes=900-", 10 bytes       ->  416
    wanted="bytes=0-1,4-5" or "lines=1" ->  200 with all of it: only a single range of bytes is served
    if_none_match=<its ETag>            ->  304
    """
    tag = etag(data)
    headers = {
        "Content-Type": kind,
        "ETag": tag,
        "Accept-Ranges": "bytes",
        # Caches ask again before each use: a file that was replaced or is no longer published is not served from one.
        "Cache-Control": "no-cache",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": published.policy(kind),
    }
    # Before the range: If-None-Match takes precedence (RFC 9110, section 13.2.2).
    if if_none_match and _matches(if_none_match, tag):
        return StaticFile(status=304, headers=headers, body=b"")
    # With another validator in If-Range the client has a part of another version: it gets the whole file (RFC 9110,
    # section 13.1.5). Dates are not taken, as they are not sent.
    bounds = _bounds(wanted, len(data)) if wanted and if_range in {"", tag} else None
    if bounds is None:
        return StaticFile(status=200, headers=headers, body=data)
    first, end = bounds
    if first >= end:
        return StaticFile(status=416, headers={**headers, "Content-Range": f"bytes */{len(data)}"}, body=b"")
    shown = {**headers, "Content-Range": f"bytes {first}-{end - 1}/{len(data)}"}
    return StaticFile(status=206, headers=shown, body=data[first:end])


def _bounds(wanted: str, size: int) -> tuple[int, int] | None:
    """(first, end) of one range, `end` exclusive; first >= end when there is nothing in it (416); None for what is to
    be ignored.

    "bytes=0-3", 10   ->  (0, 4)
    "bytes=-3", 10    ->  (7, 10), the last three bytes
    "bytes=3-1"       ->  None, as it is no valid range (RFC 9110, section 14.1.1)
    """
    found = _RANGE.fullmatch(wanted.replace(" ", ""))
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        return (size, size) if int(last) == 0 else (max(0, size - int(last)), size)
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size


def _matches(header: str, tag: str) -> bool:
    """Whether If-None-Match has this ETag, or `*`. It compares weakly (RFC 9110, section 13.1.2)."""
    return header.strip() == "*" or tag in {one.strip().removeprefix("W/") for one in header.split(",")}


def _checked(path: str) -> str:
    """The path, if it may be one; HostError bad_params otherwise."""
    if fault := published.path_fault(path):
        raise HostError(Denial.BAD_PARAMS, f"path: {fault}")
    return path
