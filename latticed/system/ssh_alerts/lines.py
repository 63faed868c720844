"""What one message of sshd says: a login, a failed attempt, something else, or nothing that could be read. Pure.

User names, methods and key IDs are chosen by strangers and may hold anything, ` from 192.0.2.1 port 22 ssh2` too. So
the address is looked for from the end of the message, and what follows it has to fit the method. Formats: auth_log in
auth.c and format_method_key in auth2.c of OpenSSH 6.8 to 10.0.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_TIMES: Final = 100
"""As how many a line counts at most that stands for others; sshd takes 6 attempts of one connection (MaxAuthTries)."""
MAX_LINE: Final = 2_048
"""Characters of a message; sshd writes at most 1,023 bytes (MSGBUFSIZ in log.c)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """`Accepted …`. `address`: "" where the message can be read in two ways, or sshd itself does not know it;
    `key`: type and ID or principal, as sshd shows it; `fingerprint`: of the key, "" for other methods.
    """

    user: str
    address: str
    port: int
    method: str
    key: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An attempt that failed, or `times` equal ones. `once`: one that clients make without being asked (`none`, each
    key that they have), or a message that sshd writes besides `Failed …`; all of a connection count once, and for
    nothing when it ends in a login.
    """

    user: str
    address: str
    port: int
    once: bool = False
    times: int = 1


class Other(Enum):
    """A message that is no login and no attempt."""

    KNOWN = "known"
    UNREAD = "unread"
    UNREAD_LOGIN = "unread login"
    """It begins as a login does."""


Line = Login | Failure | Other

# A method is named by the client (RFC 4252, 5): what is no plain word is left unread.
_AUTH: Final = re.compile(r"(Accepted|Failed) ([a-z][a-z0-9-]{0,39}(?:/[a-z0-9_-]{1,39})?) for (.*)")
_TAIL: Final = re.compile(r" from (\S{1,64}) port ([0-9]{1,5}) ssh2")
_PREAUTH: Final = " [preauth]"
_FINGERPRINT: Final = r"[A-Z0-9]{2,10}:[A-Za-z0-9+/=:]{16,128}"
_KEY: Final = re.compile(
    rf": (?P<type>[A-Z0-9-]{{2,32}}) (?P<fingerprint>{_FINGERPRINT})"
    rf"(?P<id> ID .* \(serial [0-9]{{1,20}}\) CA [A-Z0-9-]{{2,32}} {_FINGERPRINT})?"
    r'(?P<client>, client user ".*", client host ".*")?'
)
_PRINCIPAL: Final = re.compile(r": (?P<type>\S{1,256})")

_INVALID: Final = re.compile(r"Invalid user (.*) from (\S{1,64})(?: port ([0-9]{1,5}))?")
_CUT: Final = re.compile(
    r"(?:Connection (?:closed|reset) by|Disconnected from|Disconnecting) (?:authenticating|invalid) user (.*)"
    r" (\S{1,64}) port ([0-9]{1,5})(?:: [A-Za-z ]{1,80})?"
)
_TOO_MANY: Final = re.compile(
    r"(?:error: )?maximum authentication attempts exceeded for (.*) from (\S{1,64}) port ([0-9]{1,5}) ssh2"
)
_ONCE: Final = (_INVALID, _CUT, _TOO_MANY)

# What rsyslog writes into auth.log in place of equal lines of one process ($RepeatedMsgReduction).
_REPEATED: Final = re.compile(r"message repeated ([1-9][0-9]{0,5}) times: \[ (Failed .*|Invalid .*)\]")

_TYPED: Final = ("password", "keyboard-interactive")
"""Methods in which each attempt is somebody's guess."""
_NO_LOGINS: Final = ("Accepted key ", "Accepted certificate ", "Accepted by ", "Accepted for ", "Accepted host ")
"""Steps on the way to a login, which may still fail (LogLevel VERBOSE and higher)."""
_KNOWN: Final = (
    *("Postponed ", "Partial ", "Invalid user ", "User ", "Connection ", "Disconnect", "Received disconnect "),
    *("Received signal ", "Received SIGHUP", "Server listening on ", "pam_", "PAM", "error: ", "fatal: ", "debug"),
    *("Starting session", "Close session", "Closing connection", "Transferred: ", "Exiting on signal", "banner exch"),
    *("Unable to negotiate ", "Timeout before auth", "Timeout, client", "drop connection ", "kex_exchange_ident"),
    *("ssh_dispatch_run_fatal", "Did not receive identification", "Bad protocol version", "Protocol major versions"),
    *("Authentication refused", "Authentication key ", "userauth_", "Nasty PTR", "reverse mapping ", "Address "),
    *("beginning MaxStartups", "exited MaxStartups", "in MaxStartups", "srclimit", "rexec", "Bind to port ", "auth"),
    *("Read error from remote", "Write failed", "session opened", "session closed", "ROOT LOGIN REFUSED", "Set /proc"),
    *("subsystem request ", "Could not ", "Change of username", "terminating inactive", "Certificate ", "Missing priv"),
    *("WARNING: ", "Login restricted", "Rhosts authentication", "Expired ", "Password expired", "lastlog", "Deprecat"),
    *("syslogin_", "Attempt to write login", "Postauth", "Child connection", "Penalty", "penalty", "ssh: "),
)


