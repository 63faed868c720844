"""The results of checks that failed, from the errors of sockets and TLS."""

from __future__ import annotations

import errno
import ssl
from typing import Final

from latticed.kit import text
from latticed.ledger.monitors import Result

REASON_CHARACTERS: Final = 200
_EXPIRED: Final = 10  # X509_V_ERR_CERT_HAS_EXPIRED
_CODES: Final = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.ETIMEDOUT: "timeout",
}
_OURS: Final = {
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM), "no_resources"),
    errno.EADDRNOTAVAIL: "no_resources",  # no port is free, or no address to come from
    errno.EACCES: "not_permitted",  # this host's own firewall or security module
    errno.EPERM: "not_permitted",
}


def down(code: str, reason: str = "") -> Result:
    return Result(outcome="down", code=code, reason=shown(reason))


def shown(reason: str) -> str:
    """A reason as it is kept."""
    return text.sanitise(reason, REASON_CHARACTERS)


def of_os_error(error: OSError) -> Result:
    """What a connection that failed says of its target; nothing, when this host could or would not make it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        code = "certificate_expired" if error.verify_code == _EXPIRED else "certificate_invalid"
        return down(code, error.verify_message)
    if isinstance(error, ssl.SSLError):
        return down("tls_failed", error.reason or "the TLS handshake failed")  # its errno is none of the system's
    if isinstance(error, PermissionError) or error.errno in _OURS:
        code = _OURS.get(error.errno or 0, "not_permitted")
        return Result(outcome="error", code=code, reason=shown(error.strerror or str(error)))
    return down(_CODES.get(error.errno or 0, "failed"), error.strerror or "the connection failed")
