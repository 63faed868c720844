"""static.*: files that a plugin publishes (system-plugins.md, Host services).

`read` is for the ingress: the same files as HTTP answers with their headers (RFC 9110 sections 8.8, 13 and 14).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from latticed.host import values
from latticed.host.call import Caller, HostError, Params, Served, Whole
from latticed.host.static import content_types
from latticed.host.static.tree import StaticFiles, StaticQuota
from latticed.kit import text
from latticed.kit.clock import rfc3339
from latticed.model import ids
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from latticed.settings.shapes import StaticSettings as Limits

T = TypeVar("T")

MAX_PATH_CHARACTERS: Final = 512
MAX_DEPTH: Final = 8
MAX_ANSWER_BYTES: Final = 192 << 10
"""Bytes of a file in one answer of static.get; callers get the rest with `offset`."""
PAGE: Final = 500
"""Files in one answer of static.list."""
THREADS: Final = 2
"""Threads of the default executor that a slow disk can occupy here."""
# Content-Security-Policy. `sandbox` gives a file an origin of its own and no scripts: what a plugin publishes cannot
# act for visitors of others at the same listener. HTML and SVG may also load styles, images, fonts and media from
# there.
FILE_POLICY: Final = "sandbox; default-src 'none'"
PAGE_POLICY: Final = f"{FILE_POLICY}; style-src 'self'; img-src 'self'; font-src 'self'; media-src 'self'"

UNSIGNED: Final = "-"
"""The publisher's name in paths for unsigned plugins; no publisher can have it."""

_SEGMENT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
# One range. At most 18 digits, which bounds the work of int().
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class StaticPut(Params, frozen=True):
    """Parameters of static.put: the text or the bytes (base64) that the file is to have; exactly one of both."""

    path: str
    content: str | None = None
    content_base64: str | None = None


class StaticGet(Params, frozen=True):
    """Parameters of static.get. `offset`, `length`: which bytes of the file; `plugin`: whose file, the caller's when
    empty.
    """

    path: str
    offset: Whole = 0
    length: Whole = MAX_ANSWER_BYTES
    plugin: str = ""


class ListFiles(Params, frozen=True):
    """Parameters of static.list. `prefix`: only paths that begin so; `after`: `next` of the page before; `plugin`:
    whose files, the caller's when empty.
    """

    prefix: str = ""
    after: str = ""
    plugin: str = ""


class StaticDelete(Params, frozen=True):
    """Parameters of static.delete: the path of one of the caller's files."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticFile:
    """An HTTP answer: status 200, 206, 304 or 416, headers and body. Content-Length is left to the server."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class StaticCalls:
    """The host calls `static.get`, `static.list`, `static.put` and `static.delete`, and `read` for the ingress.

    Files are kept below `directory`. `limits` are the settings. `shared(reader, owner)`: whether a plugin may read
    another's files; `publisher(owner)`: the publisher of the owner, empty when it is unsigned; `published(owner)`:
    whether its files may be served now.
    """

    def __init__(
        self,
        directory: Path,
        *,
        limits: Limits,
        shared: Callable[[str, str], bool] = lambda _reader, _owner: False,
        publisher: Callable[[str], str] = lambda _owner: "",
        published: Callable[[str], bool] = lambda _owner: True,
    ) -> None:
        self._files = StaticFiles(directory)
        self.limits = limits
        self._shared = shared
        self._publisher = publisher
        self._published = published
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
        self, plugin_id: str, path: str, wanted: str = "", *, if_none_match: str = "", if_range: str = ""
    ) -> StaticFile:
        """A plugin's file as an HTTP answer; `wanted` is the Range header, the others are those of their name, each
        empty when absent. Id and path may be anything: they come from a URL.

        HostError not_found when there is no such file, or it (or its type) may not be published now;
        service_unavailable for errors of the disk.
        """
        # Before a thread is used: nothing is opened for an id, path or type that cannot be published.
        kind = self._content_type(path) if ids.is_valid(plugin_id) and path_fault(path) is None else None
        directory = self._directory_of(plugin_id)
        found = await self._in_thread(lambda: self._files.read(directory, path)) if kind else None
        # Asked last: the permission may have been lost while the file was read. One answer for all of these, so that a
        # visitor learns nothing about files that are not published.
        if found is None or kind is None or not self._published(plugin_id):
            raise HostError(Denial.NOT_FOUND, "there is no such file")
        return answer(found[0], kind, wanted=wanted, if_none_match=if_none_match, if_range=if_range)

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
        if found is None:
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
        found = await self._in_thread(lambda: self._files.entries(owner))
        # All files are walked for each page: there are at most `static.plugin_files`.
        wanted = [entry for entry in found if entry.path.startswith(asked.prefix) and entry.path > asked.after]
        shown = [
            {
                "path": entry.path,
                "bytes": entry.size,
                "content_type": self._content_type(entry.path),
                "modified_at": rfc3339(entry.modified_us),
            }
            for entry in wanted[:PAGE]
        ]
        return {"files": shown, "next": wanted[PAGE - 1].path if len(wanted) > PAGE else None}

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
        if ids.is_valid(wanted) and self._shared(caller.plugin_id, wanted):
            return self._directory_of(wanted)
        raise HostError(
            Denial.BAD_PARAMS, f"the files of {text.sanitise(wanted, 80)!r} are not shared with this plugin"
        )

    def _directory_of(self, plugin_id: str) -> str:
        """The directory of a plugin's files, as `publisher/id`: another publisher of the id must not get them."""
        return f"{self._publisher(plugin_id) or UNSIGNED}/{plugin_id}"

    def _content_type(self, path: str) -> str | None:
        """The Content-Type by the settings, or None: not published. Asked at each use, as `static.html` and
        `static.svg` may be switched off while there are such files.
        """
        limits = self.limits
        return content_types.of(path, html=limits.html, svg=limits.svg)

    def _kinds(self) -> str:
        """What a refusal says was expected: the extensions that can be published, and which of them are off."""
        limits = self.limits
        off = [word for word, on in (("html", limits.html), ("svg", limits.svg)) if not on]
        known = ", ".join(content_types.OF)
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


def path_fault(path: str) -> str | None:
    """What is wrong with a path, as the end of a message, or None. No allowed character can be part of an encoding, so
    what is checked here is what is opened.
    """
    parts = path.split("/")
    if len(path) > MAX_PATH_CHARACTERS or len(parts) > MAX_DEPTH:
        return f"expected a path of at most {MAX_PATH_CHARACTERS} characters and {MAX_DEPTH} parts"
    if ".." in path or not all(_SEGMENT.fullmatch(part) for part in parts):
        return (
            "expected parts of A-Z a-z 0-9 _ - . joined by '/', none empty, none that begins with '.' or '-', no '..'"
        )
    return None


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
    active = kind.startswith(("text/html", "image/svg"))
    headers = {
        "Content-Type": kind,
        "ETag": tag,
        "Accept-Ranges": "bytes",
        # Caches ask again before each use: a file that was replaced or is no longer published is not served from one.
        "Cache-Control": "no-cache",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": PAGE_POLICY if active else FILE_POLICY,
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
    if fault := path_fault(path):
        raise HostError(Denial.BAD_PARAMS, f"path: {fault}")
    return path
