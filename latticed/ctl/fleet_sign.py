"""latticectl fleet sign: an intent, a controller's certificate or a node's labels, shown and then signed; offline."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import fleet_signing
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Cell, Column
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.ctl.session import CtlSession
    from latticed.fleet.documents import FleetDocument, Intent
    from latticed.fleet.fleet_directory import FleetDirectory
    from latticed.fleet.written import WrittenController, WrittenNode

EXAMPLES: Final = examples(
    "latticectl fleet sign web.toml --key operator.key                   # shows it, asks, writes web.intent",
    "latticectl fleet sign home/controllers/c1/request.json --key operator.key --yes   # writes certificate.json",
    "latticectl fleet sign web.toml --dry-run --key operator.key         # shows it, and signs nothing",
)
_FILE_BYTES: Final = 1 << 20
_COLUMNS: Final = (
    Column("PLUGIN"),
    Column("STATUS"),
    Column("WHICH"),
    Column("ACCEPTS", shrinks=True),
    Column("CONFIG"),
    Column("SECRETS", shrinks=True),
)


def arguments(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", type=str, help="what to sign, in TOML or JSON")
    parser.add_argument("--out", metavar="FILE", type=str, help="where it is written (default: beside FILE)")
    parser.add_argument("--yes", action="store_true", help="sign without asking")
    parser.add_argument("--dry-run", action="store_true", help="show what would be signed; sign nothing")
    fleet_signing.add_arguments(parser)


def run(session: CtlSession) -> int:
    """Judge what was written as hosts would, show it, and sign it when the operator agrees."""
    from latticed.fleet import written

    source = Path(session.args.file)
    fleet = fleet_signing.directory(session)
    found = written.read(_decoded(source), str(source))
    with fleet_signing.alone(fleet):
        match found:
            case written.WrittenIntent():
                before = fleet.intents()
                intent = written.intent(found, before, fleet=fleet.facts.fleet, now_s=int(time.time()))
                name = f"intent-{intent.generation:08}.json"
                shown: dict[str, Any] = _intent(session, intent, fleet)
                return _signed(session, fleet, intent, shown, name=name, out=source.with_suffix(".intent"))
            case written.WrittenController():
                certificate = _certificate(found, fleet)
                shown = {"controller": certificate.controller, "key": certificate.controller_key}
                told = {"epoch": str(certificate.epoch), "expires": _date(certificate.expires)}
                _tell(session, "controller", {**shown, **told})
                shown |= {"epoch": certificate.epoch, "expires": certificate.expires}
                name = f"controller-{certificate.controller}-{certificate.expires}.json"
                out = source.with_name("certificate.json")
                return _signed(session, fleet, certificate, shown, name=name, out=out)
            case _:
                labels = _node(found, fleet)
                shown = {"node": labels.node, "key": labels.node_key, "labels": labels.labels}
                _tell(session, "node", {**shown, "labels": _labels(labels.labels), "serial": str(labels.serial)})
                name = f"node-{labels.node}-{labels.serial:08}.json"
                return _signed(session, fleet, labels, shown, name=name, out=source.with_suffix(".certificate"))


def _signed(
    session: CtlSession,
    fleet: FleetDirectory,
    document: FleetDocument,
    shown: dict[str, Any],
    *,
    name: str,
    out: Path,
) -> int:
    """Sign a document that was shown, keep a copy in the fleet's directory, and write it."""
    from latticed.fleet import documents

    args, screen = session.args, session.screen
    kind = name.partition("-")[0]
    if args.dry_run:
        # All that is judged when it is signed is judged of a key that nobody has.
        from latticed.trust import key_files

        _envelope(document, key_files.generate())
        if screen.json_wanted:
            screen.json({"kind": kind, "signed": False, **shown})
        else:
            screen.note("this is a dry run: nothing was signed")
        return ExitCode.OK
    key = fleet_signing.operator_key(session, fleet)
    envelope = _envelope(document, key)
    fleet_signing.agreed(session, f"this {kind}")
    place = Path(args.out) if args.out else out
    # First the copy: a generation that left this directory without being known here could be signed twice.
    fleet.keep(name, envelope)
    fleet_signing.write(place, envelope + b"\n")
    sha256 = documents.name_of(document)
    if screen.json_wanted:
        screen.json({"kind": kind, "signed": True, "sha256": sha256, "path": str(place), **shown})
        return ExitCode.OK
    screen.line(f"{place}: signed, SHA-256 {sha256}")
    if kind == "intent":
        screen.hint(f"latticectl fleet plan {place} shows what it would change; latticectl fleet roll {place} begins")
    elif kind != "intent":
        screen.hint(f"latticectl fleet send {place}, on a controller's host")
    return ExitCode.OK


