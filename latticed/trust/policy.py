"""Whom the operator trusts, and with what (`trust.json`, contracts §4)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.model.capability import Risk


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
        """Whether the plugin id is one of this publisher's."""
        return not self.ids or any(_matches(pattern, plugin_id) for pattern in self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """What is trusted no more.

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
        release = version.partition("+")[0] or version
        entries = (f"{plugin_id}@{version}", f"{plugin_id}@{release}", f"{plugin_id}@*")
        return next((entry for entry in entries if entry in self.plugins), None)

    def __or__(self, other: Revoked) -> Revoked:
        return Revoked(
            keys=self.keys | other.keys, digests=self.digests | other.digests, plugins=self.plugins | other.plugins
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustPolicy:
    """The operator's word on publishers, unsigned bundles and revocations."""

    publishers: Mapping[str, Publisher] = field(default_factory=lambda: MappingProxyType({}))
    allow_unsigned_host_risk: bool = False
    require_signature: bool = True
    revoked: Revoked = Revoked()


NOBODY: Final = TrustPolicy()
"""Trusts nobody: what holds while there is no valid policy."""


def decode(data: bytes) -> TrustPolicy:
    """The policy in the bytes of a trust.json; Problem "policy_invalid" names the key that is wrong."""
    from latticed.trust import policy_fields  # reads into the shapes above, so it comes after them

    return policy_fields.decode(data)


def encode(policy: TrustPolicy) -> bytes:
    """The trust.json that `decode` reads as `policy`, with each publisher in its shortest form."""
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
    """`policy` and besides everything in `remembered` revoked: what the file forgets, the daemon does not (§4)."""
    return dataclasses.replace(policy, revoked=policy.revoked | remembered)


def with_publisher(policy: TrustPolicy, name: str, publisher: Publisher) -> TrustPolicy:
    """`policy` trusting `publisher` under `name`, instead of whoever had that name."""
    return dataclasses.replace(policy, publishers=MappingProxyType({**policy.publishers, name: publisher}))


def without_publisher(policy: TrustPolicy, name: str) -> TrustPolicy:
    """`policy` not trusting the publisher `name`; KeyError if it did not."""
    if name not in policy.publishers:
        raise KeyError(name)
    left = {other: publisher for other, publisher in policy.publishers.items() if other != name}
    return dataclasses.replace(policy, publishers=MappingProxyType(left))


def _plain(publisher: Publisher) -> str | list[str] | dict[str, Any]:
    if publisher.ids or publisher.max_risk is not None:
        plain: dict[str, Any] = {"keys": list(publisher.keys)}
        if publisher.ids:
            plain["ids"] = list(publisher.ids)
        if publisher.max_risk is not None:
            plain["max_risk"] = publisher.max_risk.word
        return plain
    return publisher.keys[0] if len(publisher.keys) == 1 else list(publisher.keys)


def _matches(pattern: str, plugin_id: str) -> bool:
    return plugin_id.startswith(pattern[:-1]) if pattern.endswith("*") else plugin_id == pattern
