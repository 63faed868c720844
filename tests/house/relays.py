"""SMTP relays of the tests: aiosmtpd on loopback, with and without TLS, that records the messages."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import ssl
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.message import EmailMessage

from aiosmtpd.smtp import SMTP, AuthResult

from tests.house import processes


@dataclass
class Taken:
    """One message as it arrived."""

    sender: str
    to: list[str]
    content: bytes
    tls: bool
    user: str | None
    helo: str

    @property
    def message(self) -> EmailMessage:
        return email.message_from_bytes(self.content, policy=email.policy.default)

    @property
    def text(self) -> str:
        """The body, with the line ends of this host."""
        return self.message.get_content().replace("\r\n", "\n")


@dataclass
class Relay:
    """A handler of aiosmtpd. `replies`: what it says at a command instead of taking it; `hold` lets DATA wait."""

    port: int = 0
    taken: list[Taken] = field(default_factory=list)
    replies: dict[str, str] = field(default_factory=dict)
    hold: asyncio.Event | None = None
    sessions: int = 0
    closed: int = 0

    async def handle_EHLO(self, _server, session, _envelope, hostname, responses):  # noqa: N802 - aiosmtpd's name
        session.host_name = hostname
        return responses

    async def handle_MAIL(self, _server, _session, envelope, address, _options):  # noqa: N802
        if said := self.replies.get("MAIL"):
            return said
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(self, _server, _session, envelope, address, _options):  # noqa: N802
        if said := self.replies.get(f"RCPT {address}"):
            return said
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):  # noqa: N802
        if self.hold is not None:
            await self.hold.wait()
        if said := self.replies.get("DATA"):
            return said
        user = getattr(session.auth_data, "login", None)
        self.taken.append(
            Taken(
                sender=envelope.mail_from,
                to=list(envelope.rcpt_tos),
                content=envelope.content,
                tls=server.transport.get_extra_info("ssl_object") is not None,
                user=user.decode() if user else None,
                helo=session.host_name,
            )
        )
        return "250 taken"


class _Session(SMTP):
    """Counts its ends, so that a test can wait for them."""

    def connection_made(self, transport):
        if self.transport is None:
            self.event_handler.sessions += 1
        super().connection_made(transport)

    def connection_lost(self, error):
        self.event_handler.closed += 1
        super().connection_lost(error)


@contextlib.asynccontextmanager
async def serving(
    *,
    tls: ssl.SSLContext | None = None,
    starttls: ssl.SSLContext | None = None,
    login: tuple[str, str] | None = None,
    size: int = 1 << 20,
) -> AsyncIterator[Relay]:
    """The relay: `tls` from the first byte, `starttls` offered (and demanded), `login` the one that it lets in."""
    relay = Relay()
    loop = asyncio.get_running_loop()

    def authenticator(_server, _session, _envelope, _mechanism, data):
        fine = login is not None and (data.login.decode(), data.password.decode()) == login
        return AuthResult(success=fine, handled=False, auth_data=data)

    def session() -> SMTP:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a login without TLS: it does not count TLS from the start
            return _Session(
                relay,
                data_size_limit=size,
                hostname="relay.test",
                tls_context=starttls,
                require_starttls=starttls is not None,
                authenticator=authenticator if login else None,
                auth_required=login is not None,
                auth_require_tls=starttls is not None,
                loop=loop,
            )

    server = await loop.create_server(session, "127.0.0.1", 0, ssl=tls)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
        async with asyncio.timeout(processes.PATIENCE_S):
            while relay.closed < relay.sessions:  # noqa: ASYNC110 - until each has ended
                await asyncio.sleep(0.002)
