"""latticectl index: make the signed index of a marketplace, and check it as hosts will; without a daemon or network."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import author_key, index_check, index_revoke, offline, signed_file
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession
    from latticed.model.manifest import Manifest

EXAMPLES: Final = examples(
    "latticectl index add --url https://plugins.example.org --key index.key site/plugins.json ./acme.demo \\",
    '    --publisher-key "$(latticectl key show acme.key)"   # the first time of a publisher',
    "latticectl index revoke --plugin acme.demo@1.2.0 --action freeze --reason 'leaks tokens' \\",
    "    --key index.key site/plugins.json",
    "latticectl index sign --key index.key site/plugins.json                # anew, before it is too old",
    'latticectl index validate --index-key "$(latticectl key show index.key)" site/plugins.json',
)


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = _action(actions, "add", "put signed bundles beside the index and into it; with a key, sign it")
    add.add_argument("bundles", metavar="DIR", type=str, nargs="+", help="a signed bundle")
    add.add_argument("--url", required=True, help="where the index's directory will be served")
    add.add_argument(
        "--channel", choices=("stable", "alpha"), default="stable", help="channel of the release (default stable)"
    )
    add.add_argument("--summary", default="", help="one line for people (default: the manifest's description)")
    add.add_argument(
        "--changelog", metavar="URL", default="", help="where people read what changed; kept until another"
    )
    add.add_argument("--publisher-key", metavar="KEY", help="the publisher's public key; the index keeps it")
    signed_file.add_arguments(add, required=False)
    sign = _action(actions, "sign", "date the index anew and sign it, and revocations.json beside it")
    sign.add_argument("--keep", action="store_true", help="keep date and signatures, and add one of another key")
    sign.add_argument("--status", choices=("official", "draft", "example"), help="what the index says that it is")
    signed_file.add_arguments(sign, required=True)
    revoke = _action(actions, "revoke", "take releases back, in the signed revocations.json beside the index")
    index_revoke.arguments(revoke)
    validate = _action(actions, "validate", "check index and files as hosts will; exit 6 when something is wrong")
    validate.add_argument("--index-key", metavar="KEY", action="append", default=[], help="a key that hosts pin")
    validate.add_argument("--trust", metavar="FILE", type=str, help="judge by this trust.json, not the index's keys")


def _action(actions: Any, name: str, summary: str) -> Any:
    """The parser of one action, with the index as its first argument."""
    parser = actions.add_parser(name, help=summary, description=summary)
    parser.add_argument("index", metavar="INDEX", type=str, help="the file plugins.json")
    return parser


def run(session: CtlSession) -> int:
    """Carry out the action."""
    match session.args.action:
        case "add":
            return _add(session)
        case "sign":
            return _sign(session)
        case "revoke":
            return index_revoke.run(session)
        case _:
            return index_check.run(session)


def _add(session: CtlSession) -> int:
    """Check every bundle, then copy their files, then write the index: whatever ends it leaves the old index."""
    from latticed.kit import files
    from latticed.trust import index_edit

    args = session.args
    path, url = Path(args.index), _url(args.url)
    # The key first: asked for its passphrase, an author may give up before anything is written.
    key = author_key.read(args) if author_key.given(args) else None
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise Problem("io_error", f"cannot make {path.parent}: {error.strerror}") from error
    added = []
    with signed_file.locked(path.parent):
        raw = index_check.load(path) if path.exists() else index_edit.empty()
        for directory in args.bundles:
            manifest, copies = _bundle(raw, directory, args.publisher_key)
            raw = index_edit.with_publisher(raw, manifest.publisher, _key_of(raw, manifest, args.publisher_key))
            raw = index_edit.with_release(
                raw,
                manifest,
                url=url,
                channel=args.channel,
                summary=args.summary,
                artifact_bytes=len(copies[index_edit.ARTIFACT]),
                changelog_url=_changelog(args.changelog),
            )
            added.append((manifest, copies))
        _check_offered(path, raw, [manifest for manifest, _ in added])
        for manifest, copies in added:
            below = path.parent / index_edit.place(manifest.id, manifest.version)
            try:
                below.mkdir(mode=0o755, parents=True, exist_ok=True)
                for name, data in copies.items():
                    files.replace(below / name, data, mode=0o644)
            except OSError as error:
                raise Problem("io_error", f"cannot write {below}: {error.strerror}") from error
        _write(path, raw, key, label=args.label)
    if session.screen.json_wanted:
        session.screen.json([{"id": one.id, "version": one.version, "channel": args.channel} for one, _ in added])
        return ExitCode.OK
    for manifest, _ in added:
        session.screen.line(f"{args.index}: added {manifest.id} {manifest.version} to {args.channel}")
    if key is None:
        session.screen.hint(
            f"nothing can be installed before it is signed: latticectl index sign --key FILE {args.index}"
        )
    return ExitCode.OK


def _sign(session: CtlSession) -> int:
    """Sign the index in place; it is replaced in one step."""
    args = session.args
    path, key = Path(args.index), author_key.read(args)
    if not path.parent.is_dir():
        raise Problem("not_found", f"expected an index at {args.index}, found nothing")
    with signed_file.locked(path.parent):
        raw = index_check.load(path)
        if args.keep and args.status:
            raise Problem("usage", "expected --keep or --status, found both: what is signed cannot be changed")
        if args.status:
            raw = {**raw, "status": args.status}
        taken_back = path.with_name(index_revoke.FILE).exists()
        _write(path, raw, key, label=args.label, keep=args.keep)
    if session.screen.json_wanted:
        session.screen.json({"path": args.index, "signed_by": args.label})
    else:
        session.screen.line(f"{args.index}: signed by {args.label}")
        if taken_back:
            session.screen.line(f"{path.with_name(index_revoke.FILE)}: signed by {args.label}")
    return ExitCode.OK


def _write(path: Path, raw: dict[str, Any], key: Any, *, label: str, keep: bool = False) -> None:
    """Date and sign the index, see that hosts can read it, and replace the file; with a key, revocations.json, too."""
    from latticed.trust import index

    data = signed_file.made(raw, key, signed=index.signed, label=label, keep=keep)
    index.decode(data)
    # It may be as old as the index: hosts install nothing while what is taken back is not known to be all.
    revocations = path.with_name(index_revoke.FILE)
    if key is not None and revocations.exists():
        index_revoke.change(revocations, key, label, keep=keep)
    signed_file.put(path, data)


def _check_offered(path: Path, raw: dict[str, Any], added: list[Manifest]) -> None:
    """Problem unsupported for a release that hosts would list and not install, such as one without a version, and for
    an id whose directory would take the place of a file of the index at `path`.
    """
    from latticed.bundle import write
    from latticed.trust import index, index_edit

    decoded = index.decode(write.render(index_edit.dated(raw, now_s=int(time.time()))))
    for manifest in added:
        if manifest.id in {path.name, index_revoke.FILE}:
            raise Problem("unsupported", f"{manifest.id}: expected another id, found that of a file of the index")
        entry = decoded.entries.get(manifest.id)
        release = entry.release(manifest.version) if entry is not None else None
        if entry is None or release is None or entry.unsupported or release.unsupported:
            why = (entry and entry.unsupported) or (release and release.unsupported) or "; ".join(decoded.refused)
            raise Problem("unsupported", f"{manifest.id} {manifest.version}: {why[:300]}")


def _bundle(raw: dict[str, Any], directory: str, given: str | None) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest of a bundle that our verifier takes, and the bytes of its two files; Problem with its code."""
    from latticed.bundle import decode
    from latticed.bundle.read import ARTIFACT, MANIFEST, BundleRefused, ReadLimits
    from latticed.kit import files
    from latticed.trust import policy

    data = offline.manifest_bytes(directory)
    try:
        manifest = decode.decode(data)[1]
        artifact = files.read_at_most(Path(directory) / ARTIFACT, ReadLimits().artifact_bytes)
    except BundleRefused as refused:
        raise Problem(refused.code, f"{directory}: {refused.reason}", refused.hint) from refused
    except (OSError, ValueError) as error:
        raise Problem("unreadable", f"{directory}: cannot read the artifact: {error}") from error
    trusted = policy.Publisher(keys=(_key_of(raw, manifest, given),))
    found = offline.judge(directory, policy.with_publisher(policy.NOBODY, manifest.publisher, trusted), ReadLimits())
    if not found.ok:
        raise Problem(str(found.code), f"{directory}: {found.reason}", found.hint or "")
    # What was judged is what is copied.
    if offline.manifest_bytes(directory) != data or hashlib.sha256(artifact).hexdigest() != found.digest_sha256:
        raise Problem("changed_while_reading", f"{directory}: a file was changed meanwhile", "add it again")
    return manifest, {ARTIFACT: artifact, MANIFEST: data}


