"""Small values by bucket and key. Callers validate names; `KvQuota` limits sizes.

`kv_usage` is kept in the same transaction as the rows, so that a quota check reads one row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.kit.value import Value
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ledger.connection import RowReader
    from latticed.ledger.transaction import Transaction

_USE: Final = """
INSERT INTO kv_usage (bucket, keys, bytes) VALUES (?, ?, ?)
ON CONFLICT (bucket) DO UPDATE
SET keys = keys + excluded.keys, bytes = bytes + excluded.bytes, version = version + 1
RETURNING version
"""


class KvQuota(Value, frozen=True, kw_only=True):
    """What one bucket may hold: bytes of a value, number of keys, bytes of all keys (UTF-8) and values together."""

    value_bytes: int
    keys: int
    total_bytes: int


def get(conn: RowReader, bucket: str, key: str) -> bytes | None:
    """The value, or None for a missing key."""
    found = entry(conn, bucket, key)
    return None if found is None else found[0]


def entry(conn: RowReader, bucket: str, key: str) -> tuple[bytes, int] | None:
    """The value and its version, or None for a missing key.

    A version is at least 1, and no other value of the bucket gets it again, also not after the key was deleted. Going
    back to a snapshot brings the versions of that time back; whoever held later ones was stopped before.
    """
    row = conn.execute("SELECT value, version FROM kv WHERE bucket = ? AND key = ?", (bucket, key)).fetchone()
    return None if row is None else (bytes(row[0]), int(row[1]))


def version(conn: RowReader, bucket: str, key: str) -> int:
    """The version of the value, 0 for a missing key."""
    row = conn.execute("SELECT version FROM kv WHERE bucket = ? AND key = ?", (bucket, key)).fetchone()
    return 0 if row is None else int(row[0])


def keys(conn: RowReader, bucket: str, prefix: str = "", after: str = "", limit: int = 1_000) -> list[str]:
    """At most `limit` keys that begin with `prefix` and sort after `after`, in code point order."""
    # A range instead of LIKE: it needs no escaping of % and _, and the primary key serves it.
    bounds, values = "key > ? AND key >= ?", [after, prefix]
    if (end := _past(prefix)) is not None:
        bounds += " AND key < ?"
        values.append(end)
    statement = f"SELECT key FROM kv WHERE bucket = ? AND {bounds} ORDER BY key LIMIT ?"  # noqa: S608 - constants
    return [key for (key,) in conn.execute(statement, (bucket, *values, limit))]


def put(tx: Transaction, bucket: str, key: str, value: bytes, quota: KvQuota) -> int:
    """Store `value`, replacing what was there, and return its version; Problem quota_exceeded when it does not fit.

    A replacement that does not make the bucket larger always fits, so that values can still be changed after the quota
    was lowered.
    """
    if len(value) > quota.value_bytes:
        raise Problem("quota_exceeded", f"expected a value of at most {quota.value_bytes} bytes, found {len(value)}")
    # A replacement counts with the difference to what is there.
    old = _size(tx, bucket, key)
    more_keys = int(old is None)
    more_bytes = len(value) + len(key.encode("utf-8")) - (old or 0)
    used_keys, used_bytes = usage(tx, bucket)
    if more_keys and used_keys >= quota.keys:
        raise _full(f"at most {quota.keys} keys in {bucket}", f"{used_keys}")
    if more_bytes > 0 and used_bytes + more_bytes > quota.total_bytes:
        raise _full(f"at most {quota.total_bytes} bytes in {bucket}", f"{used_bytes + more_bytes}")
    number = _count(tx, bucket, more_keys, more_bytes)
    tx.execute("INSERT OR REPLACE INTO kv (bucket, key, value, version) VALUES (?,?,?,?)", (bucket, key, value, number))
    return number


def delete(tx: Transaction, bucket: str, key: str) -> bool:
    """Remove one key; False when there was none."""
    old = _size(tx, bucket, key)
    if old is None:
        return False
    tx.execute("DELETE FROM kv WHERE bucket = ? AND key = ?", (bucket, key))
    _count(tx, bucket, -1, -old)
    return True


def clear(tx: Transaction, bucket: str) -> int:
    """Remove a whole bucket; returns how many keys it had."""
    used_keys, _ = usage(tx, bucket)
    tx.execute("DELETE FROM kv WHERE bucket = ?", (bucket,))
    tx.execute("DELETE FROM kv_usage WHERE bucket = ?", (bucket,))
    return used_keys


def rename(tx: Transaction, old: str, new: str) -> int:
    """Move a whole bucket to a name that has no key yet; returns how many keys moved."""
    used_keys, _ = usage(tx, old)
    tx.execute("UPDATE kv SET bucket = ? WHERE bucket = ?", (new, old))
    tx.execute("UPDATE kv_usage SET bucket = ? WHERE bucket = ?", (new, old))
    return used_keys


def copy(tx: Transaction, old: str, new: str) -> None:
    """Make the bucket `new`, which has no key yet, hold what `old` holds."""
    tx.execute("INSERT INTO kv SELECT ?, key, value, version FROM kv WHERE bucket = ?", (new, old))
    tx.execute("INSERT INTO kv_usage SELECT ?, keys, bytes, version FROM kv_usage WHERE bucket = ?", (new, old))


def replace(tx: Transaction, source: str, target: str, *, keep: bool) -> None:
    """Make `target` hold what `source` holds, and nothing else; `source` is gone then unless `keep`."""
    clear(tx, target)
    (copy if keep else rename)(tx, source, target)


def own(plugin_id: str) -> str:
    """The bucket of a plugin."""
    return f"plugin:{plugin_id}"


def aside(plugin_id: str, number: int) -> str:
    """The bucket with the values of a kept version (`ledger.versions`). No publisher's name has a tilde."""
    return f"{own(plugin_id)}@~{number}"


