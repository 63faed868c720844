"""What the end of cloudflared means, by its exit code and last words. Pure."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latticed.host.program.rules import ProgramEnded

REFUSED: Final = 255
"""The exit code for credentials that the provider refuses: a restart is no use."""
# It looks its edge up in the DNS before it connects, and ends with 1 when that fails; what it says then is Go's
# net.DNSError ("lookup NAME on SERVER: no such host") behind words of its own.
_DNS: Final = re.compile(r"no such host|lookup |DNS query failed|server misbehaving|lookup srv records", re.IGNORECASE)


def named(ended: ProgramEnded) -> ProgramEnded:
    """The end with the code of its cause, where cloudflared tells it:

    status 255                         ->  credentials_refused
    status 1, "… no such host"         ->  no_name_service
    anything else                      ->  as it was
    """
    if ended.status == REFUSED:
        return replace(ended, code="credentials_refused")
    if ended.status == 1 and _DNS.search(ended.message):
        return replace(ended, code="no_name_service")
    return ended
