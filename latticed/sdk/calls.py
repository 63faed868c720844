"""Typed host calls: what all groups share, and the groups that nearly every plugin uses: kv, log, audit."""

from __future__ import annotations

# Not base64, which imports re and struct: the start of a plugin would be slower.
from binascii import a2b_base64, b2a_base64

TYPE_CHECKING = False  # typing itself is not needed to run
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Ask = Callable[[str, dict[str, Any]], Any]
    """Carries one host call to the host and returns its result, or raises HostError."""


class HostError(Exception):
    """The host did not carry out a call; `code` is stable (`capability_denied`, `rate_limited`, …).

    The codes are listed in docs/write/plugins.md; `message` says more.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class Calls:
    """A group of host calls. `ask(method, params)` makes one, and returns its result or raises HostError."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask


def to_base64(data: bytes) -> str:
    """`data` in base64 with padding, in one line (RFC 4648, section 4)."""
    return b2a_base64(data, newline=False).decode("ascii")


def from_base64(text: str) -> bytes:
    """The bytes of a text in base64; binascii.Error when its padding is wrong. Other characters are skipped."""
    return a2b_base64(text)


def given(**params: Any) -> dict[str, Any]:
    """The parameters that are not None; the host uses its defaults for the others."""
    return {name: value for name, value in params.items() if value is not None}


def pages(ask: Ask, method: str, rows: str, params: dict[str, Any]) -> Iterator[Any]:
    """The `rows` of all pages of a call that answers `{rows, next}`, each page asked for when it is needed.

    `next` is the `after` of the following page, None on the last one.
    """
    after: dict[str, Any] = {}
    while True:
        page = ask(method, {**params, **after})
        yield from page[rows]
        if page["next"] is None:
            return
        after = {"after": page["next"]}


def _coded(value: str | bytes) -> dict[str, str]:
    """A value as a parameter of kv.put."""
    return {"value": value} if isinstance(value, str) else {"value_base64": to_base64(value)}


class Kv(Calls):
    """Small values that survive restarts, in a bucket of this plugin's own. Keys have 1 to 256 characters."""

    def get(self, key: str, *, bucket: str | None = None) -> str | None:
        """The value as text, or None when there is none; UnicodeDecodeError when it is no text (kv:read).

        `bucket="plugin:acme.other"` reads another plugin's, if the operator granted it: `caps grant ID bucket=…`.
        """
        value = self.get_bytes(key, bucket=bucket)
        return None if value is None else value.decode("utf-8")

    def get_bytes(self, key: str, *, bucket: str | None = None) -> bytes | None:
        """The value, or None when there is none; `bucket` as in get (kv:read)."""
        found = self._ask("kv.get", given(key=key, bucket=bucket))
        # Not `value`, which is missing above 64 KiB and for what is no text.
        return from_base64(found["value_base64"]) if found["ok"] else None

    def get_entry(self, key: str, *, bucket: str | None = None) -> tuple[bytes | None, int]:
        """The value and its version, (None, 0) when there is none; `bucket` as in get (kv:read)."""
        found = self._ask("kv.get", given(key=key, bucket=bucket))
        return (from_base64(found["value_base64"]), found["version"]) if found["ok"] else (None, 0)

    def put(self, key: str, value: str | bytes) -> None:
        """Set a value, text as UTF-8; HostError("quota_exceeded") when it does not fit (kv:write)."""
        self._ask("kv.put", {"key": key, **_coded(value)})

    def put_if(self, version: int, key: str, value: str | bytes) -> bool:
        """Set a value if the one there still has the version that get_entry gave, 0: if there is none (kv:write).

        False: somebody else changed it, so read it again. HostError("quota_exceeded") when it does not fit.

            while True:
                value, version = self.kv.get_entry("count")
                if self.kv.put_if(version, "count", str(int(value or 0) + 1)):
                    break
        """
        return bool(self._ask("kv.put", {"key": key, "if_version": version, **_coded(value)})["ok"])

    def delete(self, key: str) -> bool:
        """Remove a key; whether there was one (kv:write)."""
        return bool(self._ask("kv.delete", {"key": key})["ok"])

    def keys(self, prefix: str = "", *, bucket: str | None = None) -> Iterator[str]:
        """All keys that begin with `prefix`, in order, asked for page by page; `bucket` as in get (kv:read)."""
        return pages(self._ask, "kv.list", "keys", given(prefix=prefix, bucket=bucket))


class Log(Calls):
    """Lines in the daemon's log, with the plugin's id; `fields` are converted to text."""

    def write(self, level: str, message: str, **fields: object) -> None:
        """One line of level debug, info, warning or error; `fields` are shown with it (log:write)."""
        plain = {name: str(value) for name, value in fields.items()}
        self._ask("log.write", {"level": level, "message": message, "fields": plain})

    def debug(self, message: str, **fields: object) -> None:
        """See write (log:write)."""
        self.write("debug", message, **fields)

    def info(self, message: str, **fields: object) -> None:
        """See write (log:write)."""
        self.write("info", message, **fields)

    def warning(self, message: str, **fields: object) -> None:
        """See write (log:write)."""
        self.write("warning", message, **fields)

    def error(self, message: str, **fields: object) -> None:
        """See write (log:write)."""
        self.write("error", message, **fields)


class Audit(Calls):
    """This plugin's own audit events."""

    def events(
        self, after: int | str | None = None, *, action: str | None = None, decision: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Events after the cursor `after`, oldest first, asked for page by page (audit:read).

        A cursor is the `next` of an answer; a number is a seq of the decisions, and stands for those alone. Each page
        is a host call and so an event itself: without `action` more pages may follow than there were events.
        """
        return pages(self._ask, "audit.query", "events", given(after=after, action=action, decision=decision))
