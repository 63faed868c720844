"""Typed host calls: what all groups share, and the groups that nearly every plugin uses: kv, log, audit."""

from __future__ import annotations

# Not base64, which imports re and struct: the start of a plugin would be slower.
from binascii import a2b_base64, b2a_base64

TYPE_CHECKING = False  # typing itself is not needed to run
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from latticed.sdk import answers

    Ask = Callable[[str, dict[str, Any]], Any]
    """Carries one host call to the host and returns its result, or raises HostError."""


VERSION = "0.1.0"
"""The version of latticed that this SDK is a part of."""


class HostError(Exception):
    """The host did not carry out a call; `code` is stable, `message` says more.

    Any call may be refused so:

    capability_denied       the manifest does not declare the capability
    capability_not_granted  the operator has not granted it
    rate_limited            too many calls: `host_calls.per_second`, and `host_calls.burst` at once
    too_large               parameters of more than `host_calls.request_bytes`
    bad_params              a parameter is not what was expected; the message names it
    deadline_exceeded       not done in `host_calls.deadline_s`; whether it still happens is not known
    service_unavailable     what carries it out is not there now, or the host is stopping; try later
    audit_unavailable       it could not be recorded, so it was not carried out
    internal                a fault of the host, which is in its log

    `not_found`, `quota_exceeded` and `egress_blocked` come from the calls that name them.
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

    if not TYPE_CHECKING:  # a type checker would take every name for known

        def __getattr__(self, name):  # noqa: ANN001, ANN204
            """Say that a method may be one of a later SDK: a plugin runs on its host's, not on its author's."""
            raise AttributeError(
                f"{type(self).__name__} has no {name} in latticed.sdk {VERSION}, which this host has; a later one may"
                ' have it: "requires_host" in the manifest keeps a plugin off older hosts'
            )


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
    r"""Small values that survive restarts, in a bucket of this plugin's own.

    A key has 1 to 256 characters, no `/`, `\` and control characters among them, and is not `.` or `..`. Of a path or a
    URL take its hash, or replace each `/`.
    """

    def get(self, key: str, *, bucket: str | None = None) -> str | None:
        """The value as text, or None when there is none (kv:read).

        `bucket="plugin:acme.other"` reads another plugin's, if the operator granted it: `latticectl caps grant ID
        bucket=plugin:acme.other`.

        Errors: bad_params for a key that none can be, or a bucket that was not granted; UnicodeDecodeError for a value
        that is no text, which `get_bytes` reads.
        """
        value = self.get_bytes(key, bucket=bucket)
        return None if value is None else value.decode("utf-8")

    def get_bytes(self, key: str, *, bucket: str | None = None) -> bytes | None:
        """The value in bytes, or None when there is none; `bucket` as in get (kv:read).

        Errors: bad_params as in get.
        """
        return self.get_entry(key, bucket=bucket)[0]

    def get_entry(self, key: str, *, bucket: str | None = None) -> tuple[bytes | None, int]:
        """The value in bytes and its version, (None, 0) when there is none; `bucket` as in get (kv:read).

        Errors: bad_params as in get.
        """
        found: answers.KvGetAnswer = self._ask("kv.get", given(key=key, bucket=bucket))
        # Not `value`, which is missing above 64 KiB and for what is no text.
        return (from_base64(found["value_base64"]), found["version"]) if found["ok"] else (None, 0)

    def put(self, key: str, value: str | bytes) -> None:
        """Set a value, text as UTF-8 (kv:write).

        Errors: bad_params for a key that none can be; quota_exceeded when the value does not fit.
        Limits: a value `host_calls.kv_value_bytes` (64 KiB); `host_calls.kv_keys` (10,000) keys and
        `host_calls.kv_total_bytes` (16 MiB) of keys and values together.
        """
        self._ask("kv.put", {"key": key, **_coded(value)})

    def put_if(self, version: int, key: str, value: str | bytes) -> bool:
        """Set a value if the one there still has the version that get_entry gave, 0: if there is none (kv:write).

        False: somebody else changed it, so read it again.

            while True:
                value, version = self.kv.get_entry("count")
                if self.kv.put_if(version, "count", str(int(value or 0) + 1)):
                    break

        Errors: as put.
        Limits: as put.
        """
        found: answers.KvPutAnswer = self._ask("kv.put", {"key": key, "if_version": version, **_coded(value)})
        return found["ok"]

    def delete(self, key: str) -> bool:
        """Remove a key; whether there was one (kv:write).

        Errors: bad_params for a key that none can be.
        """
        found: answers.Ok = self._ask("kv.delete", {"key": key})
        return found["ok"]

    def keys(self, prefix: str = "", *, bucket: str | None = None) -> Iterator[str]:
        """All keys that begin with `prefix`, in order; `bucket` as in get (kv:read).

        Errors: bad_params for a bucket that was not granted.
        Limits: 1,000 keys a host call; the next page is asked for when the iterator comes to it.
        """
        return pages(self._ask, "kv.list", "keys", given(prefix=prefix, bucket=bucket))


class Log(Calls):
    """Lines in the daemon's log, with the plugin's id; `fields` are converted to text.

    What a plugin prints to stderr is kept, too: `latticectl logs ID`. It needs no capability.
    """

    # Positional only: a field may be called `message` or `level`, too.

    def write(self, level: str, message: str, /, **fields: object) -> None:
        """One line of level debug, info, warning or error; `fields` are shown with it (log:write).

        Errors: rate_limited for more lines than that.
        Limits: `host_calls.log_per_second` (50) lines a second, twice as many at once. Longer messages than 8,192
        characters are cut, and fields beyond 32 left out.
        """
        plain = {name: str(value) for name, value in fields.items()}
        self._ask("log.write", {"level": level, "message": message, "fields": plain})

    def debug(self, message: str, /, **fields: object) -> None:
        """As write, with the level debug (log:write)."""
        self.write("debug", message, **fields)

    def info(self, message: str, /, **fields: object) -> None:
        """As write, with the level info (log:write)."""
        self.write("info", message, **fields)

    def warning(self, message: str, /, **fields: object) -> None:
        """As write, with the level warning (log:write)."""
        self.write("warning", message, **fields)

    def error(self, message: str, /, **fields: object) -> None:
        """As write, with the level error (log:write)."""
        self.write("error", message, **fields)


class Audit(Calls):
    """This plugin's own audit events."""

    def events(
        self, after: int | str | None = None, *, action: str | None = None, decision: str | None = None
    ) -> Iterator[answers.AuditEvent]:
        """Events after the cursor `after`, oldest first (audit:read).

        A cursor is the `next` of an answer; a number is a seq of the decisions, and stands for those alone. Each page
        is a host call and so an event itself: without `action` more pages may follow than there were events.

        Errors: bad_params for what is no cursor.
        Limits: 100 events a host call; the next page is asked for when the iterator comes to it.
        """
        return pages(self._ask, "audit.query", "events", given(after=after, action=action, decision=decision))
