"""latticectl pack: make a bundle's artifact of a directory of Python modules, with the same bytes for the same tree."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.bundle.pack import INTERPRETER
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from typing import Any

    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl pack ./src ./acme.demo                     # src/__main__.py is what runs",
    "latticectl pack --main shop.cart:run ./src ./acme.demo",
    "latticectl pack --requirements requirements.txt ./src ./acme.demo   # NAME==VERSION --hash=sha256:… a line",
)


def arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="SOURCE", type=str, help="the directory with the modules")
    parser.add_argument("bundle", metavar="DIR", type=str, help="the bundle whose artifact is replaced")
    parser.add_argument("--main", metavar="MODULE:FUNCTION", help="what to call; without it SOURCE has a __main__.py")
    parser.add_argument(
        "--requirements",
        metavar="FILE",
        type=str,
        help="packages of others to pack too: pure wheels, each pinned with its hash, as pip-compile writes them",
    )
    parser.add_argument("--python", metavar="LINE", default=INTERPRETER, help=f"first line (default: {INTERPRETER})")


def run(session: CtlSession) -> int:
    """Write the artifact in one step, unless it is the same already; the manifest is left alone."""
    from latticed.bundle import pack, requirements
    from latticed.bundle.refusal import ARTIFACT
    from latticed.kit import files

    args = session.args
    bundle, source = Path(args.bundle), Path(args.source)
    manifest = _manifest(bundle)
    # The artifact would contain itself, and be another one each time.
    if Path(os.path.realpath(bundle)).is_relative_to(os.path.realpath(source)):
        raise Problem("usage", f"expected a bundle outside of {source}, found {bundle}", "pack a directory below it")
    found = pack.tree(source)
    theirs = None if args.requirements is None else requirements.packed(Path(args.requirements))
    if theirs is not None:
        found = requirements.joined(found, theirs)
    artifact = pack.zipapp(found, interpreter=args.python, main=args.main)
    digest = hashlib.sha256(artifact).hexdigest()
    changed = _digest(bundle / ARTIFACT) != digest
    if changed:
        try:
            files.replace(bundle / ARTIFACT, artifact, mode=0o644)
        except OSError as error:
            raise Problem("io_error", f"cannot write {bundle / ARTIFACT}: {error.strerror}") from error
    told: dict[str, Any] = {
        "artifact_sha256": digest,
        "bytes": len(artifact),
        "files": len(found),
        "changed": changed,
    }
    if theirs is not None:
        told["wheels"] = [{"name": name, "sha256": sha256} for name, sha256 in theirs.wheels]
    _tell(session, manifest, told)
    return ExitCode.OK


def _tell(session: CtlSession, manifest: dict[str, Any], told: dict[str, Any]) -> None:
    """Print what was packed, and that it has to be signed when the manifest does not say so yet."""
    where = session.args.bundle
    if session.screen.json_wanted:
        session.screen.json({"path": where, **told})
        return
    session.screen.line(f"{where}: packed {told['files']} files, {told['bytes']} bytes, {told['artifact_sha256']}")
    for wheel in told.get("wheels", ()):
        session.screen.line(f"  {wheel['name']}, {wheel['sha256']}")
    if manifest.get("digest_sha256") != told["artifact_sha256"]:
        publisher = "" if manifest.get("publisher") else "--publisher NAME "
        session.screen.hint(f"sign it: latticectl sign --key FILE {publisher}{where}")


def _manifest(bundle: Path) -> dict[str, Any]:
    """The bundle's manifest, which has to be of a system plugin; Problem."""
    from latticed.bundle.refusal import MANIFEST
    from latticed.ctl import offline

    raw = offline.manifest(str(bundle))
    if raw.get("type") != "system":
        found = f"expected {bundle / MANIFEST} to be of type system, which alone runs Python, found {raw.get('type')!r}"
        raise Problem("usage", found[:300], "of other types the artifact is one file: copy it there")
    return raw


def _digest(path: Path) -> str | None:
    """The SHA-256 of the file that is there; None when it cannot be read, and so is replaced."""
    from latticed.bundle import pack
    from latticed.kit import files

    try:
        return hashlib.sha256(files.read_at_most(path, pack.MAX_BYTES)).hexdigest()
    except (OSError, ValueError):
        return None
