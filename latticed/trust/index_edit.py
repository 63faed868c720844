"""Changing the index of a marketplace, as an author does; what comes out is what `index.decode` takes in. Pure.

`raw` is the JSON object of a plugins.json. No function changes it in place. What another tool put into it stays.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from latticed.model import semver_range
from latticed.model.errors import Problem
from latticed.trust import index, signed_document

if TYPE_CHECKING:
    from latticed.model.manifest import Manifest

MANIFEST: Final = "manifest.json"
ARTIFACT: Final = "artifact"


def empty() -> dict[str, Any]:
    """An index without plugins; unsigned, so that nothing can be installed from it yet."""
    return {"schema": index.SCHEMA, "generated_at": "", "status": "official", "publishers": [], "plugins": []}


def place(plugin_id: str, version: str) -> str:
    """Where a release's two files are below the index's directory, and below its URL."""
    return f"{plugin_id}/{version}"


def with_publisher(raw: dict[str, Any], publisher: str, key: str) -> dict[str, Any]:
    """`raw` with this public key (base64) for a publisher, in place of the one it had."""
    others = [one for one in raw.get("publishers", []) if one.get("id") != publisher]
    before: dict[str, Any] = next((one for one in raw.get("publishers", []) if one.get("id") == publisher), {})
    made = {"id": publisher, "name": publisher, **before, "public_key_ed25519": key}
    return {**raw, "publishers": sorted([*others, made], key=lambda one: str(one.get("id")))}


def with_release(
    raw: dict[str, Any],
    manifest: Manifest,
    *,
    url: str,
    channel: str,
    summary: str,
    artifact_bytes: int,
    changelog_url: str = "",
) -> dict[str, Any]:
    """`raw` with the release that `manifest` is signed for, whose files are below `url` at `place`.

    The channel names it when it has none, or a lower version. An empty `summary` keeps the one before, or takes the
    manifest's description; an empty `changelog_url` keeps the one before. Problem exists when that version is there
    with other bytes: a release never changes; index_invalid for an entry that has no such lists.
    """
    plugins = raw.get("plugins", [])
    entry: dict[str, Any] = next((one for one in plugins if one.get("id") == manifest.id), {})
    if entry and entry.get("publisher") != manifest.publisher:
        expected = f"expected {manifest.id} from {str(entry.get('publisher'))[:128]}, as in the index"
        raise Problem("publisher_changed", f"{expected}, found publisher {manifest.publisher}")
    listed, before_channels = entry.get("releases", []), entry.get("channels", {})
    whole = isinstance(listed, list) and all(isinstance(one, dict) for one in listed)
    if not whole or not isinstance(before_channels, dict):
        expected = f"expected a list of objects as releases of {manifest.id}, and an object as channels"
        raise Problem(index.INVALID, f"{expected}, found another kind", "correct it by hand")
    made = {
        "version": manifest.version,
        "channel": channel,
        "capabilities": list(manifest.capabilities),
        "manifest_url": f"{url}/{place(manifest.id, manifest.version)}/{MANIFEST}",
        "artifact_url": f"{url}/{place(manifest.id, manifest.version)}/{ARTIFACT}",
        "artifact_sha256": manifest.digest_sha256.lower(),
        "signature_ed25519": manifest.signature_ed25519,
        "artifact_bytes": artifact_bytes,
    }
    releases = [one for one in listed if one.get("version") != manifest.version]
    before = next((one for one in listed if one.get("version") == manifest.version), made)
    for name in ("artifact_sha256", "signature_ed25519"):
        if before.get(name) != made[name]:
            detail = f"expected {manifest.id} {manifest.version} to stay as it was published, found another {name}"
            raise Problem("exists", detail, "raise its version, sign and add it again")
    channels = {name: one for name, one in before_channels.items() if one != manifest.version}
    if _newer(manifest.version, channels.get(channel, "")):
        channels[channel] = manifest.version
    after = {
        "id": manifest.id,
        "name": manifest.name,
        "publisher": manifest.publisher,
        "type": manifest.type,
        "summary": summary or entry.get("summary") or " ".join(manifest.description.split())[: index.MAX_SUMMARY],
        "channels": channels,
        "capabilities": list(manifest.capabilities),
        "releases": [*releases, made],
    }
    if changelog_url:
        after["changelog_url"] = changelog_url
    latest = {"latest": channels["stable"]} if "stable" in channels else {}
    kept = {name: value for name, value in entry.items() if name not in {*after, "latest"}}
    others = [one for one in plugins if one.get("id") != manifest.id]
    return {**raw, "plugins": sorted([*others, {**after, **latest, **kept}], key=lambda one: str(one.get("id")))}


def dated(raw: dict[str, Any], *, now_s: int) -> dict[str, Any]:
    """`raw` with another `generated_at` and no signatures: now, or a second after the one that it had.

    Problem index_from_future for one that is dated ahead of this clock: hosts would not take it back.
    """
    before = signed_document.moment(raw.get("generated_at")) or 0
    if before > now_s + signed_document.SKEW_S:
        expected = f"expected generated_at by now, found {str(raw.get('generated_at'))[:40]}"
        raise Problem("index_from_future", expected, "check this host's clock: hosts refuse an index that goes back")
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(max(now_s, before + 1)))
    return {**{name: value for name, value in raw.items() if name != signed_document.SIGNATURES}, "generated_at": at}


def _newer(version: str, than: str) -> bool:
    """Whether a channel goes from one version to another: upwards, and to what has no order."""
    order = semver_range.compare(version, than) if than else 1
    return order is None or order > 0
