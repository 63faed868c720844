"""The host's time zone, read from where the host keeps it: it may be changed while the daemon runs."""

from __future__ import annotations

import contextlib
import io
import os
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.kit import files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import tzinfo

LOCALTIME: Final = Path("/etc/localtime")
MAX_BYTES: Final = 1 << 20
"""Most bytes of a zone's file; the largest of the database has 4 KiB."""
_MAGIC: Final = b"TZif"  # RFC 8536, section 3.1


class HostZone:
    """The zone that the variable TZ names, else that of /etc/localtime (tzset(3)), else UTC; `refresh` reads it again.

    Python's own local time would keep the zone of the process's start. The file read first is made a zone when that is
    first asked for: most daemons never ask, and `zoneinfo` takes 0.3 MiB.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, *, path: Path = LOCALTIME) -> None:
        # A colon may stand before a name; forms that are no name of the database (`CET-1CEST`) are not known here.
        self._named = environ.get("TZ", "").removeprefix(":")
        self._path = path
        self._data = b""
        self._unmade = b""
        self._zone: tzinfo = UTC

    @property
    def current(self) -> tzinfo:
        """The zone as it was last read."""
        data, self._unmade = self._unmade, b""
        if data:
            with contextlib.suppress(ValueError):
                self._zone = _zone_of(data)
        return self._zone

    def refresh(self) -> bool:
        """Read it; whether it is another one now. What cannot be read leaves the zone as it was. Blocks."""
        try:
            return self._named_zone() if self._named else self._from_file()
        # KeyError: ZoneInfoNotFoundError is one.
        except (OSError, ValueError, KeyError):
            return False

    def _named_zone(self) -> bool:
        """Take the zone of that name."""
        if self._named.startswith("/"):
            self._path, self._named = Path(self._named), ""
            return self._from_file()
        from zoneinfo import ZoneInfo

        before, self._zone = self._zone, ZoneInfo(self._named)
        return before is not self._zone

    def _from_file(self) -> bool:
        """Take the zone of the file; it is compared by its bytes, as links to it are replaced without a trace."""
        data = files.read_at_most(self._path, MAX_BYTES)
        if data == self._data:
            return False
        if self._data:
            self._zone, self._unmade = _zone_of(data), b""
        elif data.startswith(_MAGIC):
            self._unmade = data
        else:
            return False
        self._data = data
        return True


def _zone_of(data: bytes) -> tzinfo:
    """The zone that a file's bytes describe; ValueError."""
    from zoneinfo import ZoneInfo

    return ZoneInfo.from_file(io.BytesIO(data))
