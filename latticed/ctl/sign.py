"""latticectl sign: fill in publisher, digest and signature of bundles."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import author_key
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.model import ids
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl key generate acme.key",
    "latticectl sign --key acme.key --publisher acme ./acme.demo",
    "latticectl sign --key acme.key --passphrase-fd 3 ./acme.demo 3< passphrase.txt",
)


def arguments(parser: Parser) -> None:
    parser.add_argument("bundles", metavar="DIR", type=str, nargs="+", help="a bundle: manifest.json and artifact")
    author_key.add_arguments(parser)
    parser.add_argument("--publisher", metavar="NAME", help="write this publisher into the manifest")


def run(session: CtlSession) -> int:
    """Sign all bundles; the first that fails ends it, and those before it stay signed."""
    args = session.args
    if args.publisher is not None and not ids.is_valid(args.publisher):
        raise Problem("usage", f"--publisher: expected 3 to 128 of a-z 0-9 . -, found {args.publisher[:150]!r}")
    key = author_key.read(args)
    signed = [sign_bundle(directory, key, args.publisher) for directory in args.bundles]
    if session.screen.json_wanted:
        session.screen.json(signed)
        return ExitCode.OK
    for record in signed:
        session.screen.line(
            f"{record['path']}: signed {record['id']} as {record['publisher']}, {record['digest_sha256']}"
        )
        for one in record["schedules"]:
            session.screen.line(f"  schedule {one}")
    return ExitCode.OK


def sign_bundle(directory: str, key: Ed25519PrivateKey, publisher: str | None) -> dict[str, Any]:
    """Sign one bundle in place; the manifest is replaced atomically, and only after it passed all checks."""
    from latticed.bundle import write
    from latticed.bundle.read import BundleRefused, ReadLimits
    from latticed.ctl import offline
    from latticed.kit import strict_json
    from latticed.trust import key_files, sign

    try:
        # Opened as the daemon opens bundles, so that nothing is signed that it would refuse to read.
        with offline.opened(directory, ReadLimits()) as source:
            raw = strict_json.loads(source.manifest(), integers_only=True)
            if not isinstance(raw, dict):
                raise Problem("manifest_invalid_json", f"{directory}: expected manifest.json to hold one JSON object")
            digest, _ = source.hash_artifact()
        raw = _with_schedules(raw, Path(directory), digest)
        manifest = sign.sign(raw, digest, key, publisher=publisher)
        write.write_manifest(Path(directory), write.render_manifest(manifest))
    # Several bundles may be signed in one run, so each message names the directory.
    except BundleRefused as refused:
        raise Problem(refused.code, f"{directory}: {refused.reason}", refused.hint) from refused
    except strict_json.InvalidJson as error:
        raise Problem("manifest_invalid_json", f"{directory}: manifest.json: {error}") from error
    except Problem as problem:
        raise Problem(problem.code, f"{directory}: {problem.reason}", problem.hint) from problem
    except OSError as error:
        raise Problem("io_error", f"{directory}: cannot write manifest.json: {error.strerror}") from error
    shown = {name: manifest.get(name) for name in ("id", "version", "publisher", "digest_sha256")}
    return {
        "path": directory,
        **shown,
        "public_key": key_files.public_text(key),
        "schedules": _schedules(manifest),
    }


def _with_schedules(raw: dict[str, Any], directory: Path, digest: str) -> dict[str, Any]:
    """The manifest with the schedules that its code declares, if that has any, in place of those that it names.

    Problem manifest_invalid when it names an action that its code has no method for: hosts would invoke it for ever.
    """
    from latticed.bundle import code_schedules
    from latticed.bundle.read import ReadLimits
    from latticed.bundle.refusal import ARTIFACT
    from latticed.kit import files

    if raw.get("type") != "system" or "schema" not in raw:
        return raw
    try:
        artifact = files.read_at_most(directory / ARTIFACT, ReadLimits().artifact_bytes)
    except ValueError as error:
        raise Problem("changed_while_reading", f"artifact: {error}") from error
    if hashlib.sha256(artifact).hexdigest() != digest:
        raise Problem("changed_while_reading", "the artifact was changed while it was read", "sign it again")
    if found := code_schedules.declared(artifact):
        return {**raw, "schedules": found}
    rows = raw.get("schedules")  # not checked yet
    named = [str(one.get("action")) for one in rows if isinstance(one, dict)] if isinstance(rows, list) else []
    if lacking := code_schedules.without_method(artifact, named):
        reason = f"schedules: expected actions that the code has a method do_ACTION for, found {lacking[0][:150]!r}"
        raise Problem("manifest_invalid", reason, "remove it from `schedules` in the manifest")
    return raw


def _schedules(manifest: dict[str, Any]) -> list[str]:
    """The words of a signed manifest's schedules (`model.schedule.word`)."""
    from msgspec import convert

    from latticed.model.manifest import Schedule
    from latticed.model.schedule import word

    return [word(convert(one, Schedule)) for one in manifest.get("schedules", [])]