def _envelope(document: FleetDocument, key: Any) -> bytes:
    """Problem written_invalid for a document that no host would take."""
    from latticed.fleet import documents, written

    try:
        return documents.sign(document, key)
    except documents.Malformed as error:
        raise written.invalid("it", str(error)) from error


def _decoded(path: Path) -> dict[str, Any]:
    """The table in a TOML file, or the object in a JSON file; Problem not_found, io_error, written_invalid."""
    import tomllib

    from latticed.fleet import written
    from latticed.kit import files, strict_json

    try:
        data = files.read_at_most(path, _FILE_BYTES)
        # Strictly: of a key that is there twice, one would be signed.
        found = strict_json.loads(data) if data.lstrip()[:1] == b"{" else tomllib.loads(data.decode())
    except FileNotFoundError as error:
        raise Problem("not_found", f"expected a file to sign at {path}, found none") from error
    except OSError as error:
        raise Problem("io_error", f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise written.invalid(str(path), str(error)[:300]) from error
    if not isinstance(found, dict):
        raise written.invalid(str(path), "no table")
    return found


def _intent(session: CtlSession, intent: Intent, fleet: FleetDirectory) -> dict[str, Any]:
    """Show an intent: for whom, what it has hosts run and grant, and what to look at twice."""
    from latticed.fleet import written

    screen = session.screen
    warnings = list(written.warnings(intent))
    shown = {
        "generation": intent.generation,
        "labels": intent.selector.labels,
        "nodes": list(intent.selector.nodes),
        "plugins": [one.id for one in intent.plugins],
        "back_to": list(intent.back_to),
        "expires": intent.expires,
        "warnings": warnings,
    }
    if screen.json_wanted:
        return shown
    nodes = f"; of these {', '.join(intent.selector.nodes)} alone" if intent.selector.nodes else ""
    known = {one.sha256: str(one.document.generation) for one in fleet.intents()}
    back = (f"generation {known[one]} ({one[:12]}…)" if one in known else f"{one[:12]}…" for one in intent.back_to)
    screen.fields(
        [
            ("intent", f"{intent.generation} of the fleet {intent.fleet}"),
            ("for", f"hosts with {_labels(intent.selector.labels)}{nodes}"),
            ("until", f"{_date(intent.expires)}; then no host takes it up any more, and those that have go on"),
            ("back to", ", ".join(back) or "nothing"),
        ]
    )
    screen.rows(_COLUMNS, _rows(intent))
    for one in intent.plugins:
        if one.config is not None:
            screen.line(f"config of {one.id}: {json.dumps(one.config, ensure_ascii=True, sort_keys=True)}")
    for warning in warnings:
        screen.toned(f"look: {warning}", "warn")
    return shown


def _rows(intent: Intent) -> Iterator[tuple[str | Cell, ...]]:
    from latticed.fleet import written

    for one in intent.plugins:
        risky = set(written.risky(one))
        accepts = ", ".join(f"{name} (host)" if name in risky else name for name in one.accept)
        yield (
            one.id,
            one.status,
            written.which(one),
            Cell(accepts or "nothing", "warn" if risky else ""),
            "as it is" if one.config is None else "set",
            ", ".join(one.secrets),
        )


def _certificate(found: WrittenController, fleet: FleetDirectory) -> Any:
    """The certificate of a controller; Problem written_invalid for one of another fleet."""
    from latticed.fleet import documents, written

    if found.fleet != fleet.facts.fleet:
        raise written.invalid("fleet", f"{found.fleet}, expected {fleet.facts.fleet}")
    # A later epoch comes after a stolen key, whatever generations that used up.
    highest = max((one.document.epoch for one in fleet.certificates()), default=1)
    return documents.ControllerCertificate(
        fleet=found.fleet,
        epoch=found.epoch or highest,
        controller=found.controller,
        controller_key=found.controller_key,
        expires=int(time.time()) + found.days * written.DAY_S,
    )


def _node(found: WrittenNode, fleet: FleetDirectory) -> Any:
    """The certificate of a node's labels, with a serial above those that were signed here."""
    from latticed.fleet import documents, written

    if found.fleet not in {None, fleet.facts.fleet}:
        raise written.invalid("fleet", f"{found.fleet}, expected {fleet.facts.fleet}")
    highest = max((one.document.serial for one in fleet.node_certificates(found.node)), default=0)
    serial = found.serial or highest + 1
    if serial <= highest:
        raise written.invalid("serial", f"{serial}, expected one above {highest}, which was signed already")
    return documents.NodeCertificate(
        fleet=fleet.facts.fleet, node=found.node, node_key=found.node_key, labels=found.labels, serial=serial
    )


def _tell(session: CtlSession, kind: str, shown: dict[str, str]) -> None:
    if not session.screen.json_wanted:
        session.screen.fields([("kind", kind), *shown.items()])


def _labels(labels: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(labels.items())) or "any labels"


def _date(seconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
