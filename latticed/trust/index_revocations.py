"""What a market source takes back of what it offered, `revocations.json` beside its index, signed like it.

    {"schema": "latticed.market.revocations.v1", "generated_at": …, "revocations": [
        {"plugin": "acme.demo@1.2.0", "action": "freeze", "reason": "leaks tokens"},
        {"artifact_sha256": "7f3a…", "action": "kill", "reason": "built on a machine that was broken into"}],
     "signatures": […]}

It reaches plugins that came from that source, and no others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from latticed.kit import text
from latticed.model import ids
from latticed.model.errors import Problem
from latticed.trust import signed_document
from latticed.trust.signed_document import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from latticed.trust.signed_document import SignedDocument

SCHEMA: Final = "latticed.market.revocations.v1"
DOMAIN: Final = b"LATTICED-MARKET-REVOCATIONS-V1\n"
INVALID: Final = "revocations_invalid"
MOST: Final = 10_000

Action = Literal["block-install", "freeze", "kill"]
ACTIONS: Final[tuple[str, ...]] = get_args(Action)
"""From the mildest on: nothing new is taken; it is stopped, too; its bundle is removed, too."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_VERSION: Final = re.compile(r"\*|[0-9A-Za-z][0-9A-Za-z.+_~-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRevocation:
    """One revocation. `kind` is `plugins` (`value` is `id@version`, `id@*`) or `digests` (an artifact's SHA-256)."""

    kind: Literal["plugins", "digests"]
    value: str
    action: str
    reason: str

    def covers(self, plugin_id: str, version: str, sha256: str) -> bool:
        """Whether it is about this release; a version covers its builds, as in the trust policy."""
        return (self.kind, self.value) in covering(plugin_id, version, sha256)


def covering(plugin_id: str, version: str, sha256: str) -> frozenset[tuple[str, str]]:
    """The (kind, value) of all revocations that are about a release."""
    release = version.partition("+")[0] or version
    plugins = (f"{plugin_id}@{version}", f"{plugin_id}@{release}", f"{plugin_id}@*")
    return frozenset({("digests", sha256), *(("plugins", one) for one in plugins)})


def decode(data: bytes) -> tuple[SignedDocument, tuple[SourceRevocation, ...], tuple[str, ...]]:
    """The document, its revocations, and what was wrong with those that cannot be read; Problem revocations_invalid."""
    raw, document = signed_document.decode(data, schema=SCHEMA, domain=DOMAIN, code=INVALID)
    listed = raw.get("revocations")
    if not isinstance(listed, list) or len(listed) > MOST:
        raise Problem(INVALID, f"revocations: expected a list of at most {MOST}, found {shown(listed)}")
    found: list[SourceRevocation] = []
    refused: list[str] = []
    for place, one in enumerate(listed):
        made = read(one)
        if isinstance(made, str):
            refused.append(f"revocations[{place}]: {made}")
        else:
            found.append(made)
    return document, tuple(found), tuple(refused)


def holding(document: SignedDocument, *, pinned: Iterable[str], threshold: int, source: str) -> frozenset[str]:
    """The keys under which revocations hold; Problem revocations_unsigned when those are fewer than `threshold`."""
    found = document.held_by(pinned)
    if len(found) < threshold:
        expected = f"expected revocations.json of {source} to be signed by {threshold} pinned key(s)"
        raise Problem(
            "revocations_unsigned", f"{expected}, found {len(found)} that hold", "what was known stays in force"
        )
    return found


def read(raw: Any) -> SourceRevocation | str:
    """One entry, or what was expected of it."""
    if not isinstance(raw, dict):
        return f"expected an object, found {shown(raw)}"
    action, plugin, digest = raw.get("action"), raw.get("plugin"), raw.get("artifact_sha256")
    if action not in ACTIONS:
        return f"action: expected one of {', '.join(ACTIONS)}, found {shown(action)}"
    reason = text.sanitise(raw["reason"], 200) if isinstance(raw.get("reason"), str) else ""
    if isinstance(digest, str) and plugin is None and _SHA256.fullmatch(digest):
        return SourceRevocation(kind="digests", value=digest, action=action, reason=reason)
    plugin_id, _, version = plugin.partition("@") if isinstance(plugin, str) else ("", "", "")
    if digest is None and ids.is_valid(plugin_id) and _VERSION.fullmatch(version):
        return SourceRevocation(kind="plugins", value=f"{plugin_id}@{version}", action=action, reason=reason)
    return f"expected plugin (ID@VERSION, ID@*) or artifact_sha256 (64 hex digits), found {shown(plugin or digest)}"


def signing_payload(raw: dict[str, Any]) -> bytes:
    """The bytes that each signature of the revocations `raw` (a JSON object) covers."""
    return signed_document.signing_payload(raw, DOMAIN)


def signed(raw: dict[str, Any], *, publisher: str, key: Ed25519PrivateKey) -> dict[str, Any]:
    """`raw` with a signature by `key` added, labelled `publisher`, in place of those of this key."""
    return signed_document.signed(raw, DOMAIN, publisher=publisher, key=key)


def empty() -> dict[str, Any]:
    """Revocations that take nothing back, unsigned."""
    return {"schema": SCHEMA, "generated_at": "", "revocations": []}


def with_revocation(raw: dict[str, Any], one: SourceRevocation) -> dict[str, Any]:
    """`raw` with one more revocation; what of it other tools wrote stays, in its order.

    Of the same plugin or artifact it takes the place of a milder one. Problem exists for one that is harsher already:
    hosts that have seen it go by it for good.
    """
    field = "artifact_sha256" if one.kind == "digests" else "plugin"
    made = {field: one.value, "action": one.action, **({"reason": one.reason} if one.reason else {})}
    kept = []
    for other in raw.get("revocations", []):
        known = read(other)
        if isinstance(known, str) or (known.kind, known.value) != (one.kind, one.value):
            kept.append(other)
        elif ACTIONS.index(known.action) > ACTIONS.index(one.action):
            detail = f"expected {one.value} to be taken back by {one.action} at most, found {known.action}"
            raise Problem("exists", detail, "a revocation holds for good: publish another version")
    return {**raw, "revocations": [*kept, made]}
