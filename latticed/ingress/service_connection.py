"""Connections of the service listener: a proxied exchange may last for hours, in both directions."""

from __future__ import annotations

from typing import Final

from latticed.ingress.connection import OutsideConnection

SESSION_COOKIES: Final = ("__Host-latticed-session", "latticed-session")
"""Over https, and over http. A browser takes the prefix only with `Secure`, and `Secure` only over https; over http on
loopback there is neither."""


class ServiceConnection(OutsideConnection):
    """Must send a complete request in time like any other; while it is answered, the proxy's own limits hold."""

    def overdue(self, now_s: float) -> bool:
        """Whether it takes too long; never while it is answered."""
        return not self.answering and super().overdue(now_s)

    def give_up(self) -> None:
        """Nothing: an answer may go on for hours."""

    def eof_received(self) -> bool:  # type: ignore[override] # asyncio asks: keep it open for writing?
        """A half-closed connection counts as closed: an endless answer has no other sign that its client is gone."""
        return not self.answering and super().eof_received()
