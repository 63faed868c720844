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
"""For one question and its answer. A try makes up to six of them, within `providers.TRY_S` together."""
# Over TCP, two bytes with the length come before a message (RFC 1035, section 4.2.2); a header has twelve (4.1.1).
_LENGTH_BYTES: Final = 2
_HEADER_BYTES: Final = 12


def key(name: str, value: str, algorithm: str) -> dns.tsig.Key:
    """A TSIG key: its name, its value in base64, and `hmac-sha256`, `-sha384` or `-sha512`. ProviderRefused (bad_key)
    when the value is not base64 or empty; the message does not contain it.
    """
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
    """One connection to a server, with one key; each exchange takes at most EXCHANGE_S.

    Not for concurrent use: answers are taken in order. The caller closes the connection.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, signer: dns.tsig.Key) -> None:
        self._reader = reader
        self._writer = writer
        self._key = signer

    async def ask(self, question: dns.message.Message) -> dns.message.Message:
        """The answer to `question`, which is signed here; the answer's signature is verified.

        ProviderRefused for no answer, one that is malformed, not signed or to another question. The response code is
        not judged: see `check`.
        """
        question.use_tsig(self._key)
        wire = question.to_wire()
        try:
            # One deadline for writing and reading: a server that takes the question slowly is as useless as one that is
            # silent.
            async with asyncio.timeout(EXCHANGE_S):
                self._writer.write(len(wire).to_bytes(_LENGTH_BYTES, "big") + wire)
                await self._writer.drain()
                size = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "big")
                found = await self._reader.readexactly(size)
        # Before OSError, of which it is a subclass.
        except TimeoutError as error:
            raise outcome.transient("no_answer", f"the server did not answer within {EXCHANGE_S:g} s") from error
        except (asyncio.IncompleteReadError, OSError) as error:
            raise outcome.transient("no_answer", "the server closed the connection without an answer") from error
        return self._read(question, found)

    def _read(self, question: dns.message.Message, found: bytes) -> dns.message.Message:
        """The message in these bytes, verified against `question`; raises as `ask`."""
        import dns.exception
        import dns.message
        import dns.tsig

        try:
            # The answer's signature covers that of the question (RFC 8945, section 5.3), so an old answer does not
            # verify.
            answer = dns.message.from_wire(found, keyring=self._key, request_mac=question.mac)
        # The server's own TSIG errors (RFC 8945, section 5.2), which dnspython raises before it verifies anything: such
        # answers are not signed. BADTIME first, as it is a subclass; clocks are corrected, so it is tried again soon.
        except dns.tsig.PeerBadTime as error:
            raise outcome.transient("clock_differs", "the server's clock and this host's differ (BADTIME)") from error
        except dns.tsig.PeerError as error:
            word = type(error).__name__.removeprefix("Peer").upper()
            refused = outcome.denied("bad_credentials", f"the server does not accept the key ({word})")
            raise outcome.unproven(refused) from error
        # The answer does not verify here. Transient: such an answer can be injected on the way, and must not be able to
        # have the record denied for good.
        except (dns.tsig.BadTime, dns.tsig.BadSignature, dns.tsig.BadKey, dns.tsig.BadAlgorithm) as error:
            raise outcome.transient("bad_signature", "the answer's signature does not hold") from error
        # The message cannot be parsed at all; a server that refuses may still have sent a code in its header.
        except (dns.exception.DNSException, ValueError) as error:
            raise _unsigned(found) or outcome.transient("bad_answer", "the answer is no DNS message") from error
        # dnspython verifies a signature only if there is one.
        if not answer.had_tsig:
            raise _unsigned(found) or _not_signed()
        if not question.is_response(answer):
            raise outcome.transient("bad_answer", "the answer is one to another question")
        return answer


def check(answer: dns.message.Message, *, fine: frozenset[str], about: str) -> str:
    """The response code, if it is one of `fine`; else ProviderRefused says what it means (RFC 2136, section 2.2).
    `about` names the request in the message.
    """
    import dns.rcode

    code = str(dns.rcode.to_text(answer.rcode()))
    if code not in fine:
        raise of_code(code, about)
    return code


def of_code(code: str, about: str) -> outcome.ProviderRefused:
    """The refusal for a response code (its name, as "REFUSED"); `about` is for its message. Denied is what a retry
    would not change; unknown codes are transient.
    """
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
    """The refusal that an unsigned answer gives, or None when the bytes are no DNS header.

    Servers refuse an unknown key or zone without a signature, so an error code is told; anyone on the way could send
    it, so it denies nothing for good. An unsigned success is `not_signed`.
    """
    import dns.rcode

    if len(found) < _HEADER_BYTES:
        return None
    # The low four bits of the fourth byte (RFC 1035, section 4.1.1). Not by dnspython: the rest may be malformed.
    code = dns.rcode.to_text(dns.rcode.Rcode(found[3] & 0x0F))
    return outcome.unproven(of_code(code, "the request")) if code not in {"NOERROR", "NXDOMAIN"} else _not_signed()


def _not_signed() -> outcome.ProviderRefused:
    """The refusal for an unsigned answer; transient, as it may be forged."""
    return outcome.transient("not_signed", "expected a signed answer: only such a one is believed")