def is_aside(bucket: str) -> bool:
    """Whether a bucket has the values of a kept version."""
    return "@~" in bucket


def of_plugin(conn: RowReader, plugin_id: str) -> list[str]:
    """The buckets of an id: the plugin's own, and those set aside for earlier publishers and for kept versions.

    The latter are named `plugin:<id>@…`.
    """
    found = conn.execute(
        "SELECT bucket FROM kv_usage WHERE bucket = ? OR bucket >= ? AND bucket < ?", _of(own(plugin_id))
    )
    return [bucket for (bucket,) in found]


def usage(conn: RowReader, bucket: str) -> tuple[int, int]:
    """How many keys `bucket` has, and the bytes of its keys and values together."""
    row = conn.execute("SELECT keys, bytes FROM kv_usage WHERE bucket = ?", (bucket,)).fetchone()
    return (0, 0) if row is None else (row[0], row[1])


def _count(tx: Transaction, bucket: str, keys: int, size: int) -> int:
    """Add these differences to what `bucket` uses; returns the number of the change, which grows."""
    return int(tx.execute(_USE, (bucket, keys, size)).get)


def _size(conn: RowReader, bucket: str, key: str) -> int | None:
    """What one row counts towards the quota: the bytes of its key and value. None if there is no such row."""
    # As a BLOB: of text, length() counts characters.
    statement = "SELECT length(CAST(key AS BLOB)) + length(value) FROM kv WHERE bucket = ? AND key = ?"
    row = conn.execute(statement, (bucket, key)).fetchone()
    return None if row is None else int(row[0])


def _of(own: str) -> tuple[str, str, str]:
    """`own` and the bounds of all names that begin with `own@`, as values of a condition `= ? OR >= ? AND < ?`. "A" is
    the character after "@", and no id has one.
    """
    return own, f"{own}@", f"{own}A"


def _past(prefix: str) -> str | None:
    """The least text greater than all that begin with `prefix`; None when there is no such text.

    SQLite compares UTF-8 bytes, whose order is that of code points; surrogates are no text.
    """
    stem = prefix.rstrip(chr(0x10FFFF))
    if not stem:
        return None
    following = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if following == 0xD800 else following)


def _full(expected: str, found: str) -> Problem:
    """The Problem quota_exceeded of a bucket, with what is allowed and what was found."""
    return Problem("quota_exceeded", f"expected {expected}, found {found}", "delete what is no longer needed")
