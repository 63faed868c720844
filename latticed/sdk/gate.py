"""An in-memory Gate for tests: it refuses what a real one refuses, and answers kv, log and audit itself."""

from __future__ import annotations

import binascii
import json
import unicodedata

from latticed.sdk import lines
from latticed.sdk.calls import HostError, from_base64, to_base64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

# A copy of `model.hostcall`, which the SDK cannot import; a test compares them.
_OPENS = {
    "kv:read": "kv.get kv.list",
    "kv:write": "kv.put kv.delete",
    "log:write": "log.write",
    "http:egress": "http.do mail.send",
    "notify:send": "notify.send",
    "audit:read": "audit.query",
    "node:read": "node.facts node.metrics node.journal",
    "node:admin": "node.set_labels",
    "monitor:read": "monitor.list monitor.results",
    "monitor:admin": "monitor.put monitor.delete",
    "static:read": "static.get static.list",
    "static:write": "static.put static.delete",
    "task:read": "task.list task.get",
    "task:run": "task.submit task.cancel service.put service.delete service.status service.save service.saved"
    " service.revert",
    "tunnel:admin": "tunnel.put tunnel.delete tunnel.status",
    "worker:route": "route.put route.delete",
    "network:plan": "network.state network.plan network.plans",
    "network:apply": "network.apply",
    "ddns:admin": "ddns.put ddns.delete ddns.status",
}
CAPABILITY_OF = {call: capability for capability, calls in _OPENS.items() for call in calls.split()}
"""Every host call there is, and the capability that opens it."""

REQUEST_BYTES = 512 << 10
"""Of a call's parameters as JSON: the host's default for `host_calls.request_bytes`."""
MAX_KEY_CHARACTERS = 256
KEY_RULE = (
    f"expected a key of 1 to {MAX_KEY_CHARACTERS} characters without '/', '\\' and control characters, not '.' or '..'"
)
PAGE = 1_000
MAX_TEXT_BYTES = 64 << 10
EVENTS_PAGE = 100
MAX_EVENTS_PAGE = 500
# Hangul fillers: letters by their category, but shown as blanks.
_BLANK_LETTERS = "\u115f\u1160\u3164\uffa0"
_LEVELS = ("debug", "info", "warning", "error")
_PARAMS: dict[str, dict[str, type]] = {
    "kv.get": {"key": str, "bucket": str},
    "kv.list": {"prefix": str, "after": str, "bucket": str},
    "kv.put": {"key": str, "value": str, "value_base64": str, "if_version": int},
    "kv.delete": {"key": str},
    "log.write": {"message": str, "level": str, "fields": dict},
    "audit.query": {"after": object, "limit": int, "action": str, "decision": str},
}
_DECISIONS = ("allow", "deny", "-")
_REQUIRED = {"kv.get": ("key",), "kv.put": ("key",), "kv.delete": ("key",), "log.write": ("message",)}


class Called:
    """One host call that a plugin made; `denied` is its code, empty when it was carried out.

    `params` as the host gets them, after JSON; as they were given for a call that was denied.
    """

    def __init__(self, method: str, params: Mapping[str, Any], denied: str = "") -> None:
        self.method = method
        self.params = params
        self.denied = denied

    def __repr__(self) -> str:
        return f"Called({self.method!r}, {dict(self.params)!r}, {self.denied!r})"


