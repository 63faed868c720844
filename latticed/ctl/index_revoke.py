"""latticectl index revoke: takes releases back, in the signed revocations.json beside the index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import author_key, index_check, signed_file
from latticed.ctl.exit_codes import ExitCode
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.ctl.session import CtlSession
    from latticed.trust.index_revocations import SourceRevocation

FILE: Final = "revocations.json"
_ACTIONS: Final = ("block-install", "freeze", "kill")


def arguments(parser: Any) -> None:
    """The options besides INDEX."""
    parser.add_argument("--plugin", metavar="ID@VERSION", action="append", default=[], help="ID@* for all versions")
    parser.add_argument("--digest", metavar="SHA256", action="append", default=[], help="an artifact, of any version")
    parser.add_argument(
        "--action",
        choices=_ACTIONS,
        required=True,
        dest="how",
        help="install it no more; besides stop it; besides remove its bundle",
    )
    parser.add_argument("--reason", default="", help="one line for operators")
    signed_file.add_arguments(parser, required=True)


def run(session: CtlSession) -> int:
    """Add to the file, date and sign it; it is replaced in one step."""
    args = session.args
    path = Path(args.index)
    named = [*(("plugins", one) for one in args.plugin), *(("digests", one.lower()) for one in args.digest)]
    if not named:
        raise Problem("usage", "expected something to take back", "name it with --plugin or --digest")
    found = [_revocation(kind, value, args) for kind, value in named]
    key = author_key.read(args)
    if not path.parent.is_dir():
        raise Problem("not_found", f"expected an index at {args.index}, found nothing")
    with signed_file.locked(path.parent):
        unknown = _not_offered(path, found)
        change(path.with_name(FILE), key, args.label, lambda raw: _with(raw, found))
    if session.screen.json_wanted:
        session.screen.json([{"kind": one.kind, "value": one.value, "action": one.action} for one in found])
        return ExitCode.OK
    for one in found:
        session.screen.line(f"{path.with_name(FILE)}: {one.action}", one.value)
    for value in unknown:
        session.screen.note(f"no release of {args.index} is meant by", value)
    session.screen.hint(f"upload it with the index; hosts read it at latticectl market refresh: {path.with_name(FILE)}")
    return ExitCode.OK


def change(
    path: Path,
    key: Any,
    label: str,
    edit: Callable[[dict[str, Any]], dict[str, Any]] = lambda raw: raw,
    *,
    keep: bool = False,
) -> None:
    """Change, date (unless `keep`) and sign a revocations.json, which need not be there; Problem."""
    from latticed.trust import index_revocations

    raw = load(path) if path.exists() else index_revocations.empty()
    data = signed_file.made(edit(raw), key, signed=index_revocations.signed, label=label, keep=keep)
    index_revocations.decode(data)
    signed_file.put(path, data)


def load(path: Path) -> dict[str, Any]:
    """The JSON object of a revocations.json that hosts can read; Problem."""
    from latticed.kit import strict_json
    from latticed.trust import index_revocations

    data = index_check.read(path)
    index_revocations.decode(data)
    return dict(strict_json.loads(data, integers_only=True))


def _with(raw: dict[str, Any], found: list[SourceRevocation]) -> dict[str, Any]:
    from latticed.trust import index_revocations

    for one in found:
        raw = index_revocations.with_revocation(raw, one)
    return raw


def _revocation(kind: str, value: str, args: Any) -> SourceRevocation:
    """What one option names, as hosts read it; Problem usage."""
    from latticed.trust import index_revocations

    field = "plugin" if kind == "plugins" else "artifact_sha256"
    read = index_revocations.read({field: value, "action": args.how, "reason": args.reason})
    if isinstance(read, str):
        raise Problem("usage", read)
    return read


def _not_offered(path: Path, found: list[SourceRevocation]) -> list[str]:
    """What is meant by none of the index's releases: mistyped, or of a release that it has no more."""
    from latticed.trust import index

    if not path.exists():
        return [one.value for one in found]
    entries = index.decode(index_check.read(path)).entries.values()
    offered = [(entry.id, one.version, one.artifact_sha256) for entry in entries for one in entry.releases]
    return [one.value for one in found if not any(one.covers(*release) for release in offered)]
