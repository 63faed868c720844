"""latticectl index validate: the index, its signatures and the files beside it, as a host would judge them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import offline, policy_file
from latticed.ctl.exit_codes import ExitCode
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.ctl.session import CtlSession
    from latticed.trust.index import Index, IndexEntry, Release
    from latticed.trust.policy import TrustPolicy

MAX_BYTES: Final = 64 << 20
"""Most bytes of an index that is read here; what hosts take is `market.index_bytes`."""

Finding = dict[str, str]
"""`where` (an id and version, or `index`), `code`, `reason`."""


def load(path: Path) -> dict[str, Any]:
    """The index's JSON object, which is one that hosts can read; Problem."""
    from latticed.kit import strict_json
    from latticed.trust import index

    data = read(path)
    index.decode(data)
    raw = strict_json.loads(data, integers_only=True)
    for name in ("publishers", "plugins"):
        # `decode` lists what it cannot take as refused; it cannot be changed here without losing it.
        if not all(isinstance(one, dict) for one in raw.get(name, [])):
            raise Problem("index_invalid", f"{path}: {name}: expected objects only", "correct it by hand")
    return dict(raw)


def run(session: CtlSession) -> int:
    """Print what is wrong; exit code 6 when anything is."""
    from latticed.trust import index

    args = session.args
    data = read(Path(args.index))
    found = index.decode(data)
    trusted = policy_file.read(Path(args.trust)) if args.trust else _claimed(found)
    taken_back = Path(args.index).with_name("revocations.json")
    findings = [
        *_of_size("index", data),
        *_of_index(found, args.index_key),
        *(_of_revocations(taken_back, args.index_key) if taken_back.exists() else ()),
        *_of_releases(found, Path(args.index).parent, trusted),
    ]
    releases = sum(len(one.releases) for one in found.entries.values())
    told = {
        "path": args.index,
        "ok": not findings,
        "status": found.status,
        "generated_at": found.document.generated_at,
        "plugins": len(found.entries),
        "releases": releases,
        "findings": findings,
    }
    if taken_back.exists():
        for note in _named_by_channels(found, taken_back):
            session.screen.note(note)
    if session.screen.json_wanted:
        session.screen.json(told)
        return ExitCode.REFUSED if findings else ExitCode.OK
    for one in findings:
        session.screen.line(f"{one['where']}: {one['code']}:", one["reason"])
    if findings:
        session.screen.line(f"{args.index}: {len(findings)} findings")
        return ExitCode.REFUSED
    session.screen.line(f"{args.index}: {len(found.entries)} plugins, {releases} releases, nothing wrong")
    if not args.index_key:
        session.screen.hint("its signature was not checked: name the keys that hosts pin, --index-key KEY")
    return ExitCode.OK


def read(path: Path) -> bytes:
    """The bytes of the index; Problem not_found, io_error."""
    from latticed.kit import files

    try:
        return files.read_at_most(path, MAX_BYTES)
    except FileNotFoundError as error:
        raise Problem("not_found", f"expected an index at {path}, found nothing", "latticectl index add") from error
    except (OSError, ValueError) as error:
        raise Problem("io_error", f"cannot read {path}: {error}") from error


def _claimed(found: Index) -> TrustPolicy:
    """A policy that trusts the publishers that the index names, with its keys."""
    from latticed.trust import policy

    trusted = policy.NOBODY
    for publisher, key in found.publishers.items():
        trusted = policy.with_publisher(trusted, publisher, policy.Publisher(keys=(key,)))
    return trusted


def _of_size(where: str, data: bytes) -> Iterator[Finding]:
    """Whether hosts read a file of this size, unless their settings say otherwise."""
    from latticed.settings.market import MarketSettings

    most = MarketSettings().index_bytes
    if len(data) > most:
        reason = f"expected at most {most} bytes, which hosts read (market.index_bytes), found {len(data)}"
        yield {"where": where, "code": "fetch_too_large", "reason": reason}


