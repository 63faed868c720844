"""The index of a marketplace, `plugins.json` of schema `lattice.plugin.index.v1`: what it says, and what it is worth.

The document as a whole is accepted or refused; an entry or a release that this version cannot take is listed with the
reason and never spoils the others. The publishers of an index are told to the operator and alter no trust: whose
bundles are taken is the policy's (contracts §4).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from latticed.kit import text
from latticed.model import capability, hosts, ids
from latticed.model.errors import Problem
from latticed.model.manifest import PluginType
from latticed.trust import keys, signed_document
from latticed.trust.signed_document import SKEW_S, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from latticed.model.manifest import Manifest
    from latticed.trust.signed_document import SeenDocument, SignedDocument


SCHEMA: Final = "lattice.plugin.index.v1"
DOMAIN: Final = b"LATTICE-PLUGIN-INDEX-V1\n"
"""First in what is signed, so that no other signature of a key can pass for one of an index."""
MAX_PLUGINS: Final = 100_000
MAX_RELEASES: Final = 1_000
"""Of one plugin."""
MAX_SUMMARY: Final = 1_000
"""Characters."""
CHANNELS: Final = ("stable", "alpha")
INVALID: Final = "index_invalid"

Status = Literal["draft", "official", "example"]
STATUSES: Final[tuple[str, ...]] = get_args(Status)

_TYPES: Final[tuple[str, ...]] = get_args(PluginType)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
# Versions become parts of names of directories, so less than a manifest may write.
_VERSION: Final = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z.+_~-]{0,63})", re.ASCII)
_URL: Final = re.compile(r"(https|file)://([^/?#@\\]*)((?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)+)", re.ASCII)
_PORT: Final = re.compile(r":([1-9][0-9]{0,4})?", re.ASCII)
_MAX_URL: Final = 2_048
# What the files of other bundle formats end in: of ours an artifact is one file, run as it is.
_ARCHIVES: Final = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.zst", ".tar.bz2", ".zip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One release. `unsupported` says why this host cannot install it; empty when nothing in the index speaks against.

    `capabilities` are the release's, or the plugin's where it names none; the signed manifest decides in the end. Text
    of a release that is unsupported is cut and escaped. `changelog_url` (the release's, or the plugin's) and
    `artifact_bytes` are for people to read: empty and 0 where the index has none.
    """

    version: str
    channel: str
    capabilities: tuple[str, ...]
    manifest_url: str
    artifact_url: str
    artifact_sha256: str
    signature_ed25519: str
    changelog_url: str = ""
    artifact_bytes: int = 0
    unsupported: str = ""

    @property
    def sha256(self) -> str:
        """Of artifact and manifest (hex), as the signature stands for that: with another one it is another release."""
        return hashlib.sha256(f"{self.artifact_sha256} {self.signature_ed25519}".encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """One plugin. `channels` says which version a channel has now; `unsupported` is why none can be installed."""

    id: str
    name: str
    publisher: str
    type: str
    summary: str
    channels: Mapping[str, str]
    capabilities: tuple[str, ...]
    releases: tuple[Release, ...]
    unsupported: str = ""

    def release(self, version: str) -> Release | None:
        """The release of this version, or None."""
        return next((one for one in self.releases if one.version == version), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """A decoded index, its entries by plugin id. `refused` are entries without a usable id, and what was wrong.

    `publishers` are keys (canonical base64) by publisher id, as the index claims them.
    """

    document: SignedDocument
    status: Status
    publishers: Mapping[str, str]
    entries: Mapping[str, IndexEntry]
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedIndex:
    """An index that a source may show. `browse_only` says why nothing of it can be installed; empty when it can.

    `seen` is what to remember of it; None for an index that no pinned key signed.
    """

    browse_only: str
    seen: SeenDocument | None


def decode(data: bytes) -> Index:
    """The index in the bytes of a plugins.json; Problem index_invalid when it is none."""
    raw, document = signed_document.decode(data, schema=SCHEMA, domain=DOMAIN, code=INVALID)
    status = raw.get("status")
    if status not in STATUSES:
        raise Problem(INVALID, f"status: expected one of {', '.join(STATUSES)}, found {shown(status)}")
    publishers, refused = _publishers(_list(raw, "publishers", MAX_PLUGINS))
    entries: dict[str, IndexEntry] = {}
    twice: set[str] = set()
    for place, one in enumerate(_list(raw, "plugins", MAX_PLUGINS)):
        try:
            entry = _entry(one)
        except _EntryRefused as error:
            refused.append(f"plugins[{place}]: {error}")
            continue
        if entry.id in entries:
            twice.add(entry.id)
        entries[entry.id] = entry
    for plugin_id in sorted(twice):
        # Which of them is meant nobody can say.
        del entries[plugin_id]
        refused.append(f"expected one entry for {plugin_id}, found several")
    return Index(
        document=document,
        status=status,
        publishers=MappingProxyType(publishers),
        entries=MappingProxyType(entries),
        refused=tuple(refused),
    )


def signing_payload(raw: dict[str, Any]) -> bytes:
    """The bytes that each signature of the index `raw` (a JSON object) covers."""
    return signed_document.signing_payload(raw, DOMAIN)


def signed(raw: dict[str, Any], *, publisher: str, key: Ed25519PrivateKey) -> dict[str, Any]:
    """`raw` with a signature by `key` added, labelled `publisher`, in place of those of this key."""
    return signed_document.signed(raw, DOMAIN, publisher=publisher, key=key)


def judge(
    index: Index, *, pinned: Iterable[str], threshold: int = 1, seen: SeenDocument | None, now_s: int
) -> JudgedIndex:
    """Whether `index` may take the place of the last one of its source, and whether anything of it can be installed.

    `pinned` are the source's keys (canonical base64), `threshold` how many of them have to have signed, `seen` what was
    remembered of the last signed index. Problem index_unsigned, index_signature_invalid, index_from_future,
    index_rolled_back, index_changed: then the last one stays in use. Age is no part of this: `too_old`.
    """
    pinned = frozenset(pinned)
    holding = index.document.held_by(pinned)
    if len(holding) >= threshold:
        kept = signed_document.judge(index.document, holding=holding, pinned=pinned, seen=seen, now_s=now_s)
        browse_only = "" if index.status == "official" else f"its status is {index.status}, not official"
        return JudgedIndex(browse_only=browse_only, seen=kept)
    if pinned and index.document.signatures:
        expected = "a signature" if threshold == 1 else f"signatures of {threshold} keys"
        raise Problem(
            "index_signature_invalid",
            f"expected {expected} that a pinned key of the source made, found {len(holding)} that hold",
            "the index was changed, or is of somebody else; pin a new key only after asking the source",
        )
    if index.status == "official":
        raise Problem(
            "index_unsigned",
            "expected an official index to be signed by a pinned key of the source, found no signature"
            if pinned
            else "expected pinned keys for an official index, found none",
            "pin the source's index keys: market.sources.NAME.keys",
        )
    if seen is not None and seen.keys & pinned:
        raise Problem(
            "index_unsigned",
            f"expected a signed index, as that of {seen.generated_at} was, found one without",
            "somebody serves another index; the signed one stays in use",
        )
    return JudgedIndex(browse_only=f"it is not signed (status {index.status})", seen=None)


def too_old(document: SignedDocument, *, max_age_s: int, now_s: int) -> bool:
    """Whether a document is older than its source allows: nothing new is installed by it, what runs keeps running.

    One dated ahead by more than SKEW_S counts as too old, too: this host's clock went back since it was accepted.
    """
    return not document.generated_s - SKEW_S <= now_s <= document.generated_s + max_age_s


def url_fault(url: Any) -> str:
    """Why this is no address that an index may name; empty for a good one.

    HTTPS, or `file:` (whether a source may have those is the caller's); no user name, query, fragment, no step up or
    encoded slash in the path. Where its host leads is judged when it is dialled.
    """
    if not isinstance(url, str) or len(url) > _MAX_URL or (found := _URL.fullmatch(url)) is None:
        return f"expected https://HOST/PATH without user, query and fragment, found {shown(url)}"
    scheme, authority, path = found.groups()
    if scheme == "file" and authority:
        return f"expected file:///PATH, found {shown(url)}"
    if scheme == "https" and not _is_authority(authority):
        return f"expected https://HOST/PATH, found {shown(url)}"
    for step in path.split("/"):
        plain = _unquoted(step)
        if plain in {".", ".."} or plain is None:
            return f"expected a path without steps up and encoded separators, found {shown(url)}"
    return ""


def _is_authority(authority: str) -> bool:
    """Whether `HOST` or `HOST:PORT`."""
    host, bracket, after = authority.rpartition("]") if authority.startswith("[") else (authority, "", "")
    if not bracket:
        host, colon, port = authority.partition(":")
        after = colon + port
    port_ok = not after or ((found := _PORT.fullmatch(after)) is not None and int(found[1] or 1) <= 65535)
    try:
        hosts.normal(host + bracket)
    except hosts.NotAHost:
        return False
    return port_ok


def _unquoted(step: str) -> str | None:
    """One step of a path, decoded; None when it hides a separator or a control character, or is badly encoded."""
    from urllib.parse import unquote_to_bytes

    if re.search(r"%(?![0-9A-Fa-f]{2})", step):
        return None
    plain = unquote_to_bytes(step)
    if any(byte in b"/\\%?#" or byte < 0x20 or byte == 0x7F for byte in plain):
        return None
    try:
        return plain.decode()
    except UnicodeDecodeError:
        return None


class _EntryRefused(Exception):
    """An entry that cannot be listed under its id; the message is safe to show."""


def _entry(raw: Any) -> IndexEntry:
    """One plugin of the index; _EntryRefused when it has no id that could name a plugin."""
    if not isinstance(raw, dict):
        raise _EntryRefused(f"expected an object, found {shown(raw)}")
    plugin_id = raw.get("id")
    if not isinstance(plugin_id, str) or not ids.is_valid(plugin_id) or ids.is_reserved_plugin(plugin_id):
        raise _EntryRefused(f"expected the id of a plugin, found {shown(plugin_id)}")
    capabilities = _texts(raw.get("capabilities", []))
    releases = raw.get("releases", [])
    faults: list[str] = []
    if not isinstance(releases, list) or not 1 <= len(releases) <= MAX_RELEASES:
        faults.append(f"expected 1 to {MAX_RELEASES} releases, found {shown(releases)}")
        releases = []
    found = tuple(_release(one, capabilities, raw.get("changelog_url")) for one in releases)
    if len({one.version for one in found}) != len(found):
        faults.append("expected each version once, found one several times")
    publisher, plugin_type = raw.get("publisher"), raw.get("type")
    if not isinstance(publisher, str) or not ids.is_valid(publisher) or publisher == ids.RESERVED_PUBLISHER:
        faults.append(f"expected the id of a publisher, found {shown(publisher)}")
    if plugin_type not in _TYPES:
        faults.append(f"expected type {', '.join(_TYPES)}, found {shown(plugin_type)}")
    faults += _channel_faults(raw, found)
    return IndexEntry(
        id=plugin_id,
        name=_line(raw.get("name", plugin_id), 80),
        publisher=_line(publisher, 128),
        type=_line(plugin_type, 16),
        summary=_line(raw.get("summary", ""), MAX_SUMMARY),
        channels=_channels(raw),
        capabilities=capabilities,
        releases=found,
        unsupported="; ".join(faults[:3]),
    )


def _channels(raw: dict[str, Any]) -> Mapping[str, str]:
    """The map of channels, as far as it is one; `latest` (older tools) stands for a stable channel."""
    value = raw.get("channels", {})
    found = {name: one for name, one in value.items() if isinstance(one, str)} if isinstance(value, dict) else {}
    if not found and isinstance(raw.get("latest"), str):
        found = {"stable": raw["latest"]}
    return MappingProxyType({name: text.sanitise(found[name], 64) for name in CHANNELS if name in found})


def _channel_faults(raw: dict[str, Any], releases: tuple[Release, ...]) -> list[str]:
    """What is wrong with `channels` and `latest`: each has to name a release, of that channel."""
    channels = raw.get("channels", {})
    if not isinstance(channels, dict):
        return [f"channels: expected an object, found {shown(channels)}"]
    faults = []
    for name, version in channels.items():
        if name not in CHANNELS:
            faults.append(f"channels: expected {' and '.join(CHANNELS)}, found {shown(name)}")
        elif not any(one.version == version and one.channel == name for one in releases):
            faults.append(f"channels.{name}: expected the version of a release of that channel, found {shown(version)}")
    latest = raw.get("latest", channels.get("stable"))
    if latest is not None and latest != channels.get("stable", latest):
        faults.append(f"latest: expected channels.stable ({shown(channels.get('stable'))}), found {shown(latest)}")
    return faults


def _release(raw: Any, default: tuple[str, ...], changelog: Any) -> Release:
    """One release, with the first reason why it cannot be installed; `default` are the plugin's capabilities, and
    `changelog` its changelog's URL.
    """
    if not isinstance(raw, dict):
        raw = {}
    capabilities = _texts(raw["capabilities"]) if "capabilities" in raw else default
    fault = next((fault for fault in _release_faults(raw, capabilities) if fault), "")
    changelog, size = raw.get("changelog_url", changelog), raw.get("artifact_bytes")
    return Release(
        version=_line(raw.get("version", ""), 64),
        channel=_line(raw.get("channel", "stable"), 32),
        capabilities=capabilities,
        manifest_url=_line(raw.get("manifest_url", ""), _MAX_URL),
        artifact_url=_line(raw.get("artifact_url", ""), _MAX_URL),
        artifact_sha256=_line(raw.get("artifact_sha256", ""), 64),
        signature_ed25519=_line(raw.get("signature_ed25519", ""), 88),
        # Shown, never fetched: a wrong one spoils nothing.
        changelog_url=changelog if not url_fault(changelog) and changelog.startswith("https:") else "",
        artifact_bytes=size if isinstance(size, int) and not isinstance(size, bool) and 0 < size < 1 << 40 else 0,
        unsupported=fault,
    )


def _release_faults(raw: dict[str, Any], capabilities: tuple[str, ...]) -> Iterable[str]:
    """What is wrong with one release, or empty texts."""
    version, channel = raw.get("version"), raw.get("channel", "stable")
    if not isinstance(version, str) or not _VERSION.fullmatch(version) or ".." in version:
        yield f"version: expected 1 to 64 of 0-9 A-Z a-z . + - _ ~, found {shown(version)}"
    if channel not in CHANNELS:
        yield f"channel: expected {' or '.join(CHANNELS)}, found {shown(channel)}"
    unknown = [name for name in capabilities if name not in capability.RISKS]
    if unknown:
        yield f"capabilities that this version of latticed does not know: {', '.join(map(shown, unknown[:5]))}"
    if not capabilities or len(set(capabilities)) != len(capabilities):
        yield "capabilities: expected at least one, each once"
    yield url_fault(raw.get("manifest_url"))
    artifact_url = raw.get("artifact_url")
    yield url_fault(artifact_url)
    if str(artifact_url).lower().endswith(_ARCHIVES):
        yield f"another bundle format: expected the artifact as one file, found an archive ({shown(artifact_url)})"
    digest = raw.get("artifact_sha256")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        yield f"artifact_sha256: expected 64 hex digits in lower case, found {shown(digest)}"
    signature = raw.get("signature_ed25519")
    try:
        keys.decode_base64(signature if isinstance(signature, str) else "", size=keys.SIGNATURE_BYTES)
    except keys.BadText as error:
        yield f"signature_ed25519: {error}"


def _publishers(values: list[Any]) -> tuple[dict[str, str], list[str]]:
    """Keys by publisher id, and what was wrong with those that are left out."""
    found: dict[str, str] = {}
    refused = []
    for place, one in enumerate(values):
        publisher = one.get("id") if isinstance(one, dict) else None
        try:
            if not isinstance(publisher, str) or not ids.is_valid(publisher) or publisher in found:
                raise keys.BadText(f"expected a publisher id, once, found {shown(publisher)}")
            found[publisher] = keys.encode_base64(keys.decode_public(str(one.get("public_key_ed25519"))))
        except keys.BadText as error:
            refused.append(f"publishers[{place}]: {error}")
    return found, refused


def _list(raw: dict[str, Any], name: str, limit: int) -> list[Any]:
    """A member of the index that has to be a list of at most `limit`; Problem index_invalid."""
    value = raw.get(name, [])
    if not isinstance(value, list) or len(value) > limit:
        raise Problem(INVALID, f"{name}: expected a list of at most {limit}, found {shown(value)}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    """A list of texts, 64 at most, each cut and escaped; what is no list of texts has one name that nobody knows."""
    if not isinstance(value, list) or len(value) > 64 or not all(isinstance(one, str) for one in value):
        return ("(no list of names)",)
    return tuple(text.sanitise(one, 64) for one in value)


def _line(value: Any, limit: int) -> str:
    """A text of the index, cut and escaped; empty for what is no text."""
    return text.sanitise(value, limit) if isinstance(value, str) else ""


def check_manifest(manifest: Manifest, entry: IndexEntry, release: Release) -> None:
    """Problem index_mismatch unless the signed manifest is the one that the index offers.

    The manifest is what counts; an index that says otherwise is of another release, or lies.
    """
    offered = {
        "id": (entry.id, manifest.id),
        "version": (release.version, manifest.version),
        "publisher": (entry.publisher, manifest.publisher),
        "type": (entry.type, manifest.type),
        "artifact_sha256": (release.artifact_sha256, manifest.digest_sha256.lower()),
        "capabilities": (", ".join(sorted(release.capabilities)), ", ".join(sorted(manifest.capabilities))),
        "signature_ed25519": (_padded(release.signature_ed25519), _padded(manifest.signature_ed25519)),
    }
    for name, (expected, found) in offered.items():
        if expected != found:
            raise Problem(
                "index_mismatch",
                f"expected the signed manifest to have {name} {expected[:100]}, as the index says, found {found[:100]}",
                "the source's index and its files do not fit together: tell the source",
            )


def _padded(signature: str) -> str:
    """A signature with its padding: both spellings are one value."""
    try:
        return keys.encode_base64(keys.decode_base64(signature, size=keys.SIGNATURE_BYTES))
    except keys.BadText:
        return signature
