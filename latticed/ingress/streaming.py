"""Connections of the service listener: what is passed on may take its time, in both directions."""

from __future__ import annotations

from typing import Final

from latticed.ingress.connection import OutsideConnection

SESSION_COOKIES: Final = ("__Host-latticed-session", "latticed-session")
"""Over https, and over http. A browser takes the prefix only with `Secure`, and `Secure` only over https; over http on
loopback there is neither."""


class Passing(OutsideConnection):
    """Owes a complete request like any other. While it is answered, whoever passes the answer on minds the time."""

    def overdue(self, now_s: float) -> bool:
        """Whether it has kept us waiting; never while it is being answered."""
        return not self.answering and super().overdue(now_s)

    def give_up(self) -> None:
        """Nothing: an answer may go on for hours."""

    def eof_received(self) -> bool:  # type: ignore[override] # asyncio asks: keep it open for writing?
        """Who sends no more has gone: an answer without an end would never be noticed to have no reader."""
        return not self.answering and super().eof_received()
