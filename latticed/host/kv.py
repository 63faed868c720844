"""kv.*: small values that a plugin keeps between runs, in a bucket of its own (contracts §9).

The bucket is `plugin:<id>`. An operator lets a plugin read another's: `caps grant acme.demo bucket=plugin:acme.other`.
A worker's template may also read the operators' bucket `default`, and others of theirs that were granted. When another
publisher takes over an id, the lifecycle renames the old bucket, so that the new plugin cannot read it.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final, TypeVar

from latticed.host import values
from latticed.host.call import Caller, HostError, Params, Served, Whole
from latticed.kit import text
from latticed.ledger import kv as rows
from latticed.ledger import versions
from latticed.model import permits
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.ledger import Ledger, Transaction
    from latticed.ledger.connection import RowReader
    from latticed.settings import HostCallSettings

T = TypeVar("T")

MAX_KEY_CHARACTERS: Final = 256
"""Characters, not bytes."""
KEY_RULE: Final = (
    f"expected a key of 1 to {MAX_KEY_CHARACTERS} characters without '/', '\\' and control characters, not '.' or '..'"
)
PAGE: Final = 1_000
"""Keys in one answer of kv.list; `next` leads to the rest."""
MAX_TEXT_BYTES: Final = 64 << 10
"""A longer value is answered as base64 only: with both forms the answer would exceed many plugins' line limit."""
FOR_WORKERS: Final = frozenset({"default"})
"""The buckets of operators that workers' templates may name."""


class KvKey(Params, frozen=True):
    """Parameters of kv.delete."""

    key: str
    r"""The value's name: 1 to 256 characters without `/`, `\` and control characters, not `.` or `..`."""


class KvGet(Params, frozen=True):
    """Parameters of kv.get."""

    key: str
    """The value's name, as in kv.put."""
    bucket: str | None = None
    """Whose values: `plugin:ID` of another plugin, if the operator granted it; absent: the caller's own."""


class ListKeys(Params, frozen=True):
    """Parameters of kv.list."""

    prefix: str = ""
    """Only keys that begin so."""
    after: str = ""
    """Only keys behind this one: the `next` of the page before."""
    bucket: str | None = None
    """Whose keys, as in kv.get."""


class KvPut(Params, frozen=True):
    """Parameters of kv.put."""

    key: str
    r"""The value's name: 1 to 256 characters without `/`, `\` and control characters, not `.` or `..`."""
    value: str | None = None
    """The value as text, which is stored as UTF-8; either this or `value_base64`."""
    value_base64: str | None = None
    """The value as bytes in base64."""
    if_version: Whole | None = None
    """Store only where the value there has this version, as kv.get answered it; 0: where there is none."""


class KvCalls:
    """Serves kv.get, kv.list, kv.put, kv.delete. `quota` bounds each plugin's bucket, and is replaced on a reload.

    `granted(plugin_id)`: the buckets that an operator lets a plugin of that id read.
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

    def _get(self, caller: Caller, asked: KvGet) -> dict[str, Any]:
        """Serve kv.get: `{ok, value, value_base64, version}`, or `{ok: false}`; no `value` above MAX_TEXT_BYTES."""
        key, bucket = _checked(asked.key), self._readable_bucket(caller, asked.bucket)
        # Read on the event loop: one row by its key, which costs less than handing it to a thread.
        found = self._ledger.read(lambda db: rows.entry(db, bucket or bucket_of(db, caller), key))
        if found is None:
            return {"ok": False}
        value, version = found
        answer = {"ok": True, "value_base64": base64.b64encode(value).decode("ascii"), "version": version}
        if len(value) <= MAX_TEXT_BYTES:
            answer["value"] = values.as_text(value)
        return answer

    async def _list(self, caller: Caller, asked: ListKeys) -> dict[str, Any]:
        """Serve kv.list: a page of keys, and the `after` of the next one or null."""
        bucket = self._readable_bucket(caller, asked.bucket)
        # One key more than is answered says whether there is a next page.
        keys = self._ledger.read(
            lambda db: rows.keys(db, bucket or bucket_of(db, caller), asked.prefix, asked.after, PAGE + 1)
        )
        return {"keys": keys[:PAGE], "next": keys[PAGE - 1] if len(keys) > PAGE else None}

    def _readable_bucket(self, caller: Caller, bucket: str | None) -> str:
        """`bucket`, if `caller` may read it, empty for its own; the refusal does not depend on whether it exists."""
        if bucket is None or bucket == rows.own(caller.plugin_id):
            return ""
        granted = bucket in self._granted(caller.plugin_id)
        if bucket.startswith(permits.OF_A_PLUGIN):
            if granted:
                return bucket
            help_ = f"latticectl caps grant {caller.plugin_id} bucket={text.sanitise(bucket, 140)}"
            message = f"expected a bucket that this plugin may read ({help_})"
            raise HostError(Denial.BAD_PARAMS, message, fix=f"bucket={bucket}")
        # Operators' buckets are for workers alone.
        if not (caller.buckets and (granted or bucket in caller.buckets)):
            raise HostError(Denial.BAD_PARAMS, "expected a bucket that this plugin may read")
        return bucket

    async def _put(self, caller: Caller, asked: KvPut) -> dict[str, Any]:
        """Serve kv.put: `{ok: true}`; with `if_version` `{ok, version}`, the new one, or ok false and the one there.

        HostError bad_params; Problem quota_exceeded, ledger_unavailable.
        """
        key, value = _checked(asked.key), values.from_text_or_base64(asked.value, asked.value_base64, name="value")
        expected = asked.if_version

        def change(tx: Transaction) -> dict[str, Any]:
            bucket = bucket_of(tx, caller)
            if expected is None:
                rows.put(tx, bucket, key, value, self.quota)
                return {"ok": True}
            found = rows.version(tx, bucket, key)
            if found != expected:
                return {"ok": False, "version": found}
            return {"ok": True, "version": rows.put(tx, bucket, key, value, self.quota)}

        # Without `durable`: it survives a kill of the daemon, but perhaps not a power cut (`Ledger.write`). The quota
        # is checked in the same transaction, so that concurrent calls cannot exceed it together.
        return await self._ledger.write(change)

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
    found = None
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        found = f"{len(key)} characters"
    elif key in {".", ".."}:
        found = f"'{key}'"
    elif "/" in key or "\\" in key:
        found = "a '/'" if "/" in key else "a '\\'"
    elif not (key.isascii() and key.isprintable()) and any(text.is_control(c) for c in key):
        found = "a control character"
    return f"{KEY_RULE}, found {found}" if found else None


def _checked(key: str) -> str:
    """The key, if it may be one (`key_fault`); HostError bad_params otherwise."""
    if fault := key_fault(key):
        raise HostError(Denial.BAD_PARAMS, fault)
    return key
