"""kv.*: small values that a plugin keeps between runs, in a bucket of its own (contracts §9).

The bucket is `plugin:<id>`; a worker's template may also read the operators' bucket `default`, and those that an
operator granted. When another publisher takes over an id, the lifecycle renames the old bucket, so that the new plugin
cannot read it.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final, TypeVar

from latticed.host import values
from latticed.host.call import Caller, HostError, Params, Served
from latticed.kit import text
from latticed.ledger import kv as rows
from latticed.ledger import versions
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.ledger import Ledger
    from latticed.ledger.connection import RowReader
    from latticed.settings import HostCallSettings

T = TypeVar("T")

MAX_KEY_CHARACTERS: Final = 256
"""Characters, not bytes."""
PAGE: Final = 1_000
"""Keys in one answer of kv.list; `next` leads to the rest."""
MAX_TEXT_BYTES: Final = 64 << 10
"""A longer value is answered as base64 only: with both forms the answer would exceed many plugins' line limit."""
FOR_WORKERS: Final = frozenset({"default"})
"""The buckets of operators that workers' templates may name."""


class KvKey(Params, frozen=True):
    """Parameters of kv.delete: a key of the caller's own bucket."""

    key: str


class KvGet(Params, frozen=True):
    """Parameters of kv.get. `bucket` absent: the caller's own."""

    key: str
    bucket: str | None = None


class ListKeys(Params, frozen=True):
    """Parameters of kv.list: keys of the caller's bucket that begin with `prefix` and come after the key `after`."""

    prefix: str = ""
    after: str = ""


class KvPut(Params, frozen=True):
    """Parameters of kv.put: exactly one of `value` (text, stored as UTF-8) and `value_base64`."""

    key: str
    value: str | None = None
    value_base64: str | None = None


class KvCalls:
    """Serves kv.get, kv.list, kv.put, kv.delete. `quota` bounds each plugin's bucket, and is replaced on a reload.

    `granted(plugin_id)`: the buckets of operators that a worker of that id may read besides `default`.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        quota: rows.KvQuota,
        granted: Callable[[str], frozenset[str]] = lambda _: frozenset(),
    ) -> None:
        self._ledger = ledger
        self.quota = quota
        self._granted = granted

    def calls(self) -> tuple[Served, ...]:
        """The calls with their parameters and handlers, for `host.call.table`."""
        return (
            Served(method="kv.get", params=KvGet, serve=self._get),
            Served(method="kv.list", params=ListKeys, serve=self._list),
            Served(method="kv.put", params=KvPut, serve=self._put),
            Served(method="kv.delete", params=KvKey, serve=self._delete),
        )

    async def _get(self, caller: Caller, asked: KvGet) -> dict[str, Any]:
        """Serve kv.get: `{ok, value, value_base64}`, or `{ok: false}`; `value` is left out above MAX_TEXT_BYTES."""
        key, bucket = _checked(asked.key), self._readable_bucket(caller, asked.bucket)
        # Read on the event loop: one row by its key, which costs less than handing it to a thread.
        value = self._ledger.read(lambda db: rows.get(db, bucket or bucket_of(db, caller), key))
        if value is None:
            return {"ok": False}
        coded = base64.b64encode(value).decode("ascii")
        if len(value) > MAX_TEXT_BYTES:
            return {"ok": True, "value_base64": coded}
        return {"ok": True, "value": values.as_text(value), "value_base64": coded}

    async def _list(self, caller: Caller, asked: ListKeys) -> dict[str, Any]:
        """Serve kv.list: a page of the caller's keys, and the `after` of the next one or null."""
        # One key more than is answered says whether there is a next page.
        keys = self._ledger.read(lambda db: rows.keys(db, bucket_of(db, caller), asked.prefix, asked.after, PAGE + 1))
        return {"keys": keys[:PAGE], "next": keys[PAGE - 1] if len(keys) > PAGE else None}

    def _readable_bucket(self, caller: Caller, bucket: str | None) -> str:
        """`bucket`, if `caller` may read it, empty for its own; the refusal does not depend on whether it exists."""
        if bucket is None or bucket == rows.own(caller.plugin_id):
            return ""
        # Only workers have buckets besides their own, so only they may be granted more.
        allowed = caller.buckets and (bucket in caller.buckets or bucket in self._granted(caller.plugin_id))
        # No grant opens the bucket of another plugin.
        if bucket.startswith("plugin:") or not allowed:
            raise HostError(Denial.BAD_PARAMS, "expected a bucket that this plugin may read")
        return bucket

    async def _put(self, caller: Caller, asked: KvPut) -> dict[str, Any]:
        """Serve kv.put. HostError bad_params; Problem quota_exceeded, ledger_unavailable."""
        key, value = _checked(asked.key), values.from_text_or_base64(asked.value, asked.value_base64, name="value")
        # Without `durable`: it survives a kill of the daemon, but perhaps not a power cut (`Ledger.write`). The quota
        # is checked in the same transaction, so that concurrent calls cannot exceed it together.
        await self._ledger.write(lambda tx: rows.put(tx, bucket_of(tx, caller), key, value, self.quota))
        return {"ok": True}

    async def _delete(self, caller: Caller, asked: KvKey) -> dict[str, Any]:
        """Serve kv.delete: `ok` is whether there was such a key. HostError bad_params; Problem ledger_unavailable."""
        key = _checked(asked.key)
        return {"ok": await self._ledger.write(lambda tx: rows.delete(tx, bucket_of(tx, caller), key))}


def quota_of(limits: HostCallSettings) -> rows.KvQuota:
    """The quota of one bucket by the settings `host_calls.kv_*`."""
    return rows.KvQuota(value_bytes=limits.kv_value_bytes, keys=limits.kv_keys, total_bytes=limits.kv_total_bytes)


def bucket_of(conn: RowReader, caller: Caller) -> str:
    """The bucket of `caller` alone, as the ledger stands: asked within the transaction that reads or writes it.

    A version that stands by has a copy of its own; from the transaction on that makes it the one in charge, and already
    before the one that makes the copy, its bucket is the plugin's.
    """
    if caller.standby and versions.is_open(conn, caller.plugin_id, caller.standby):
        return rows.aside(caller.plugin_id, caller.standby)
    return rows.own(caller.plugin_id)


def key_fault(key: str) -> str | None:
    r"""What is wrong with a key, or None: 1..256 characters, no `/`, `\\`, control characters, not `.` or `..`."""
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        return f"expected a key of 1 to {MAX_KEY_CHARACTERS} characters, found {len(key)}"
    if key in {".", ".."} or "/" in key or "\\" in key or any(text.is_control(c) for c in key):
        return "expected a key without '/', '\\' and control characters that is not '.' or '..'"
    return None


def _checked(key: str) -> str:
    """The key, if it may be one (`key_fault`); HostError bad_params otherwise."""
    if fault := key_fault(key):
        raise HostError(Denial.BAD_PARAMS, fault)
    return key
