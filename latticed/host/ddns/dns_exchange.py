"""Signed questions and answers of DNS over one connection (RFC 1035 section 4.2.2, RFC 8945)."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import TYPE_CHECKING, Final

from latticed.host.ddns import outcome

if TYPE_CHECKING:
    import dns.message
    import dns.tsig

EXCHANGE_S: Final = 10.0
_LENGTH_BYTES: Final = 2
_HEADER_BYTES: Final = 12


def key(name: str, value: str, algorithm: str) -> dns.tsig.Key:
    """A TSIG key from base64; ProviderRefused when it is malformed."""
    import dns.name
    import dns.tsig

    try:
        secret = base64.b64decode(value.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise outcome.denied("bad_key", "expected the secret to be a TSIG key in base64") from error
    if not secret:
        raise outcome.denied("bad_key", "expected the secret to be a TSIG key in base64, found none")
    return dns.tsig.Key(dns.name.from_text(name), secret, algorithm)


class Exchange:
    """One connection to a server, with one key; each exchange takes at most EXCHANGE_S."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, signer: dns.tsig.Key) -> None:
        self._reader = reader
        self._writer = writer
        self._key = signer

    async def ask(self, question: dns.message.Message) -> dns.message.Message:
        """The answer, its signature verified; ProviderRefused for one that is not signed or malformed."""
        question.use_tsig(self._key)
        wire = question.to_wire()
        try:
            async with asyncio.timeout(EXCHANGE_S):
                self._writer.write(len(wire).to_bytes(_LENGTH_BYTES, "big") + wire)
                await self._writer.drain()
                size = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "big")
                found = await self._reader.readexactly(size)
        except TimeoutError as error:
            raise outcome.transient("no_answer", f"the server did not answer within {EXCHANGE_S:g} s") from error
        except (asyncio.IncompleteReadError, OSError) as error:
            raise outcome.transient("no_answer", "the server closed the connection without an answer") from error
        return self._read(question, found)

    def _read(self, question: dns.message.Message, found: bytes) -> dns.message.Message:
        import dns.exception
        import dns.message
        import dns.tsig

        try:
            answer = dns.message.from_wire(found, keyring=self._key, request_mac=question.mac)
        except dns.tsig.PeerBadTime as error:
            raise outcome.transient("clock_differs", "the server's clock and this host's differ (BADTIME)") from error
        except dns.tsig.PeerError as error:
            word = type(error).__name__.removeprefix("Peer").upper()
            raise outcome.denied("bad_credentials", f"the server does not accept the key ({word})") from error
        except (dns.tsig.BadTime, dns.tsig.BadSignature, dns.tsig.BadKey, dns.tsig.BadAlgorithm) as error:
            raise outcome.transient("bad_signature", "the answer's signature does not hold") from error
        except (dns.exception.DNSException, ValueError) as error:
            raise _unsigned(found) or outcome.transient("bad_answer", "the answer is no DNS message") from error
        if not answer.had_tsig:
            raise _unsigned(found) or _not_signed()
        if not question.is_response(answer):
            raise outcome.transient("bad_answer", "the answer is one to another question")
        return answer


def check(answer: dns.message.Message, *, fine: frozenset[str], about: str) -> str:
    """The response code, if it is one of `fine`; else ProviderRefused says what it means (RFC 2136 section 2.2)."""
    import dns.rcode

    code = str(dns.rcode.to_text(answer.rcode()))
    if code not in fine:
        raise of_code(code, about)
    return code


def of_code(code: str, about: str) -> outcome.ProviderRefused:
    """The refusal for a response code; `about` is for its message."""
    match code:
        case "REFUSED":
            return outcome.denied("refused", f"the server refuses {about} (REFUSED)")
        case "NOTAUTH" | "NOTZONE":
            return outcome.denied("not_authoritative", f"the server has no authority for {about} ({code})")
        case "FORMERR" | "NOTIMP" | "NXDOMAIN" | "YXDOMAIN":
            return outcome.denied("not_understood", f"the server does not take {about} ({code})")
        case "NXRRSET" | "YXRRSET":
            return outcome.transient("provider_conflict", f"the record changed in between ({code})")
        case "SERVFAIL":
            return outcome.transient("server_failed", f"the server failed at {about} (SERVFAIL)")
        case _:
            return outcome.transient("bad_answer", f"the server answered {about} with {code}")


def _unsigned(found: bytes) -> outcome.ProviderRefused | None:
    """The refusal in an unsigned answer, or None. It is trusted, since a forged one can only prevent a change."""
    import dns.rcode

    if len(found) < _HEADER_BYTES:
        return None
    code = dns.rcode.to_text(dns.rcode.Rcode(found[3] & 0x0F))
    return of_code(code, "the request") if code not in {"NOERROR", "NXDOMAIN"} else _not_signed()


def _not_signed() -> outcome.ProviderRefused:
    return outcome.transient("not_signed", "expected a signed answer: only such a one is believed")