def read(message: str) -> Line:
    """What a message says; any text, in which control characters are escaped."""
    if message.startswith(_NO_LOGINS):
        return Other.KNOWN
    if len(message) <= MAX_LINE and (found := _AUTH.fullmatch(message)):
        line = _login_or_failure(found[1], found[2], found[3])
        if line is not None:
            return line
    if message.startswith("Accepted "):
        return Other.UNREAD_LOGIN
    if (repeated := _REPEATED.fullmatch(message)) and isinstance(inner := read(repeated[2]), Failure):
        return replace(inner, times=min(int(repeated[1]), MAX_TIMES))
    if len(message) > MAX_LINE:
        return Other.UNREAD
    text = message.removesuffix(_PREAUTH)
    for form in _ONCE:
        if (found := form.fullmatch(text)) and _is_address(found[2]):
            port = int(found[3] or 0)
            return Failure(user=_name(found[1]), address=_address(found[2]), port=port, once=True)
    return Other.KNOWN if message.startswith(_KNOWN) else Other.UNREAD


def network(address: str) -> str:
    """The network of an address, /24 or /64, by which sources are told apart; "" for no address."""
    if not address:
        return ""
    return str(ipaddress.ip_network(f"{address}/{64 if ':' in address else 24}", strict=False))


def address_of(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address of a Login or a Failure that is not empty."""
    return ipaddress.ip_address(address)


def _login_or_failure(outcome: str, method: str, rest: str) -> Login | Failure | None:
    places = list(_places(outcome, method, rest))
    if not places:
        return None
    tail, key = places[-1]
    # Two ways to read it: an ID in a certificate, or a user name, is made to look like the end of a message.
    address = _address(tail[1]) if len(places) == 1 else ""
    user, port = rest[: places[0][0].start()], int(tail[2]) if len(places) == 1 else 0
    if outcome == "Failed":
        once = not method.startswith(_TYPED)
        return Failure(user=_name(user), address=address, port=port, once=once)
    known = key.groupdict() if key is not None and len(places) == 1 else {}
    shown = f"{known.get('type') or ''}{known.get('id') or ''}{known.get('client') or ''}"
    fingerprint = known.get("fingerprint") or ""
    return Login(user=user, address=address, port=port, method=method, key=shown, fingerprint=fingerprint)


def _places(outcome: str, method: str, rest: str) -> Iterator[tuple[re.Match[str], re.Match[str] | None]]:
    """Where an address may stand: (the tail, what follows it) of each place at which the rest fits the method."""
    for tail in _TAIL.finditer(rest):
        end = rest[tail.end() :]
        if outcome == "Failed":
            end = end.removesuffix(_PREAUTH)
        if not _is_address(tail[1]) or int(tail[2]) > 65_535:
            continue
        if not end:
            yield tail, None
        elif method.startswith("gssapi"):
            if found := _PRINCIPAL.fullmatch(end):
                yield tail, found
        elif (found := _KEY.fullmatch(end)) and (found["client"] is None or method == "hostbased"):
            yield tail, found


def _name(user: str) -> str:
    return user.removeprefix("invalid user ")


def _is_address(text: str) -> bool:
    if text == "UNKNOWN":
        return True  # what sshd has for a connection that is no socket of the network
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _address(text: str) -> str:
    """An address in its usual form, without the interface of a link-local one; an embedded IPv4 one by itself."""
    if text == "UNKNOWN":
        return ""
    found = ipaddress.ip_address(text.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)
