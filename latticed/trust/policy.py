"""The trust policy of the operator (`trust.json`, contracts §4)."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from latticed.kit import strict_json, text
from latticed.model import ids
from latticed.model.capability import Risk
from latticed.model.errors import Problem
from latticed.trust import keys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_SHOWN: Final = 80
"""Characters of a value that a Problem quotes: the file's text ends in terminals and logs."""

_HINT: Final = "see the trust policy's documented form; `latticectl trust add` writes it for you"
_PATTERN: Final = re.compile(r"[a-z0-9.-]{0,128}\*")
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")
_RISKS: Final = {risk.word: risk for risk in Risk}


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """One trusted publisher.

    `keys` are public keys in canonical base64; `ids` the plugin ids it may sign (exact, or a prefix ending in `*`),
    none meaning any; `max_risk` the highest risk its plugins may hold, None meaning any.
    """

    keys: tuple[str, ...]
    ids: tuple[str, ...] = ()
    max_risk: Risk | None = None

    def may_sign(self, plugin_id: str) -> bool:
        """Whether `ids` covers this plugin id; empty `ids` cover all."""
        return not self.ids or any(_matches(pattern, plugin_id) for pattern in self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """Revoked keys, artifacts and plugins.

    `keys` are public keys (canonical base64), `digests` of artifacts (lowercase hex), `plugins` `id@version` (its
    builds too) or `id@*`.
    """

    keys: frozenset[str] = frozenset()
    digests: frozenset[str] = frozenset()
    plugins: frozenset[str] = frozenset()

    def plugin(self, plugin_id: str, version: str) -> str | None:
        """The entry that revokes this version of the plugin, or None.

        A version covers its builds (SemVer 2.0.0, section 10: what follows `+` has no part in precedence); a build
        covers itself alone.
        """
        # `or`: a v1 version is any text, and may begin with "+".
        release = version.partition("+")[0] or version
        entries = (f"{plugin_id}@{version}", f"{plugin_id}@{release}", f"{plugin_id}@*")
        return next((entry for entry in entries if entry in self.plugins), None)

    def __or__(self, other: Revoked) -> Revoked:
        """All that either revokes."""
        return Revoked(
            keys=self.keys | other.keys, digests=self.digests | other.digests, plugins=self.plugins | other.plugins
        )

    def __sub__(self, other: Revoked) -> Revoked:
        """What this revokes and the other does not name."""
        return Revoked(
            keys=self.keys - other.keys, digests=self.digests - other.digests, plugins=self.plugins - other.plugins
        )

    def __bool__(self) -> bool:
        """Whether anything is revoked."""
        return bool(self.keys or self.digests or self.plugins)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustPolicy:
    """Trusted publishers by name, rules for unsigned bundles, and revocations; the defaults are the strict ones.

    `require_signature`: no unsigned bundle runs. Only when that is off, `allow_unsigned_host_risk` has an effect:
    unsigned bundles may have host risk.
    """

    publishers: Mapping[str, Publisher] = field(default_factory=lambda: MappingProxyType({}))
    allow_unsigned_host_risk: bool = False
    require_signature: bool = True
    revoked: Revoked = Revoked()


NOBODY: Final = TrustPolicy()
"""Trusts no publisher; in force while there is no valid policy."""


def decode(data: bytes) -> TrustPolicy:
    """The policy in the bytes of a trust.json; Problem "policy_invalid" names the key that is wrong."""
    try:
        # Strict: of a key written twice other readers might take the other value.
        raw = strict_json.loads(data)
    except strict_json.InvalidJson as error:
        raise Problem("policy_invalid", f"no valid JSON: {text.sanitise(str(error), 200)}", _HINT) from error
    # No unknown key: a misspelt restriction would otherwise have no effect, unnoticed.
    plain = _object(raw, "", {"trusted_publishers", "allow_unsigned_host_risk", "require_signature", "revoked"})
    publishers = _object(plain.get("trusted_publishers", {}), "trusted_publishers", None)
    return TrustPolicy(
        publishers=MappingProxyType({name: _publisher(name, value) for name, value in publishers.items()}),
        allow_unsigned_host_risk=_boolean(plain, "allow_unsigned_host_risk", default=False),
        require_signature=_boolean(plain, "require_signature", default=True),
        revoked=_revoked(plain.get("revoked", {})),
    )


def encode(policy: TrustPolicy) -> bytes:
    """The trust.json that `decode` reads as `policy`: indented, sorted, each publisher in its shortest form."""
    plain: dict[str, Any] = {
        "trusted_publishers": {name: _plain(one) for name, one in sorted(policy.publishers.items())},
        "allow_unsigned_host_risk": policy.allow_unsigned_host_risk,
        "require_signature": policy.require_signature,
        "revoked": {
            "keys": sorted(policy.revoked.keys),
            "digests": sorted(policy.revoked.digests),
            "plugins": sorted(policy.revoked.plugins),
        },
    }
    return json.dumps(plain, indent=2, ensure_ascii=False).encode() + b"\n"


def with_revocations(policy: TrustPolicy, remembered: Revoked) -> TrustPolicy:
    """`policy` with the revocations in `remembered` added: removing one from the file does not lift it (§4)."""
    return dataclasses.replace(policy, revoked=policy.revoked | remembered)


def with_publisher(policy: TrustPolicy, name: str, publisher: Publisher) -> TrustPolicy:
    """`policy` trusting `publisher` under `name`, in place of the publisher that had that name."""
    return dataclasses.replace(policy, publishers=MappingProxyType({**policy.publishers, name: publisher}))


def without_publisher(policy: TrustPolicy, name: str) -> TrustPolicy:
    """`policy` not trusting the publisher `name`; KeyError if it did not."""
    if name not in policy.publishers:
        raise KeyError(name)
    left = {other: publisher for other, publisher in policy.publishers.items() if other != name}
    return dataclasses.replace(policy, publishers=MappingProxyType(left))


def _plain(publisher: Publisher) -> str | list[str] | dict[str, Any]:
    """A publisher as JSON in its shortest form: a key, a list of keys, or an object when it has limits."""
    # The shortest of the three forms that `_publisher` reads.
    if publisher.ids or publisher.max_risk is not None:
        plain: dict[str, Any] = {"keys": list(publisher.keys)}
        if publisher.ids:
            plain["ids"] = list(publisher.ids)
        if publisher.max_risk is not None:
            plain["max_risk"] = publisher.max_risk.word
        return plain
    return publisher.keys[0] if len(publisher.keys) == 1 else list(publisher.keys)


def _matches(pattern: str, plugin_id: str) -> bool:
    """Whether a pattern of `ids` (exact, or a prefix that ends in `*`) covers the plugin id."""
    return plugin_id.startswith(pattern[:-1]) if pattern.endswith("*") else plugin_id == pattern


# Reading: each function names the key that is wrong, what was expected there and what was found.


def _publisher(name: str, value: Any) -> Publisher:
    """One entry of `trusted_publishers` in any of its three forms."""
    if not ids.is_valid(name):
        raise _wrong("trusted_publishers", "publisher ids of 3 to 128 of a-z 0-9 . - (no ..)", name)
    # Otherwise a bundle of that publisher could pass for a built-in plugin.
    if name == ids.RESERVED_PUBLISHER:
        raise _wrong("trusted_publishers", "no publisher of that name, which is reserved for built-in plugins", name)
    where = f"trusted_publishers.{name}"
    match value:
        case str():
            return Publisher(keys=(public_key(value, where),))
        case list():
            return Publisher(keys=_some(value, where, public_key))
        case dict():
            return _detailed(value, where)
    raise _wrong(where, 'a key, a list of keys, or an object with "keys"', value)


def _detailed(value: dict[str, Any], where: str) -> Publisher:
    """The form with limits: `keys`, and `ids` or `max_risk` where they are given."""
    plain = _object(value, where, {"keys", "ids", "max_risk"})
    if "keys" not in plain:
        raise _wrong(f"{where}.keys", "a list of keys", None)
    risk = plain.get("max_risk", "host")
    if not isinstance(risk, str) or risk not in _RISKS:
        raise _wrong(f"{where}.max_risk", "read, write or host", risk)
    return Publisher(
        keys=_some(plain["keys"], f"{where}.keys", public_key),
        ids=_some(plain["ids"], f"{where}.ids", _id_pattern) if "ids" in plain else (),
        max_risk=_RISKS[risk] if "max_risk" in plain else None,
    )


def _revoked(value: Any) -> Revoked:
    """The object `revoked`, each list of which may be missing."""
    plain = _object(value, "revoked", {"keys", "digests", "plugins"})
    return Revoked(
        keys=frozenset(_each(plain.get("keys", []), "revoked.keys", revoked_key)),
        digests=frozenset(_each(plain.get("digests", []), "revoked.digests", revoked_digest)),
        plugins=frozenset(_each(plain.get("plugins", []), "revoked.plugins", revoked_plugin)),
    )


def public_key(value: Any, where: str) -> str:
    """A public key in canonical base64; Problem policy_invalid, at `where`, for one that fails `keys.check_public`."""
    return _key(value, where, keys.decode_public)


def revoked_key(value: Any, where: str) -> str:
    """A key to revoke, in canonical base64: any 32 bytes, or Problem policy_invalid at `where`.

    Not checked further: a weak key that an older version took must be revocable.
    """
    return _key(value, where, lambda written: keys.decode_base64(written.strip(), size=keys.KEY_BYTES))


def revoked_digest(value: Any, where: str) -> str:
    """An artifact's SHA-256 in lowercase hex; Problem policy_invalid at `where`."""
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise _wrong(where, "64 hex digits", value)
    return value.lower()


def revoked_plugin(value: Any, where: str) -> str:
    """`id@version` (nothing after the @ for a plugin without version) or `id@*`; Problem policy_invalid at `where`.

    Versions of v1 manifests are any text, so only what they may not be either is refused: long, or with control
    characters.
    """
    if isinstance(value, str):
        plugin_id, at, version = value.partition("@")
        plain = not any(text.is_control(char) or "\ud800" <= char <= "\udfff" for char in version)
        if at and ids.is_valid(plugin_id) and len(version) <= 64 and plain:
            return value
    raise _wrong(where, '"id@version" or "id@*"', value)


def _key(value: Any, where: str, read: Callable[[str], bytes]) -> str:
    """A key as `read` decodes it, in canonical base64; Problem policy_invalid for what it rejects."""
    if not isinstance(value, str):
        raise _wrong(where, "a public key: 32 bytes in base64", value)
    try:
        return keys.encode_base64(read(value))
    except keys.BadText as error:
        raise Problem("policy_invalid", f"{where}: {error} ({_shown(value)})", _HINT) from error


def _id_pattern(value: Any, where: str) -> str:
    """A plugin id, or a prefix that ends in `*`."""
    if not isinstance(value, str) or not (ids.is_valid(value) or _PATTERN.fullmatch(value)):
        raise _wrong(where, 'a plugin id, or the beginning of one followed by "*"', value)
    return value


def _some(value: Any, where: str, read: Callable[[Any, str], str]) -> tuple[str, ...]:
    """A list with at least one element: an empty one could be read as "any" or as "none"."""
    if value == []:
        raise _wrong(where, "at least one entry", value)
    # Each once, in the order of the file.
    return tuple(dict.fromkeys(_each(value, where, read)))


def _each(value: Any, where: str, read: Callable[[Any, str], str]) -> list[str]:
    """Every element of a list, read by `read` with its place."""
    if not isinstance(value, list):
        raise _wrong(where, "a list", value)
    return [read(one, f"{where}[{place}]") for place, one in enumerate(value)]


def _boolean(plain: dict[str, Any], name: str, *, default: bool) -> bool:
    """The member `name` as a boolean, or the default when it is missing; 0 and 1 are refused."""
    value = plain.get(name, default)
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def _object(value: Any, where: str, known: set[str] | None) -> dict[str, Any]:
    """`value` as a JSON object with no keys but `known` (any, when None)."""
    if not isinstance(value, dict):
        raise _wrong(where or "the policy", "an object", value)
    for name in value:
        if known is not None and name not in known:
            nearest = text.nearest(name, known)
            meant = f" (did you mean {nearest}?)" if nearest else ""
            expected = f"one of {', '.join(sorted(known))}"
            raise Problem(
                "policy_invalid",
                f"{where or 'the policy'}: unknown key {_shown(name)}{meant}, expected {expected}",
                _HINT,
            )
    return value


def _wrong(where: str, expected: str, found: Any) -> Problem:
    """Problem policy_invalid: where, what was expected, what was found."""
    return Problem("policy_invalid", f"{where}: expected {expected}, found {_shown(found)}", _HINT)


def _shown(value: Any) -> str:
    """A value as the operator wrote it, short and safe to print."""
    match value:
        case None:
            return "nothing"
        case str():
            return f'"{text.sanitise(value, MAX_SHOWN - 2)}"'
        case bool():
            return "true" if value else "false"
        case list():
            return f"a list of {len(value)}"
        case dict():
            return "an object"
        case _:
            return text.clip(str(value), MAX_SHOWN)
