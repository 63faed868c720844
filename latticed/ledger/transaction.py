"""Jobs of the writer's thread, and the `Transaction` that a change gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latticed.kit.value import Changing

if TYPE_CHECKING:
    from collections.abc import Callable

    import apsw

    from latticed.ledger.chain import Chains
    from latticed.ledger.connection import Connection
    from latticed.model.audit import AllowedCall, Event


class Transaction:
    """What a change may do: run statements and append audit events. Not to be kept after the change returns.

    Belongs to the writer's thread.
    """

    __slots__ = ("_connection", "chains")

    def __init__(self, connection: Connection, chains: Chains) -> None:
        self._connection = connection
        self.chains = chains

    def execute(self, statements: str, bindings: tuple[Any, ...] = (), /) -> apsw.Cursor:
        """Run `statements` with `bindings` for their `?`; returns apsw's cursor.

        An apsw.Error that the change lets through undoes it, a storage error its whole batch.
        """
        self.chains.flush()  # so that a change can read what it appended
        return self._connection.execute(statements, bindings)

    def changes(self) -> int:
        """How many rows the last statement inserted, updated or deleted."""
        return self._connection.changes()

    def append_audit(self, event: Event) -> int:
        """Chain `event` within this transaction and return its seq; it is rolled back with the transaction."""
        return self.chains.append(event)


class WriteJob(Changing):
    """One change, or one event to append (which needs no savepoint: it fails before it changes anything).

    The writer's thread sets `result` or `error`; the event loop then calls `done(result, error)`, one of them None.
    `durable`: fsynced. `essential`: written from the reserve on a full disk.
    """

    change: Callable[[Transaction], Any] | Event | AllowedCall
    done: Callable[[Any, BaseException | None], None]
    durable: bool = False
    essential: bool = False
    result: Any = None
    error: BaseException | None = None