class Gate:
    """Answers the host calls of one plugin under test.

    `capabilities` is what its manifest declares; `granted` what the operator granted (default: all of them). `kv` has
    its values in bytes, `others` those that it may read of other plugins, by bucket (`plugin:acme.other`), `lines` what
    it logged as (level, message), `calls` every call; tests may change them.
    `answers` maps host calls that this class does not implement to their results: a value, or a function of the
    parameters, which may raise HostError. The limits are the host's defaults.
    """

    kv_value_bytes = 64 << 10
    kv_keys = 10_000
    kv_total_bytes = 16 << 20

    def __init__(
        self,
        capabilities: Iterable[str] = (),
        *,
        granted: Iterable[str] | None = None,
        answers: Mapping[str, Any] | None = None,
    ) -> None:
        self.capabilities = tuple(capabilities)
        self.granted = self.capabilities if granted is None else tuple(granted)
        if unknown := sorted({*self.capabilities, *self.granted} - set(_OPENS)):
            raise ValueError(f"expected known capabilities, found {', '.join(unknown)}")
        self.answers = dict(answers or {})
        if unknown := sorted(set(self.answers) - set(CAPABILITY_OF)):
            raise ValueError(f"expected answers to known host calls, found {', '.join(unknown)}")
        self.kv: dict[str, bytes] = {}
        self.others: dict[str, dict[str, bytes]] = {}
        self._versions: dict[str, tuple[bytes, int]] = {}
        self._last_version = 0
        self.lines: list[tuple[str, str]] = []
        self.calls: list[Called] = []

    def call(self, method: str, params: Mapping[str, Any]) -> Any:
        """The result as the plugin would get it, after a round trip through JSON; HostError when it is refused.

        Every call is appended to `calls`, refused ones with their code.
        """
        try:
            line = _line(params)
            plain = json.loads(line)
            # Without the newline of the line, which is no part of the parameters.
            self._check(method, len(line) - 1)
            result = json.loads(lines.encode(self._carry_out(method, plain)))
        except HostError as error:
            self.calls.append(Called(method, dict(params), error.code))
            raise
        self.calls.append(Called(method, plain))
        return result

    def _check(self, method: str, size: int) -> None:
        """Capability and size, checked in the same order as by a real Gate."""
        capability = CAPABILITY_OF.get(method)
        if capability is None:
            raise HostError("not_found", "there is no such host call")
        if capability not in self.capabilities:
            raise HostError("capability_denied", f"the manifest does not declare {capability}")
        if capability not in self.granted:
            raise HostError("capability_not_granted", f"the operator has not granted {capability}")
        if size > REQUEST_BYTES:
            raise HostError("too_large", f"expected at most {REQUEST_BYTES} bytes, found {size}")

    def _carry_out(self, method: str, params: dict[str, Any]) -> Any:
        """The result of an allowed call: from `answers`, or by this class. HostError service_unavailable otherwise."""
        if method in self.answers:
            answer = self.answers[method]
            return answer(params) if callable(answer) else answer
        serve: dict[str, Callable[[dict[str, Any]], Any]] = {
            "kv.get": self._kv_get,
            "kv.list": self._kv_list,
            "kv.put": self._kv_put,
            "kv.delete": self._kv_delete,
            "log.write": self._log_write,
            "audit.query": self._audit_query,
        }
        if method not in serve:
            raise HostError("service_unavailable", f"{method} is not served in this test: give it in `answers`")
        _check_params(method, params)
        return serve[method](params)

    def _kv_get(self, asked: dict[str, Any]) -> dict[str, Any]:
        """As the host's kv.get; the buckets of operators are not simulated."""
        key, held = _key(asked), self._readable(asked)
        value = held.get(key)
        if value is None:
            return {"ok": False}
        # Values of others have no versions that a test could see changing.
        answer = {"ok": True, "value_base64": to_base64(value), "version": self._version(key) if held is self.kv else 1}
        if len(value) <= MAX_TEXT_BYTES:
            answer["value"] = _as_text(value)
        return answer

    def _readable(self, asked: dict[str, Any]) -> dict[str, bytes]:
        """The values of the bucket that is asked for; HostError bad_params."""
        bucket = asked.get("bucket")
        if bucket is None:
            return self.kv
        if bucket not in self.others:
            raise HostError("bad_params", "expected a bucket that this plugin may read: give it in `others`")
        return self.others[bucket]

    def _version(self, key: str) -> int:
        """The version of a value, another one since a test replaced it; 0 when there is none."""
        value = self.kv.get(key)
        if value is None:
            return 0
        before, version = self._versions.get(key, (None, 0))
        if before != value:
            version = self._counted(key, value)
        return version

    def _counted(self, key: str, value: bytes) -> int:
        """A version that no value had before, for this one."""
        self._last_version += 1
        self._versions[key] = (value, self._last_version)
        return self._last_version

    def _kv_list(self, asked: dict[str, Any]) -> dict[str, Any]:
        """As the host's kv.list: a page of keys by prefix and cursor."""
        after, prefix = asked.get("after", ""), asked.get("prefix", "")
        keys = sorted(key for key in self._readable(asked) if key.startswith(prefix) and key > after)
        return {"keys": keys[:PAGE], "next": keys[PAGE - 1] if len(keys) > PAGE else None}

    def _kv_put(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Store a value, within the quotas of the host's kv.put; HostError bad_params, quota_exceeded."""
        key, value, expected = _key(asked), _value(asked), asked.get("if_version")
        if expected is not None and not 0 <= expected <= 2**53:
            raise HostError("bad_params", "if_version: expected a version, or 0")
        if expected is not None and expected != (found := self._version(key)):
            return {"ok": False, "version": found}
        if len(value) > self.kv_value_bytes:
            raise HostError("quota_exceeded", f"expected a value of at most {self.kv_value_bytes} bytes")
        # Replacing a value is allowed when there are as many keys as there may be.
        if key not in self.kv and len(self.kv) >= self.kv_keys:
            raise HostError("quota_exceeded", f"expected at most {self.kv_keys} keys")
        # Keys count as well, as in the host's quota.
        used = sum(len(name.encode()) + len(held) for name, held in self.kv.items())
        more = len(value) - len(self.kv[key]) if key in self.kv else len(key.encode()) + len(value)
        if more > 0 and used + more > self.kv_total_bytes:
            raise HostError("quota_exceeded", f"expected at most {self.kv_total_bytes} bytes of keys and values")
        self.kv[key] = value
        version = self._counted(key, value)
        return {"ok": True} if expected is None else {"ok": True, "version": version}

    def _kv_delete(self, asked: dict[str, Any]) -> dict[str, Any]:
        """As the host's kv.delete: whether there was such a key."""
        found = self.kv.pop(_key(asked), None) is not None
        # A change of the bucket, which the host counts as well.
        self._last_version += found
        return {"ok": found}

    def _log_write(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Append (level, message) to `lines`. `warn` becomes warning and an unknown level info, as at the host."""
        said = asked.get("level", "info").lower()
        level = "warning" if said == "warn" else said if said in _LEVELS else "info"
        self.lines.append((level, asked["message"]))
        return {"ok": True}

    def _audit_query(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The calls so far as events with seq, action, target, decision, code and chain."""
        after, limit = _calls_after(asked.get("after")), asked.get("limit", EVENTS_PAGE)
        if not 1 <= limit <= MAX_EVENTS_PAGE:
            raise HostError("bad_params", f"expected a limit from 1 to {MAX_EVENTS_PAGE}")
        made = [] if after is None else self.calls
        events = [event for event in map(_event, range(1, len(made) + 1), made) if event["seq"] > (after or 0)]
        if asked.get("decision") not in {None, *_DECISIONS}:
            raise HostError("bad_params", f"expected a decision of {', '.join(_DECISIONS)}")
        for name in ("action", "decision"):
            if asked.get(name) is not None:
                events = [event for event in events if event[name] == asked[name]]
        page = events[:limit]
        return {"events": page, "next": f"0.{page[-1]['seq']}" if len(page) == limit else None}


def _line(params: Mapping[str, Any]) -> bytes:
    """The parameters as a line of JSON; HostError bad_params for what JSON cannot carry."""
    try:
        return lines.encode(dict(params))
    except lines.UNFIT as error:
        raise HostError("bad_params", f"expected parameters that JSON can carry: {error}") from error


def _check_params(method: str, params: dict[str, Any]) -> None:
    """HostError bad_params for unknown, missing or wrongly typed parameters of a call that this class answers."""
    known = _PARAMS[method]
    for name, value in params.items():
        if name not in known:
            raise HostError("bad_params", f"{method}: expected no parameter {name!r}")
        nullable = name in {"bucket", "value", "value_base64", "if_version", "action", "decision"}
        # bool is a subclass of int.
        if not (value is None and nullable) and (not isinstance(value, known[name]) or isinstance(value, bool)):
            raise HostError("bad_params", f"{method}: expected {name} to be of type {known[name].__name__}")
    if missing := [name for name in _REQUIRED.get(method, ()) if name not in params]:
        raise HostError("bad_params", f"{method}: expected {missing[0]}, found none")


def key_fault(key: str) -> str | None:
    """What is wrong with a key, or None; a copy of the host's rule (`host.kv.key_fault`), which a test compares."""
    found = None
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        found = f"{len(key)} characters"
    elif key in {".", ".."}:
        found = f"'{key}'"
    elif "/" in key or "\\" in key:
        found = "a '/'" if "/" in key else "a '\\'"
    elif any(unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"} or c in _BLANK_LETTERS for c in key):
        found = "a control character"
    return f"{KEY_RULE}, found {found}" if found else None


def _key(asked: dict[str, Any]) -> str:
    """The key of a kv call; HostError bad_params when the host would refuse it."""
    key: str = asked["key"]
    if fault := key_fault(key):
        raise HostError("bad_params", fault)
    return key


def _value(asked: dict[str, Any]) -> bytes:
    """The value of kv.put in bytes; HostError bad_params."""
    text, coded = asked.get("value"), asked.get("value_base64")
    if (text is None) == (coded is None):
        raise HostError("bad_params", "expected exactly one of value and value_base64")
    if text is not None:
        return bytes(text, "utf-8")
    try:
        value = from_base64(coded or "")
    except (binascii.Error, ValueError) as error:
        raise HostError("bad_params", f"value_base64: expected base64, found {error}") from error
    if to_base64(value) != coded:  # a2b_base64 skips characters that are not base64
        raise HostError("bad_params", "value_base64: expected base64, found something else in it")
    return value


def _as_text(value: bytes) -> str | None:
    """The value as text; None when it is not UTF-8."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _calls_after(cursor: int | str | None) -> int | None:
    """The call's seq in a cursor of both chains; None for a seq of the decisions, of which there are none here."""
    if cursor is None:
        return 0
    # Up to 2**53 every integer is exact in readers of JSON that use doubles (RFC 8259, section 6).
    if isinstance(cursor, int) and 0 <= cursor <= 2**53:
        return None
    first, _, second = str(cursor).partition(".")
    if not all(part.isascii() and part.isdecimal() and len(part) <= 15 for part in (first, second)):
        raise HostError("bad_params", "expected after to be a cursor")
    return int(second)


def _event(seq: int, called: Called) -> dict[str, Any]:
    """A call as an audit event of the chain of calls, without its time, its sizes and the hashes."""
    told = {"action": "host.call", "target": called.method, "decision": "deny" if called.denied else "allow"}
    whose = {"seq": seq, "ts": "1970-01-01T00:00:00.000000Z", "actor": "plugin:test.plugin"}
    rest = {"reason": "", "detail": {}, "prev": "0" * 64, "hash": "0" * 64, "chain": "calls"}
    return {**whose, **told, "code": called.denied, **rest}
