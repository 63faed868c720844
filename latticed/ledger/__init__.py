"""Sole owner of SQLite: records, kv, revocations and the hash-chained audit; beside it the lock, host key and floors.

One thread writes; a transaction is one synchronous function handed to it. This room must never decide anything about
plugins, never act as a trust anchor (what it holds is verified again by those who use it), and never let another room
see apsw: others name `ledger.Connection` and `ledger.Transaction`.
"""

from latticed.ledger.connection import Connection, RowReader
from latticed.ledger.ledger import Ledger, open_ledger
from latticed.ledger.transaction import Transaction

__all__ = ["Connection", "Ledger", "RowReader", "Transaction", "open_ledger"]