def _key_of(raw: dict[str, Any], manifest: Manifest, given: str | None) -> str:
    """The public key of a bundle's publisher: the one that was given, or that of the index; Problem."""
    from latticed.trust import keys, policy

    if not manifest.publisher:
        raise Problem("publisher_missing", "expected a signed bundle, found no publisher", "latticectl sign")
    if given is not None:
        try:
            return policy.public_key(given, "--publisher-key")
        except Problem as problem:
            raise Problem("usage", problem.reason, "latticectl key show FILE prints it") from problem
    known = next((one for one in raw.get("publishers", []) if one.get("id") == manifest.publisher), None)
    if known is None:
        hint = 'add --publisher-key "$(latticectl key show FILE)"'
        raise Problem("usage", f"expected the public key of {manifest.publisher}, which is new in the index", hint)
    try:
        return keys.encode_base64(keys.decode_public(str(known.get("public_key_ed25519"))))
    except keys.BadText as error:
        hint = 'name the right one: --publisher-key "$(latticectl key show FILE)"'
        raise Problem("index_invalid", f"the public key of {manifest.publisher} in the index: {error}", hint) from error


def _changelog(given: str) -> str:
    """The URL of --changelog, empty for none; Problem usage."""
    from latticed.trust import index

    fault = index.url_fault(given) if given else ""
    if fault or not given.startswith(("", "https:")[bool(given)]):
        raise Problem("usage", f"--changelog: {fault or f'expected https://HOST/PATH, found {given[:80]!r}'}")
    return given


def _url(given: str) -> str:
    """The URL that the index's directory will have, without a final slash; Problem usage."""
    from latticed.trust import index

    url = given.rstrip("/")
    # With a path: without one it is no URL that an index may name.
    if fault := index.url_fault(f"{url}/x"):
        raise Problem("usage", f"--url: {fault}")
    return url
