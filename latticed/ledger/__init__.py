"""Sole owner of SQLite: records, kv, revocations and the hash-chained audit; beside it the lock, host key and floors.

One thread writes; a transaction is one synchronous function that it runs. The package must not decide anything about
plugins, must not be a trust anchor (readers verify again what they take from it), and never shows apsw to other
packages: they name `ledger.Connection` and `ledger.Transaction`.
"""

from latticed.ledger.connection import Connection, RowReader
from latticed.ledger.ledger import Ledger, open_ledger
from latticed.ledger.transaction import Transaction

__all__ = ["Connection", "Ledger", "RowReader", "Transaction", "open_ledger"]
