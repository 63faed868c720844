"""Addresses and messages of mail.send: strict addresses, headers that no text can add a line to (RFC 5321, 5322)."""

from __future__ import annotations

import email.message
import email.policy
import email.utils
import re
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from latticed.host.call import HostError
from latticed.kit import text
from latticed.model import hosts
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_SUBJECT_CHARACTERS: Final = 250
# Octets, RFC 5321, section 4.5.3.1.1.
_MAX_LOCAL: Final = 64
_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
# A dot-string (RFC 5321, section 4.1.2). Quoted local parts, which may hold spaces and control characters, are refused.
_LOCAL: Final = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_POLICY: Final = email.policy.SMTP.clone(cte_type="7bit")
"""CRLF, folded headers, and 7-bit bodies, for which no relay needs 8BITMIME."""


def address(given: str, *, field: str = "to") -> str:
    """A plain address (`local@domain`, no name, no quotes) in normal form: the domain as `hosts.normal` gives it, the
    local part as it is. HostError bad_params; `field` is named in its message.
    """
    local, at, domain = given.rpartition("@")
    if not at or len(local) > _MAX_LOCAL or not _LOCAL.fullmatch(local):
        raise HostError(Denial.BAD_PARAMS, f"{field}: expected plain addresses such as ops@example.org")
    try:
        name = hosts.normal(domain)
    except hosts.NotAHost as error:
        raise HostError(Denial.BAD_PARAMS, f"{field}: {error}") from error
    # `hosts.normal` takes addresses, too; in mail they would be literals (RFC 5321, section 4.1.3).
    if hosts.address_of(name) is not None:
        raise HostError(Denial.BAD_PARAMS, f"{field}: expected a domain after the @, found an address in numbers")
    return f"{local}@{name}"


def recipients(given: str | Iterable[str], *, limit: int) -> tuple[str, ...]:
    """The addresses in normal form, in their order, each once; HostError bad_params for none, or more than `limit`."""
    listed = (given,) if isinstance(given, str) else tuple(given)
    if not 1 <= len(listed) <= limit:
        raise HostError(Denial.BAD_PARAMS, f"to: expected 1 to {limit} addresses, found {len(listed)}")
    return tuple(dict.fromkeys(address(one) for one in listed))


def check_subject(subject: str) -> None:
    """HostError bad_params unless it is one line of visible text, too_large beyond the limit; never quotes it."""
    if len(subject) > MAX_SUBJECT_CHARACTERS:
        raise HostError(Denial.TOO_LARGE, f"subject: expected at most {MAX_SUBJECT_CHARACTERS} characters")
    if not subject.strip() or any(text.is_control(c) or "\ud800" <= c <= "\udfff" for c in subject):
        raise HostError(Denial.BAD_PARAMS, "subject: expected one line of text, without control characters")


def check_body(body: str, *, max_bytes: int) -> None:
    """HostError too_large for more than `max_bytes` in UTF-8, bad_params for what is not text; never quotes it."""
    try:
        size = len(body.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise HostError(Denial.BAD_PARAMS, "body: expected text without lone surrogates") from error
    if size > max_bytes:
        raise HostError(Denial.TOO_LARGE, f"body: expected at most {max_bytes} bytes, found {size}")
    # Since RFC 5322 no body may hold a NUL (section 4.1).
    if "\0" in body:
        raise HostError(Denial.BAD_PARAMS, "body: expected text without NUL characters")


def compose(
    *, sender: str, to: Iterable[str], subject: str, body: str, plugin_id: str, now_us: int
) -> tuple[bytes, str]:
    """The message as bytes (headers and body, lines end with CRLF), and its Message-ID with angle brackets.

    The arguments have been checked: addresses by `address`, texts by `check_subject` and `check_body`. `now_us`:
    microseconds since the epoch, for Date.
    """
    message = email.message.EmailMessage(policy=_POLICY)
    # Unique by 128 random bits, at the sender's domain (RFC 5322, section 3.6.4).
    message_id = f"<{secrets.token_hex(16)}@{sender.rpartition('@')[2]}>"
    message["From"] = sender
    message["To"] = ", ".join(to)
    message["Subject"] = subject
    message["Date"] = email.utils.format_datetime(datetime.fromtimestamp(now_us // 1_000_000, tz=UTC))
    message["Message-ID"] = message_id
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: automatic responders do not answer it
    message["X-Latticed-Plugin"] = plugin_id
    # CR and LF may appear only together (RFC 5322, section 2.3); the policy writes each LF as CRLF.
    message.set_content(re.sub(r"\r\n?", "\n", body), charset="utf-8")
    return message.as_bytes(), message_id
