"""Checks whether the database is damaged: partly or wholly at every open, the rest while the daemon runs.

SQLite's `quick_check` reads the whole file: 1.4 s for a GB that is cached, 10 s and more from a slow disk. So at open
a file up to `WHOLE_BYTES` is checked wholly, and of a larger one what decides about plugins (records, revocations, the
heads of the chain); the header, and a file shorter than it says, are found in either case. The rest of a large file,
audit and values, is checked while the daemon runs; what is found is noted beside the ledger, and a ledger with such a
note is not opened again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.kit import files

if TYPE_CHECKING:
    from pathlib import Path

    import apsw

WHOLE_BYTES: Final = 256 << 20
"""Largest file, in bytes, that is checked wholly at open: 0.4 s."""
NOTE: Final = "ledger.damaged"
"""Name of the file beside the ledger that makes the next start refuse it."""

_DECISIVE: Final = ("records", "revocations", "heads", "checkpoints", "call_heads", "call_checkpoints", "kv_usage")
"""Tables that decide about plugins: they are checked at every open, however large the file is."""
_WAL_HEADER: Final = 32
"""Bytes of the header (sqlite.org/fileformat2.html, section 4.1)."""
_WAL_MAGIC: Final = {0x377F0682: "little", 0x377F0683: "big"}
"""The first four bytes, and the byte order in which the checksums are computed."""


def partial(connection: apsw.Connection) -> bool:
    """Whether `check` leaves out a part of this file unless told `whole`: it is larger than `WHOLE_BYTES`."""
    return int(connection.pragma("page_count")) * int(connection.pragma("page_size")) > WHOLE_BYTES


def check(connection: apsw.Connection, *, whole: bool = False) -> str:
    """What is wrong with the database, in SQLite's words; empty when nothing was found.

    apsw.Error when it cannot be read.

    Without `whole` a file beyond `WHOLE_BYTES` is checked in part (`partial`).
    """
    connection.pragma("schema_version")  # reads the header and compares it with the file's size
    if whole or not partial(connection):
        return _found(connection, "")
    # A ledger of an older version lacks some of these tables: it is checked before it is migrated.
    known = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    return next((found for table in _DECISIVE if table in known and (found := _found(connection, table))), "")


def in_wal(database: Path) -> str:
    """What is wrong with the beginning of the WAL; SQLite would take a broken one for an empty one, and forget it.

    Zeros are what a power cut leaves of a WAL that was never written. Format: SQLite, "WAL-mode File Format".
    """
    try:
        with open(f"{database}-wal", "rb") as file:
            header = file.read(_WAL_HEADER)
    # No WAL: the last connection was closed, which checkpoints and removes it.
    except FileNotFoundError:
        return ""
    # An unreadable WAL is a fault, unlike a missing one: it may hold the newest commits.
    except OSError as error:
        return f"the WAL cannot be read: {error.strerror}"
    if not any(header):
        return ""
    order = _WAL_MAGIC.get(int.from_bytes(header[:4], "big"))
    if order is None or len(header) < _WAL_HEADER:
        return "the WAL does not begin like one"
    first = second = 0
    # The checksum covers the first 24 bytes as pairs of 32-bit words, in the order that the magic number says.
    for at in range(0, 24, 8):
        first = first + int.from_bytes(header[at : at + 4], order) + second & 0xFFFFFFFF  # type: ignore[arg-type]
        second = second + int.from_bytes(header[at + 4 : at + 8], order) + first & 0xFFFFFFFF  # type: ignore[arg-type]
    if (first, second) != (int.from_bytes(header[24:28], "big"), int.from_bytes(header[28:32], "big")):
        return "the checksum of the WAL's header does not fit"
    return ""


def note(directory: Path, finding: str) -> None:
    """Have the next start refuse this ledger, because of `finding` (its first 1,000 bytes are kept); raises OSError."""
    files.replace(directory / NOTE, finding.encode("utf-8", "replace")[:1_000] + b"\n", mode=0o600)


def noted(directory: Path) -> str:
    """The finding that an earlier check noted; empty when there is none."""
    try:
        # An empty note counts as well: that the file exists is what refuses the ledger.
        return files.read_at_most(directory / NOTE, 1 << 16).decode("utf-8", "replace").strip() or "damage"
    except FileNotFoundError:
        return ""
    # Refused as well: what the note says of the ledger is unknown.
    except (OSError, ValueError) as error:
        return f"a note of damage that cannot be read ({error})"


def _found(connection: apsw.Connection, table: str) -> str:
    """The first finding of `quick_check`, on one line; of one table, or of the whole file when that is empty."""
    # The number bounds the findings: the first one is enough.
    pragma = f"PRAGMA quick_check({table})" if table else "PRAGMA quick_check(1)"
    first = connection.execute(pragma).fetchone()
    return "" if first is None or first[0] == "ok" else " ".join(str(first[0]).split())
