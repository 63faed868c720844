"""Handlers for key-value buckets: operators read and write any of them, as raw bytes."""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING, Any

from aiohttp import web

from latticed.host.kv import key_fault
from latticed.ledger import kv as rows
from latticed.model.audit import Event
from latticed.model.errors import Problem
from latticed.rpc.api import QueryParams
from latticed.rpc.plugins import Nothing

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.ledger import Transaction
    from latticed.rpc.api import Ask
    from latticed.rpc.responses import KeyPage, ValueDeleted, ValueSet

PAGE = 1_000
"""Most keys of one answer."""


class Span(QueryParams, frozen=True):
    """Selects the keys that begin with `prefix` and sort after `after`."""

    prefix: str = ""
    after: str = ""


async def get(ask: Ask) -> web.Response:
    """One value, as raw bytes."""
    bucket, key = _place(ask)
    value = ask.api.ledger.read(lambda db: rows.get(db, bucket, key))
    if value is None:
        raise _no_key(ask, bucket, key)
    return web.Response(body=value, content_type="application/octet-stream")


async def put(ask: Ask) -> ValueSet:
    """Set one value: the body is its bytes."""
    bucket, key = _place(ask)
    value = await ask.raw()
    quota = ask.api.quota()
    await _change(ask, "kv.put", lambda tx: rows.put(tx, bucket, key, value, quota))
    return {"bucket": bucket, "key": key, "bytes": len(value)}


async def delete(ask: Ask) -> ValueDeleted:
    """Delete one key and its value."""
    await ask.body(Nothing)
    bucket, key = _place(ask)
    if not await _change(ask, "kv.delete", lambda tx: rows.delete(tx, bucket, key)):
        raise _no_key(ask, bucket, key)
    return {"bucket": bucket, "key": key, "deleted": True}


async def keys(ask: Ask) -> KeyPage:
    """The keys of a bucket, sorted, at most 1,000 at a time."""
    asked = ask.query(Span)
    bucket = _bucket(ask)
    # One more than is shown, which tells whether another page follows.
    found = ask.api.ledger.read(lambda db: rows.keys(db, bucket, asked.prefix, asked.after, PAGE + 1))
    return {"keys": found[:PAGE], "next": found[PAGE - 1] if len(found) > PAGE else None}


def _no_key(ask: Ask, bucket: str, key: str) -> Problem:
    """Problem not_found; for a plugin's id in the place of its bucket it names that."""
    hint = f"latticectl kv list plugin:{bucket}" if bucket in ask.api.lifecycle.records else ""
    return Problem("not_found", f"there is no key {key!r} in bucket {bucket!r}", hint)


async def _change(ask: Ask, action: str, change: Callable[[Transaction], Any]) -> Any:
    """Run `change` in one transaction with its audit event, and return what it returned."""
    bucket, key = _place(ask)
    event = Event(actor=str(ask.actor), action=action, target=f"{bucket}/{key}", decision="allow")

    def recorded(tx: Transaction) -> Any:
        # In one transaction: neither the event nor the change is kept without the other.
        tx.append_audit(event)
        return change(tx)

    return await ask.api.ledger.write(recorded)


def _bucket(ask: Ask) -> str:
    """The bucket in the path; Problem bad_request for a name that is none."""
    try:  # invalid UTF-8 would be decoded to other text, and so name another key
        urllib.parse.unquote_to_bytes(ask.request.rel_url.raw_path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem("bad_request", "expected a path in UTF-8") from error
    if fault := key_fault(ask.part("bucket")):
        raise Problem("bad_request", fault.replace("key", "bucket"))
    return ask.part("bucket")


def _place(ask: Ask) -> tuple[str, str]:
    """The bucket and key in the path; Problem bad_request for names that are none."""
    if fault := key_fault(ask.part("key")):
        raise Problem("bad_request", fault)
    return _bucket(ask), ask.part("key")
