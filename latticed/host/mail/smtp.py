"""Sends one message to one relay (RFC 5321), over a socket to an address that the egress guard has allowed.

When the relay refuses one recipient, none gets the message. TLS certificates are verified; there is no fallback to
plaintext where the settings ask for TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Final, Literal

from latticed.host.call import HostError
from latticed.host.egress import authorities
from latticed.kit.value import Value
from latticed.model import hosts
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiosmtplib

    from latticed.host.egress.guard import Guard
    from latticed.model.addresses import Address
    from latticed.model.egress import EgressRights

Security = Literal["tls", "starttls", "none"]

_MAX_TRIED: Final = 4
"""Addresses of the relay that are tried, within the guard's `connect_s` together."""
_QUIT_S: Final = 0.5
"""Seconds for the answer to QUIT; by then the message has been accepted."""
# 552: RFC 1870, section 6.
_TOO_LARGE: Final = frozenset({523, 552})
# No such mailbox, not local, name not allowed (RFC 5321, section 4.2.3).
_UNKNOWN_RECIPIENT: Final = frozenset({550, 551, 553})


class Relay(Value, frozen=True, kw_only=True):
    """The relay and the user name for it (empty: no login); `rights` allow this one target and no other.

    `security`: `tls` from the start, `starttls` demanded, or `none`.
    """

    host: str
    port: int
    security: Security
    rights: EgressRights
    username: str = ""

    @property
    def scheme(self) -> str:
        """The scheme by which the relay can be a bound origin."""
        return "smtps" if self.security == "tls" else "smtp"

    @property
    def shown(self) -> str:
        """Host and port, for messages."""
        return f"{hosts.bracketed(self.host)}:{self.port}"


class Envelope(Value, frozen=True, kw_only=True):
    """One message as bytes, with the sender and recipients of MAIL and RCPT (RFC 5321, section 3.3)."""

    sender: str
    to: tuple[str, ...]
    message: bytes


class Smtp:
    """Sends messages through `guard`, each over its own connection. `tls` defaults to the system's trust."""

    def __init__(self, guard: Guard, *, tls: ssl.SSLContext | None = None) -> None:
        self._guard = guard
        self._tls = tls

    async def send(self, relay: Relay, envelope: Envelope, password: str, *, within_s: float) -> None:
        """Returns once the relay has accepted the message for every recipient; HostError otherwise.

        `password` is used only if the relay has a user name. `deadline_exceeded` after `within_s`: then it is unknown
        whether the relay accepted it.
        """
        import aiosmtplib

        try:
            async with asyncio.timeout(within_s) as limit:
                await self._send(relay, envelope, password, limit)
        except TimeoutError as error:  # aiosmtplib's own included
            timeout = f"the relay did not take the message within {within_s:g} s"
            raise HostError(Denial.DEADLINE_EXCEEDED, timeout) from error
        except aiosmtplib.SMTPResponseException as error:
            raise _of_reply(error) from error
        except ssl.SSLError as error:
            raise _unavailable(f"no TLS connection that can be trusted to {relay.shown}") from error
        except (aiosmtplib.SMTPException, OSError) as error:
            # aiosmtplib wraps errors of the TLS handshake in its own.
            if isinstance(error.__cause__, ssl.SSLError):
                raise _unavailable(f"no TLS connection that can be trusted to {relay.shown}") from error
            raise _unavailable(f"the relay {relay.shown} broke off") from error

    async def _send(self, relay: Relay, envelope: Envelope, password: str, limit: asyncio.Timeout) -> None:
        """The SMTP dialogue: TLS, login, envelope, message. HostError, and errors of aiosmtplib for `send` to map.

        `limit` is the deadline of `send`; it is lifted once the relay has accepted the message.
        """
        # Refused before connecting, so that the password is not sent in clear.
        if relay.username and relay.security == "none":
            raise _unavailable("the relay's user name and password go over TLS only (settings, [mail])")
        import aiosmtplib

        async with self._connected(relay) as client:
            if relay.security == "starttls":
                await client.ehlo()
                # Whoever controls the network can remove STARTTLS from the answer: no fallback to plaintext.
                if not client.supports_extension("starttls"):
                    raise _unavailable(f"the relay {relay.shown} offers no STARTTLS, which mail.starttls demands")
                await client.starttls()
            # Again after STARTTLS: what the relay said before TLS does not count (RFC 3207, section 4.2).
            await client.ehlo()
            if relay.username:
                await _log_in(client, relay, password)
            # The relay's limit first: without it the whole message would be sent, only to be refused.
            size_limit = client.esmtp_extensions.get("size", "")
            # RFC 1870: 0, or no number, means no limit. Cut to 12 digits, as int() refuses very long texts.
            if size_limit.isascii() and size_limit.isdigit() and 0 < int(size_limit[:12]) < len(envelope.message):
                raise HostError(Denial.TOO_LARGE, f"the relay takes messages of at most {size_limit[:12]} bytes")
            await client.mail(envelope.sender)
            # All before DATA: one refusal raises, and then the message goes to none of them.
            for one in envelope.to:
                await client.rcpt(one)
            await client.data(envelope.message)
            limit.reschedule(None)  # the relay has accepted the message: a failing QUIT is no error
            with contextlib.suppress(aiosmtplib.SMTPException, OSError):
                await client.execute_command(b"QUIT", timeout=_QUIT_S)

    @contextlib.asynccontextmanager
    async def _connected(self, relay: Relay) -> AsyncIterator[aiosmtplib.SMTP]:
        """An SMTP session with the relay after its greeting, over TLS for smtps; closed with the block.

        HostError service_unavailable, errors of aiosmtplib, ssl.SSLError.
        """
        import aiosmtplib

        tls = None if relay.security == "none" else self._tls or await authorities.trusted()
        # A socket of ours: aiosmtplib would look the name up itself, past the guard.
        sock = await self._connect(relay)
        client = aiosmtplib.SMTP(
            hostname=relay.host,
            sock=sock,
            use_tls=relay.security == "tls",
            start_tls=False,
            tls_context=tls,
            local_hostname=_ehlo_name(sock),
            # aiosmtplib has a timeout for each command; `send` has one deadline for all.
            timeout=None,
        )
        try:
            await client.connect()
            yield client
        finally:
            # Kept before `close`, which forgets it.
            transport = client.transport
            client.close()
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()  # without the TLS shutdown, which a relay could delay; closes the socket

    async def _connect(self, relay: Relay) -> socket.socket:
        """A connection to the first address of the relay that answers; the guard has checked them."""
        found = (await self._guard.resolve(relay.host, relay.port, relay.rights, scheme=relay.scheme))[:_MAX_TRIED]
        for address in found:
            try:
                async with asyncio.timeout(self._guard.connect_s / len(found)):
                    return await _open(address, relay.port)
            except (TimeoutError, OSError):  # another address may answer
                continue
        raise _unavailable(f"cannot connect to the relay {relay.shown}")