def _of_index(found: Index, given: list[str]) -> Iterator[Finding]:
    """What is wrong with the index as a whole."""
    from latticed.trust import index

    for reason in found.refused:
        yield {"where": "index", "code": "entry_refused", "reason": reason}
    if not given:
        return
    pinned = _pinned(given)
    try:
        # Every key that was named: hosts may pin any of them, or ask for several.
        judged = index.judge(found, pinned=pinned, threshold=len(set(pinned)), seen=None, now_s=int(time.time()))
    except Problem as problem:
        yield {"where": "index", "code": problem.code, "reason": problem.reason}
    else:
        if judged.browse_only:
            yield {"where": "index", "code": "browse_only", "reason": judged.browse_only}


def _of_revocations(path: Path, given: list[str]) -> Iterator[Finding]:
    """What is wrong with the revocations beside the index: hosts take all of the file, or none of it."""
    from latticed.trust import index_revocations, signed_document

    data = read(path)
    yield from _of_size(path.name, data)
    try:
        document, _, refused = index_revocations.decode(data)
        pinned = _pinned(given)
        holding = index_revocations.holding(document, pinned=pinned, threshold=len(set(pinned)), source="the index")
        signed_document.judge(document, holding=holding, pinned=pinned, seen=None, now_s=int(time.time()))
    except Problem as problem:
        if problem.code == "usage":
            raise
        yield {"where": path.name, "code": problem.code, "reason": problem.reason}
    else:
        yield from ({"where": path.name, "code": "entry_refused", "reason": one} for one in refused)


def _named_by_channels(found: Index, path: Path) -> Iterator[str]:
    """Channels that name a release which the revocations take back.

    No finding: hosts take both files, and the last release of a channel can be taken back before there is another.
    """
    from latticed.trust import index_revocations

    try:
        taken = {(one.kind, one.value) for one in index_revocations.decode(read(path))[1]}
    except Problem:
        return  # `_of_revocations` says so
    for entry in found.entries.values():
        for channel, version in entry.channels.items():
            release = entry.release(version)
            if release and taken & index_revocations.covering(entry.id, version, release.artifact_sha256):
                what = f"channel {channel} names {version}, which {path.name} takes back"
                yield f"{entry.id}: {what}: hosts install nothing of that channel until a higher version is added"


def _pinned(given: list[str]) -> list[str]:
    """The keys that --index-key names; Problem usage."""
    from latticed.trust import policy

    try:
        return [policy.public_key(one, "--index-key") for one in given]
    except Problem as problem:
        raise Problem("usage", problem.reason, "latticectl key show FILE prints it") from problem


def _of_releases(found: Index, directory: Path, trusted: TrustPolicy) -> Iterator[Finding]:
    """What is wrong with each plugin and release."""
    for entry in found.entries.values():
        if entry.unsupported:
            yield {"where": entry.id, "code": "unsupported", "reason": entry.unsupported}
        for release in entry.releases:
            where = f"{entry.id} {release.version}"
            if release.unsupported:
                yield {"where": where, "code": "unsupported", "reason": release.unsupported}
                continue
            yield from ({"where": where, **one} for one in _of_files(entry, release, directory, trusted))


def _of_files(entry: IndexEntry, release: Release, directory: Path, trusted: TrustPolicy) -> Iterator[Finding]:
    """What our verifier says of the release's files, when they are beside the index."""
    from latticed.bundle import decode
    from latticed.bundle.read import ReadLimits
    from latticed.trust import index, index_edit

    place = index_edit.place(entry.id, release.version)
    if not release.manifest_url.endswith(f"/{place}/{index_edit.MANIFEST}"):
        yield {"code": "elsewhere", "reason": f"expected a manifest_url that ends in {place}/{index_edit.MANIFEST}"}
        return
    # Versions and ids that `index.decode` takes have no separators and no steps up.
    verdict = offline.judge(str(directory / place), trusted, ReadLimits())
    if not verdict.ok:
        yield {"code": str(verdict.code), "reason": str(verdict.reason)}
        return
    try:
        manifest = decode.decode(offline.manifest_bytes(str(directory / place)))[1]
        index.check_manifest(manifest, entry, release)
    except Problem as problem:
        yield {"code": problem.code, "reason": problem.reason}
