"""Connections of the listener of proxied upstreams: a proxied exchange may last for hours, in both directions."""

from __future__ import annotations

from typing import Final

from latticed.ingress.connection import OutsideConnection

SESSION_COOKIES: Final = ("__Host-latticed-session", "latticed-session")
"""Over https, and over http. A browser takes the prefix only with `Secure`, and `Secure` only over https; over http on
loopback there is neither."""


class UpstreamConnection(OutsideConnection):
    """A connection of the service listener, with the usual deadlines for sending a request.

    While it is answered, only the proxy's limits apply (`ProxyLimits`).
    """

    def overdue(self, now_s: float) -> bool:
        """Whether a deadline has passed; never while a request is answered."""
        return not self.answering and super().overdue(now_s)

    def give_up(self) -> None:
        """Do nothing: an answer may take hours."""

    def eof_received(self) -> bool:  # type: ignore[override] # asyncio asks: keep it open for writing?
        """Close a half-closed connection: with an endless answer there may be no other sign that the client is gone."""
        return not self.answering and super().eof_received()
