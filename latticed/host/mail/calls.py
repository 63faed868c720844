"""mail.send: a message of a plugin to the operator's relay, and nowhere else (contracts §9).

The operator chooses the relay, so it may have a private address: then it is bound to it, like a bound origin.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from latticed.host.call import Caller, HostError, Params, Served
from latticed.host.mail import message as mail_message
from latticed.host.mail.smtp import Envelope, Relay
from latticed.host.secret.references import REFERENCE
from latticed.kit import logs, text
from latticed.kit.token_bucket import Rate, TokenBuckets
from latticed.model import egress, hosts
from latticed.model.egress import EgressRights
from latticed.model.hostcall import Denial
from latticed.settings import relays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from latticed.host.mail.smtp import Smtp
    from latticed.host.secret.references import PluginSecrets
    from latticed.kit.clock import Clock
    from latticed.settings.shapes import MailSettings as Settings

OWNER: Final = "latticed.mail"
"""The id that the relay's password is bound to; no plugin can have it."""
MAX_IN_FLIGHT: Final = 8
"""Messages of all plugins that are being sent."""
MAX_IN_FLIGHT_OF_PLUGIN: Final = 2
"""Messages of one plugin that are being sent."""
_REASON_CHARACTERS: Final = 240
"""Of an error's text: replies of the relay are in it."""
SEND_S: Final = 9.0
"""Shorter than the deadline of a host call (10 s by default), so that the error names the relay."""

log = logs.get_logger()


class MailSend(Params, frozen=True):
    """Parameters of mail.send."""

    to: str | tuple[str, ...]
    """One address, or a list of them."""
    subject: str
    """One line."""
    body: str
    """Plain text."""


class MailCalls:
    """Serves mail.send. `secrets_of` gives the secrets of a plugin's id, and of OWNER.

    `send_s`: seconds for one message from the look-up of the relay to its acceptance.
    """

    def __init__(
        self,
        smtp: Smtp,
        *,
        settings: Settings,
        clock: Clock,
        secrets_of: Callable[[str], PluginSecrets],
        send_s: float = SEND_S,
    ) -> None:
        self._smtp = smtp
        self.settings = settings
        self._clock = clock
        self._secrets_of = secrets_of
        self._send_s = send_s
        self._buckets = TokenBuckets()
        self._in_flight: list[str] = []

    def calls(self) -> tuple[Served, ...]:
        """The calls with their parameters and handlers, for `host.call.table`."""
        return (Served(method="mail.send", params=MailSend, serve=self._send),)

    async def _send(self, caller: Caller, asked: MailSend) -> dict[str, Any]:
        """Serve mail.send; returns once the relay has accepted the message. HostError, without values of secrets."""
        # All checks that need no connection come first.
        settings = self.settings
        relay, sender = relay_of(settings), _sender(settings)
        to = mail_message.recipients(asked.to, limit=settings.recipients)
        _check_allowed(to, settings.allow)
        # Two sets, so that a plugin cannot use the relay's password in its texts; errors are redacted of both.
        plugin_secrets, relay_secrets = self._secrets_of(caller.plugin_id), self._secrets_of(OWNER)
        try:
            message, message_id = self._compose(caller, asked, plugin_secrets, settings, sender=sender, to=to)
            with self._slot(caller):
                # Last before sending: a message refused for another reason costs none of the hour's tokens.
                self._take_token(caller, settings)
                envelope = Envelope(sender=sender, to=to, message=message)
                await self._smtp.send(relay, envelope, _password(settings, relay_secrets), within_s=self._send_s)
        except HostError as error:
            # Redacted before it is cut: half a value would not be found.
            reason = text.sanitise(relay_secrets.redact(plugin_secrets.redact(error.reason)), _REASON_CHARACTERS)
            if error.code is Denial.SERVICE_UNAVAILABLE:
                log.warning("mail_not_sent", plugin_id=caller.plugin_id, reason=reason)
            # `from None`: the text of the original error is not redacted.
            raise HostError(error.code, reason) from None
        return {"ok": True, "message_id": message_id, "recipients": len(to)}

    def _compose(
        self,
        caller: Caller,
        asked: MailSend,
        secrets: PluginSecrets,
        settings: Settings,
        *,
        sender: str,
        to: tuple[str, ...],
    ) -> tuple[bytes, str]:
        """The message and its Message-ID, with secrets put in; `sender` and `to` have been checked.

        HostError as `message.check_subject`, `message.check_body` and `PluginSecrets.expand`.
        """
        # Before secrets are put in as well: for a wrong text none is opened.
        mail_message.check_subject(asked.subject)
        mail_message.check_body(asked.body, max_bytes=settings.body_bytes)
        subject, body = secrets.expand(asked.subject), secrets.expand(asked.body)
        mail_message.check_subject(subject)  # the value of a secret must not end the header's line either
        mail_message.check_body(body, max_bytes=settings.body_bytes)
        return mail_message.compose(
            sender=sender, to=to, subject=subject, body=body, plugin_id=caller.plugin_id, now_us=self._clock.wall_us()
        )

    def _take_token(self, caller: Caller, settings: Settings) -> None:
        """Count one message of those that the plugin may send in an hour; HostError rate_limited."""
        rate = Rate(per_second=settings.per_hour / 3_600, burst=settings.per_hour)
        wait_s = self._buckets.take(caller.plugin_id, rate, self._clock.monotonic_s())
        if wait_s:
            expected = f"expected at most {settings.per_hour} messages an hour"
            raise HostError(Denial.RATE_LIMITED, f"{expected}, the next one in {wait_s:.0f} s")

    @contextmanager
    def _slot(self, caller: Caller) -> Iterator[None]:
        """Count one message of the plugin while the context is open. HostError rate_limited, or service_unavailable."""
        if self._in_flight.count(caller.plugin_id) >= MAX_IN_FLIGHT_OF_PLUGIN:
            raise HostError(Denial.RATE_LIMITED, f"expected at most {MAX_IN_FLIGHT_OF_PLUGIN} messages at once")
        if len(self._in_flight) >= MAX_IN_FLIGHT:
            raise HostError(Denial.SERVICE_UNAVAILABLE, f"all plugins together have {MAX_IN_FLIGHT} messages under way")
        self._in_flight.append(caller.plugin_id)
        try:
            yield
        finally:
            self._in_flight.remove(caller.plugin_id)