async def _open(address: Address, port: int) -> socket.socket:
    """A connected, non-blocking socket; OSError. `address` has been checked by the guard."""
    sock = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
    # Also when cancelled at the timeout: else the descriptor would be left to the garbage collector.
    except BaseException:
        sock.close()
        raise
    return sock


async def _log_in(client: aiosmtplib.SMTP, relay: Relay, password: str) -> None:
    """Log in (AUTH). HostError service_unavailable without the relay's words, which may repeat what was sent."""
    import aiosmtplib

    try:
        await client.login(relay.username, password)
    except aiosmtplib.SMTPAuthenticationError as error:
        raise _unavailable(f"the relay does not accept its user name and password ({error.code})") from error
    # Before SMTPException, its base class: `send` says more about these two.
    except aiosmtplib.SMTPResponseException:
        raise
    except aiosmtplib.SMTPServerDisconnected:
        raise
    except aiosmtplib.SMTPException as error:
        raise _unavailable("the relay offers no way to log in that is known here") from error


def _of_reply(error: aiosmtplib.SMTPResponseException) -> HostError:
    """The HostError for a reply of the relay (RFC 5321 section 4.2)."""
    import aiosmtplib

    # The relay's own words: plugin and operator need them to see why.
    reply = f"{error.code} {error.message}"  # not cut: the caller redacts secrets in it first
    if error.code in _TOO_LARGE:
        return HostError(Denial.TOO_LARGE, f"the relay does not take a message of this size ({reply})")
    if 400 <= error.code < 500:
        return _unavailable(f"the relay takes no mail now, try again later ({reply})")
    if isinstance(error, aiosmtplib.SMTPRecipientRefused) and error.code in _UNKNOWN_RECIPIENT:
        return HostError(Denial.BAD_PARAMS, f"to: the relay does not deliver to {error.recipient} ({reply})")
    return _unavailable(f"the relay refuses the message ({reply})")


def _ehlo_name(sock: socket.socket) -> str:
    """Our name in EHLO: the address literal (RFC 5321 section 4.1.4), for which no name is looked up."""
    address = sock.getsockname()[0]
    return f"[IPv6:{address}]" if sock.family == socket.AF_INET6 else f"[{address}]"


def _unavailable(message: str) -> HostError:
    return HostError(Denial.SERVICE_UNAVAILABLE, message)
