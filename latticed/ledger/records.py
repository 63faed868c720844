"""One row per plugin id that was ever seen verified. Rows are never deleted, only marked forgotten."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec

from latticed.ledger import terms
from latticed.ledger.connection import DAMAGED, damaged
from latticed.model import lifecycle
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ledger.connection import RowReader
    from latticed.ledger.transaction import Transaction

_COLUMNS: Final = (
    "id",
    "status",
    "name",
    "type",
    "version",
    "publisher",
    "signed",
    "capabilities",
    "identity",
    "artifact_sha256",
    "manifest",
    "source",
    "masked",
    "hosts",
    "floor",
    "forgotten",
    "verified_at",
    "installed_at",
    "activated_at",
    "disabled_at",
    "created_at",
    "updated_at",
    "permits",
    "interpreter",
    "terms",
    "unasked",
)
_PUT: Final = f"INSERT OR REPLACE INTO records ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608 - constants
_LATER: Final = {"permits": "[]", "interpreter": "", "terms": "", "unasked": "[]"}
"""Columns that ledgers of older versions lack, and what the migrations give them."""


def put(tx: Transaction, record: lifecycle.Record) -> None:
    """Insert the record, or replace the one with its id. The row of a forgotten plugin is replaced like any other."""
    tx.execute(_PUT, _values(record))


def encode(record: lifecycle.Record) -> bytes:
    """A record as JSON, for `decode`."""
    return msgspec.json.encode(dict(zip(_COLUMNS, _values(record), strict=True)))


def decode(data: bytes) -> lifecycle.Record:
    """What `encode` wrote; Problem ledger_damaged for anything else."""
    try:
        row: dict[str, Any] = msgspec.json.decode(data)
        # msgspec writes bytes as base64, and without a type does not know them again.
        return _record({**row, **{name: base64.b64decode(row[name], validate=True) for name in ("manifest", "source")}})
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError) as error:
        raise damaged(f"kept record: expected what latticed writes, found: {error}") from error


def _values(record: lifecycle.Record) -> tuple[Any, ...]:
    """The values of a row, in the order of _COLUMNS."""
    facts = record.facts
    return (
        record.id,
        record.status.value,
        facts.name,
        facts.type,
        facts.version,
        facts.publisher,
        int(facts.signed),
        json.dumps(facts.capabilities),
        facts.identity,
        facts.artifact_sha256,
        facts.manifest,
        record.source.encode("utf-8", "surrogateescape"),  # a directory's name need not be UTF-8
        json.dumps(sorted(record.masked)),
        json.dumps(record.hosts),
        record.floor,
        int(record.forgotten),
        record.verified_at,
        record.installed_at,
        record.activated_at,
        record.disabled_at,
        record.created_at,
        record.updated_at,
        json.dumps(record.permits),
        facts.interpreter,
        terms.encode(record.terms),
        json.dumps(sorted(record.unasked)),
    )


def load_all(conn: RowReader) -> tuple[lifecycle.Record, ...]:
    """All records by id, tombstones included; Problem ledger_damaged for a row that latticed did not write.

    The ledger may be of an older version: a restore and a recovery read it before it is migrated.
    """
    rows = conn.execute(f"{_select(conn)} ORDER BY id")
    return tuple(_record(dict(zip(_COLUMNS, row, strict=True))) for row in rows)


def accepted_sources(conn: RowReader) -> tuple[str, ...]:
    """`source` (label and directory name) of the records that an operator has accepted, so not only verified."""
    rows = conn.execute("SELECT source FROM records WHERE status != ?", (lifecycle.Status.VERIFIED.value,))
    return tuple(bytes(source).decode("utf-8", "surrogateescape") for (source,) in rows)


def readable(conn: RowReader) -> tuple[lifecycle.Record, ...]:
    """Those records that can still be read of a damaged table, in no order; never raises for damage."""
    found: list[lifecycle.Record] = []
    with contextlib.suppress(*DAMAGED):
        for row in conn.execute(_select(conn)):  # unordered, so without the index, which may be damaged too
            # A row that does not decode is left out; the rows behind it may be sound.
            with contextlib.suppress(Problem):
                found.append(_record(dict(zip(_COLUMNS, row, strict=True))))
    return tuple(found)


def _select(conn: RowReader) -> str:
    """A query for all rows, as they are once the ledger is migrated."""
    present = {name for _, name, *_ in conn.execute("PRAGMA table_info(records)")}
    columns = (f"'{_LATER[one]}'" if one in _LATER and one not in present else one for one in _COLUMNS)
    return f"SELECT {', '.join(columns)} FROM records"  # noqa: S608 - constants


@functools.lru_cache(maxsize=1024)  # thousands of records hold a few lists between them
def _names(text: str) -> tuple[str, ...]:
    """A JSON list as a tuple. Cached."""
    return tuple(json.loads(text))


@functools.lru_cache(maxsize=1024)
def _set(text: str) -> frozenset[str]:
    """A JSON list as a set. Cached."""
    return frozenset(json.loads(text))


def _record(row: dict[str, Any]) -> lifecycle.Record:
    """The record of one row, by the names of the columns.

    Problem ledger_damaged for one that latticed did not write.
    """
    try:
        # Popped one by one: the columns that are left have the names of the fields of Record.
        facts = lifecycle.RecordFacts(
            name=row.pop("name"),
            # Interned, as thousands of records have a few distinct types, versions and publishers.
            type=sys.intern(row.pop("type")),
            version=sys.intern(row.pop("version")),
            publisher=sys.intern(row.pop("publisher")),
            signed=bool(row.pop("signed")),
            capabilities=_names(row.pop("capabilities")),
            identity=row.pop("identity"),
            artifact_sha256=row.pop("artifact_sha256"),
            manifest=row.pop("manifest"),
            interpreter=sys.intern(row.pop("interpreter")),
        )
        row["status"] = lifecycle.Status(row["status"])
        row["source"] = row["source"].decode("utf-8", "surrogateescape")
        row["masked"] = _set(row["masked"])
        row["unasked"] = _set(row.get("unasked", "[]"))  # kept records are JSON of older versions, too
        row["hosts"] = _names(row["hosts"])
        row["permits"] = _names(row["permits"])
        row["terms"] = terms.decode(row["terms"])
        row["forgotten"] = bool(row["forgotten"])
        return lifecycle.Record(facts=facts, **row)
    # An unknown status, other JSON, a value of another type.
    except (ValueError, TypeError) as error:
        raise damaged(f"record {str(row.get('id'))[:128]!r}: expected what latticed writes, found: {error}") from error