def relay_of(settings: Settings) -> Relay:
    """The relay of the settings, with rights to reach nothing else; HostError service_unavailable when none is set."""
    parsed = relays.parsed(settings.relay)
    if parsed is None:
        raise HostError(
            Denial.SERVICE_UNAVAILABLE,
            "no mail relay is configured: the operator sets relay and sender in [mail]",
            fix="setting=mail.relay",
        )
    scheme, host, port, pinned = parsed
    if pinned or hosts.address_of(host) is not None:
        rights = EgressRights(origins=(egress.origin(settings.relay),))
    else:  # a name without an address is looked up, and must be public
        rights = EgressRights(hosts=(f"{host}:{port}",))
    security = "tls" if scheme == "smtps" else "starttls" if settings.starttls else "none"
    return Relay(host=host, port=port, security=security, rights=rights, username=settings.username)  # type: ignore[arg-type]


def _sender(settings: Settings) -> str:
    """The sender of the settings, in normal form; HostError service_unavailable when missing or no plain address."""
    if not settings.sender:
        raise HostError(Denial.SERVICE_UNAVAILABLE, "no sender is configured: the operator sets sender in [mail]")
    try:
        return mail_message.address(settings.sender, field="sender")
    except HostError as error:
        raise HostError(Denial.SERVICE_UNAVAILABLE, f"the settings, [mail] {error.reason}") from error


def _password(settings: Settings, secrets: PluginSecrets) -> str:
    """The relay's password from the `secrets` of OWNER, empty without a user name.

    HostError service_unavailable, with a text for plugins: it does not name the secret.
    """
    if not settings.username:
        return ""
    if REFERENCE.fullmatch(settings.password) is None:
        raise HostError(Denial.SERVICE_UNAVAILABLE, "expected mail.password to be ${secret:NAME} and nothing else")
    try:
        return secrets.expand(settings.password)
    except HostError as error:
        message = f"the relay's password cannot be had: bind its secret to {OWNER}"
        raise HostError(Denial.SERVICE_UNAVAILABLE, message) from error


def _check_allowed(to: tuple[str, ...], allow: tuple[str, ...]) -> None:
    """HostError egress_blocked for one of `to` not in `allow`, which has addresses and `@domain`s; empty allows any."""
    for one in to:
        local, _, domain = one.rpartition("@")
        # The local part in lower case, too, as most servers compare it (RFC 5321, section 2.4).
        if allow and one not in allow and f"@{domain}" not in allow and f"{local.lower()}@{domain}" not in allow:
            raise HostError(Denial.EGRESS_BLOCKED, f"recipient not allowed: {one} is not in mail.allow")
