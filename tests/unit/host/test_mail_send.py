"""mail.send to a real SMTP server: verified TLS, all recipients or none, the error code of each refusal."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from dataclasses import dataclass, replace

import msgspec
import pytest

from latticed.host.call import Caller, HostError
from latticed.host.egress.guard import Guard
from latticed.host.mail import smtp
from latticed.host.mail.calls import MAX_IN_FLIGHT, MAX_IN_FLIGHT_OF_PLUGIN, OWNER, MailCalls
from latticed.host.mail.smtp import Smtp
from latticed.settings import shapes
from tests.house import plugin_secrets, ports, processes, relays
from tests.house.clocks import ManualClock
from tests.house.origins import Authority

CALLER = Caller(plugin_id="acme.demo")
USER, PASSWORD = "latticed", "p4ssword-of-the-relay"
SECRETS = {OWNER: {"SMTP": PASSWORD}, CALLER.plugin_id: {"CODE": "c0de-of-the-plugin", "LINES": "a\r\nBcc: x@y.org"}}
DEADLINE_S = processes.PATIENCE_S


@pytest.fixture(scope="module")
def authority():
    return Authority()


@dataclass
class Bench:
    relay: relays.Relay
    mail: MailCalls
    clock: ManualClock
    settings: shapes.MailSettings

    async def send(self, to="ops@example.org", subject="Hello", body="text", caller=CALLER):
        (served,) = self.mail.calls()
        asked = msgspec.convert({"to": to, "subject": subject, "body": body}, served.params, strict=True)
        return await served.answer(caller, asked)

    async def refused(self, code, *args, **fields):
        with pytest.raises(HostError) as caught:
            await self.send(*args, **fields)
        assert caught.value.code == code, caught.value
        assert not [one for values in SECRETS.values() for one in values.values() if one in str(caught.value)]
        return caught.value.reason


@contextlib.asynccontextmanager
async def bench(relay, *, trust=None, host="mail.lan", scheme="smtp", send_s=9.0, **settings):
    wanted = {"relay": f"{scheme}://{host}:{relay.port}=127.0.0.1", "sender": "host@example.org", **settings}
    it = Bench(relay, None, ManualClock(), shapes.MailSettings(**wanted))
    it.mail = MailCalls(
        Smtp(Guard(), tls=trust),
        settings=it.settings,
        clock=it.clock,
        secrets_of=plugin_secrets.secrets_of(SECRETS),
        send_s=send_s,
    )
    yield it


@contextlib.asynccontextmanager
async def plain(**settings):
    async with relays.serving() as relay, bench(relay, starttls=False, **settings) as it:
        yield it


@pytest.fixture
async def it():
    async with plain() as opened:
        yield opened


# Delivery, TLS and login.


async def test_mail_is_delivered_unchanged(it):
    """Envelope, headers, dot-stuffed lines; without TLS, as `starttls = false` allows."""
    result = await it.send(["a@example.org", "b@example.org"], "Grüße", "first\n.dot\n..\nüber\n")
    (taken,) = it.relay.taken
    assert (taken.sender, taken.to, taken.tls) == ("host@example.org", ["a@example.org", "b@example.org"], False)
    assert taken.message["Subject"] == "Grüße"
    assert taken.text == "first\n.dot\n..\nüber\n"
    assert result == {"ok": True, "message_id": taken.message["Message-ID"], "recipients": 2}
    assert taken.helo == "[127.0.0.1]", "our address, and no name that is looked up"


@pytest.mark.parametrize("kind", ["tls", "starttls"])
async def test_login_happens_over_tls_with_bound_password(authority, kind):
    """smtps and STARTTLS; the operator bound the secret to the mail service."""
    context = authority.server("mail.lan")
    async with relays.serving(**{kind: context}, login=(USER, PASSWORD)) as relay:
        scheme = {"tls": "smtps", "starttls": "smtp"}[kind]
        login = {"username": USER, "password": "${secret:SMTP}"}
        async with bench(relay, scheme=scheme, trust=authority.trust(), **login) as it:
            await it.send()
            (taken,) = relay.taken
            assert (taken.tls, taken.user) == (True, USER)


@pytest.mark.parametrize("kind", ["tls", "starttls"])
async def test_relay_with_unverified_certificate_is_refused(authority, kind):
    """Wrong name or unknown authority: no login and no message is sent."""
    scheme = {"tls": "smtps", "starttls": "smtp"}[kind]
    for names, trust in ((("other.lan",), authority.trust()), (("mail.lan",), Authority().trust())):
        async with relays.serving(**{kind: authority.server(*names)}, login=(USER, PASSWORD)) as relay:
            login = {"username": USER, "password": "${secret:SMTP}"}
            async with bench(relay, scheme=scheme, trust=trust, **login) as it:
                assert "no TLS connection that can be trusted" in await it.refused("service_unavailable")
                assert relay.taken == []


async def test_relay_without_starttls_gets_no_message_and_no_password(authority):
    """STARTTLS is required unless the settings say otherwise; a password is sent over TLS only."""
    async with relays.serving() as relay, bench(relay, trust=authority.trust()) as it:
        assert "offers no STARTTLS" in await it.refused("service_unavailable")
        it.mail.settings = replace(it.mail.settings, starttls=False, username=USER, password="${secret:SMTP}")
        assert "over TLS only" in await it.refused("service_unavailable")
        assert relay.taken == []


async def test_bytes_injected_before_starttls_are_ignored(authority):
    """Replies that were sent together with the one to STARTTLS must be discarded (RFC 3207, section 6)."""
    context, heard = authority.server("mail.lan"), []

    async def serve(reader, writer):
        writer.write(b"220 relay\r\n")
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            while line := await reader.readuntil(b"\r\n"):
                heard.append(line)
                if line.startswith(b"STARTTLS"):
                    writer.write(b"220 go\r\n250-relay\r\n250 AUTH PLAIN\r\n")
                    await writer.start_tls(context)
                else:
                    is_encrypted = writer.get_extra_info("ssl_object") is not None
                    writer.write(b"250 relay\r\n" if is_encrypted else b"250-relay\r\n250 STARTTLS\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        relay = relays.Relay(port=server.sockets[0].getsockname()[1])
        login = {"username": USER, "password": "${secret:SMTP}"}
        async with bench(relay, trust=authority.trust(), **login) as it:
            await it.refused("service_unavailable")
    assert [line.split()[0] for line in heard[:2]] == [b"EHLO", b"STARTTLS"]
    assert not [line for line in heard if line.startswith((b"AUTH", b"MAIL"))]


async def test_failed_login_to_relay_is_service_unavailable(authority, monkeypatch):
    """The plugin gets the reply code only; the socket is closed without waiting for a TLS shutdown."""
    opened = []
    dialled = smtp._open

    async def kept(*where):
        opened.append(await dialled(*where))
        return opened[-1]

    monkeypatch.setattr(smtp, "_open", kept)
    async with relays.serving(starttls=authority.server("mail.lan"), login=(USER, "another")) as relay:
        login = {"username": USER, "password": "${secret:SMTP}"}
        async with bench(relay, trust=authority.trust(), **login) as it:
            assert "does not accept its user name and password (535)" in await it.refused("service_unavailable")
            await asyncio.sleep(0)
            assert [sock.fileno() for sock in opened] == [-1], "closed without a round of good-byes"


async def test_password_must_be_a_bound_secret_reference(authority):
    """A plain password in the settings is not used and does not appear in the error."""
    async with (
        relays.serving(starttls=authority.server("mail.lan"), login=(USER, PASSWORD)) as relay,
        bench(relay, trust=authority.trust(), username=USER, password=PASSWORD) as it,
    ):
        assert "expected mail.password to be" in await it.refused("service_unavailable")
        it.mail.settings = replace(it.mail.settings, password="${secret:NONE}")
        assert f"bind its secret to {OWNER}" in await it.refused("service_unavailable")
        assert relay.sessions == 0


# Replies of the relay.


@pytest.mark.parametrize(
    ("at", "said", "code", "words"),
    [
        ("MAIL", "451 busy", "service_unavailable", "try again later (451 busy)"),
        ("MAIL", "550 no such sender", "service_unavailable", "refuses the message (550"),
        ("MAIL", "552 too big", "too_large", "552"),
        ("RCPT b@example.org", "550 unknown", "bad_params", "does not deliver to b@example.org (550 unknown)"),
        ("RCPT b@example.org", "450 greylisted", "service_unavailable", "try again later (450"),
        ("RCPT b@example.org", "554 no relaying", "service_unavailable", "(554 no relaying)"),
        ("DATA", "554 looks like spam", "service_unavailable", "(554 looks like spam)"),
        ("DATA", "421 going down", "service_unavailable", "try again later (421"),
    ],
)
async def test_each_smtp_error_reply_gives_its_error_code(it, at, said, code, words):
    """When one recipient is refused, none gets the message; the next message is sent as usual."""
    it.relay.replies[at] = said
    assert words in await it.refused(code, ["a@example.org", "b@example.org"])
    assert it.relay.taken == []
    it.relay.replies.clear()
    assert (await it.send())["ok"]


async def test_smtp_reply_text_is_escaped_cut_and_redacted(it):
    """Control characters are escaped; secrets are redacted before the text is cut, so no part of one is left."""
    it.relay.replies["DATA"] = "554 \x1b[2J c0de-of-the-plugin " + "x" * 300
    words = await it.refused("service_unavailable", body="code: ${secret:CODE}")
    assert "\\x1b[2J ${secret:CODE}" in words
    assert len(words) < 250
    for before in range(172, 192, 3):  # around the cut
        it.relay.replies["DATA"] = "554 " + "x" * before + "c0de-of-the-plugin"
        assert "c0de" not in await it.refused("service_unavailable", body="code: ${secret:CODE}")


async def test_message_over_size_limit_of_relay_is_not_sent():
    """The limit that the relay announces by SIZE (RFC 1870)."""
    async with relays.serving(size=2_000) as relay, bench(relay, starttls=False) as it:
        assert "at most 2000 bytes" in await it.refused("too_large", body="x" * 3_000)
        assert relay.taken == []


@pytest.mark.parametrize(
    ("greeting", "code"),
    [
        (b"554 no\r\n", "service_unavailable"),
        (b"421 later\r\n", "service_unavailable"),
        (b"", "service_unavailable"),
        (b"hello\r\n", "service_unavailable"),
        (b"\xff" * 5_000 + b"\r\n", "service_unavailable"),
        (b"220 x" * 100_000, "service_unavailable"),
    ],
)
async def test_bad_greeting_of_relay_is_service_unavailable(greeting, code):
    """The relay refuses, closes the connection, speaks another protocol, or sends lines without an end."""

    async def serve(_reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(greeting)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        relay = relays.Relay(port=server.sockets[0].getsockname()[1])
        async with bench(relay, starttls=False) as it:
            await it.refused(code)


async def test_hanging_relay_is_disconnected_at_deadline():
    """deadline_exceeded does not say whether the message was delivered."""
    async with relays.serving() as relay, bench(relay, starttls=False, send_s=0.3) as it:
        relay.hold = asyncio.Event()
        assert "within 0.3 s" in await it.refused("deadline_exceeded")
        async with asyncio.timeout(DEADLINE_S):
            while relay.closed < relay.sessions:  # noqa: ASYNC110 - until it has ended
                await asyncio.sleep(0.002)


async def test_refused_connection_to_relay_is_service_unavailable():
    async with bench(relays.Relay(port=ports.free()), starttls=False) as it:
        assert "cannot connect to the relay mail.lan" in await it.refused("service_unavailable")


# Settings, recipients and limits.


async def test_unset_relay_or_sender_is_service_unavailable(it):
    """The error names the setting."""
    it.mail.settings = shapes.MailSettings()
    assert "the operator sets relay and sender" in await it.refused("service_unavailable")
    it.mail.settings = shapes.MailSettings(relay=f"smtp://127.0.0.1:{it.relay.port}")
    assert "no sender" in await it.refused("service_unavailable")
    it.mail.settings = replace(it.mail.settings, sender="Host <host@example.org>")
    assert "[mail] sender" in await it.refused("service_unavailable")
    assert it.relay.sessions == 0


async def test_relay_name_without_pinned_address_must_be_public(it):
    """Such a name is resolved and judged like any other target; a private relay needs `=address`."""
    for host in ("localhost", "mail.lan.localhost", "mail"):
        it.mail.settings = replace(it.mail.settings, relay=f"smtp://{host}:{it.relay.port}")
        assert "host not public" in await it.refused("egress_blocked")
    it.mail.settings = replace(it.mail.settings, relay=f"smtp://127.0.0.1:{it.relay.port}")
    assert (await it.send())["ok"], "an address in numbers is its own"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"to": []}, "bad_params"),
        ({"to": ["x@example.org"] * 11}, "bad_params"),
        ({"to": "Ops <ops@example.org>"}, "bad_params"),
        ({"to": "ops@example.org\r\nRCPT TO:<x@y.org>"}, "bad_params"),
        ({"subject": "a\r\nBcc: x@example.org"}, "bad_params"),
        ({"subject": "${secret:LINES}"}, "bad_params"),
        ({"body": "${secret:NONE}"}, "bad_params"),
        ({"subject": "x" * 251}, "too_large"),
        ({"body": "x" * (128 << 10) + "x"}, "too_large"),
        ({"body": "${secret:CODE}" * 9_000}, "too_large"),
    ],
)
async def test_bad_mail_is_refused_before_connecting(it, fields, code):
    """Header injection, too many or too long fields, unbound secrets."""
    await it.refused(code, **fields)
    assert it.relay.sessions == 0


async def test_secrets_in_mail_subject_and_body_are_expanded(it):
    """The plugin's own bindings only: the relay's password is not one."""
    await it.send(subject="Code ${secret:CODE}", body="It is ${secret:CODE}.")
    (taken,) = it.relay.taken
    assert taken.message["Subject"] == "Code c0de-of-the-plugin"
    assert taken.text == "It is c0de-of-the-plugin.\n"
    await it.refused("bad_params", body="${secret:SMTP}")


async def test_recipients_outside_allow_list_are_refused(it):
    """`allow` has addresses and domains; empty allows any recipient."""
    it.mail.settings = replace(it.mail.settings, allow=("boss@example.net", "@example.org"))
    for to in ("ops@example.org", "boss@example.net", "Boss@EXAMPLE.net"):
        assert (await it.send(to))["ok"]
    for to in ("x@example.net", "x@sub.example.org", ["ops@example.org", "x@other.org"]):
        assert "recipient not allowed" in await it.refused("egress_blocked", to)
    assert len(it.relay.taken) == 3


async def test_messages_over_hourly_limit_of_plugin_are_refused():
    """Messages that are refused before connecting do not count."""
    async with plain(per_hour=3) as it:
        await it.refused("bad_params", to=[])
        for _ in range(3):
            await it.send()
        assert "at most 3 messages an hour, the next one in 1200 s" in await it.refused("rate_limited")
        assert (await it.send(caller=Caller(plugin_id="acme.other")))["ok"]
        it.clock.advance(1_200)
        await it.send()
        await it.refused("rate_limited")


async def test_message_over_concurrency_limit_is_refused(it):
    """There is a limit per plugin and one in total; each ended message frees its slot."""
    it.relay.hold = asyncio.Event()
    tasks = []
    for number in range(MAX_IN_FLIGHT // MAX_IN_FLIGHT_OF_PLUGIN):
        caller = Caller(plugin_id=f"acme.p{number}")
        tasks += [asyncio.create_task(it.send(caller=caller)) for _ in range(MAX_IN_FLIGHT_OF_PLUGIN)]
    async with asyncio.timeout(DEADLINE_S):
        while it.relay.sessions < MAX_IN_FLIGHT:  # noqa: ASYNC110 - until all are under way
            await asyncio.sleep(0.002)
    await it.refused("rate_limited", caller=Caller(plugin_id="acme.p0"))
    await it.refused("service_unavailable")
    it.relay.hold.set()
    assert all(one["ok"] for one in await asyncio.gather(*tasks))
    assert (await it.send())["ok"]


async def test_mail_body_cannot_inject_smtp_commands(it):
    """A line with a single dot does not end the message."""
    body = "a\r\n.\r\nMAIL FROM:<x@y.org>\r\n"
    await it.send(body=body)
    await it.send(body=base64.b64encode(body.encode()).decode())
    assert len(it.relay.taken) == 2
    assert it.relay.taken[0].text == "a\n.\nMAIL FROM:<x@y.org>\n"


async def test_relay_hanging_at_quit_does_not_fail_the_call(monkeypatch):
    """The relay has accepted the message by then, so the deadline while waiting for 221 is no error."""
    monkeypatch.setattr("latticed.host.mail.smtp._QUIT_S", 2.2)
    taken = asyncio.Event()

    async def serve(reader, writer):
        writer.write(b"220 relay\r\n")
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while line := await reader.readuntil(b"\r\n"):
                if line.startswith(b"QUIT"):
                    taken.set()
                    await reader.read()
                elif line.startswith(b"DATA"):
                    writer.write(b"354 go\r\n")
                    await reader.readuntil(b"\r\n.\r\n")
                    writer.write(b"250 taken\r\n")
                else:
                    writer.write(b"250 fine\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        relay = relays.Relay(port=server.sockets[0].getsockname()[1])
        async with bench(relay, starttls=False, send_s=2.0) as it:
            assert (await it.send())["ok"]
            assert taken.is_set()


async def test_cancelled_mail_call_sends_nothing(authority):
    """It is cancelled while it waits for the greeting, for TLS, or for the message to be accepted."""
    async with relays.serving(starttls=authority.server("mail.lan")) as relay:
        relay.hold = asyncio.Event()
        for pause_s in (0.0, 0.001, 0.005, 0.02, 0.2):
            async with bench(relay, trust=authority.trust()) as it:
                task = asyncio.create_task(it.send())
                await asyncio.sleep(pause_s)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        assert relay.taken == []
