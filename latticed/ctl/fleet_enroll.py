"""latticectl fleet enroll: an invitation by which a host joins the fleet, once; offline."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.ctl import fleet_signing
from latticed.ctl.arguments import Parser, count, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl fleet enroll web-1 --label role=web --key operator.key    # writes web-1.invitation",
    "latticectl fleet enroll web-1 --label role=web --days 2 --out /media/stick/web-1 --key operator.key",
)
_MOST_DAYS: Final = 30


def arguments(parser: Parser) -> None:
    parser.add_argument("node", metavar="NODE", help="the host's name in the fleet: a-z, 0-9 and hyphens within")
    parser.add_argument("--label", metavar="NAME=VALUE", action="append", default=[], help="a label (repeatable)")
    parser.add_argument(
        "--days", metavar="N", type=count, default=1, help=f"how long it counts, 1 to {_MOST_DAYS} days (default 1)"
    )
    parser.add_argument("--out", metavar="FILE", type=str, help="where it is written (default: NODE.invitation)")
    fleet_signing.add_arguments(parser)


def run(session: CtlSession) -> int:
    """Write the invitation (mode 0600): whoever has it first can join in this host's name."""
    from latticed.fleet import deployment, documents, enrolment, subjects
    from latticed.trust import key_files

    args, screen = session.args, session.screen
    node, labels = subjects.node_name(args.node), _labels(args.label)
    if not 1 <= args.days <= _MOST_DAYS:
        raise Problem("usage", f"--days: expected 1 to {_MOST_DAYS}, found {args.days}")
    fleet = fleet_signing.directory(session)
    signers = fleet.signers()
    operator = fleet_signing.operator_key(session, fleet)
    now_s = int(time.time())
    # A little less than what a controller takes at most: its clock may be behind.
    expires = now_s + args.days * 86_400 - 3_600
    key = key_files.generate()
    token = documents.EnrolmentToken(
        fleet=fleet.facts.fleet,
        token=enrolment.nonce_of(key_files.public_text(key)),
        addresses=fleet.facts.addresses,
        certificates=fleet.authority(),
        operators=fleet.operators(),
        node=node,
        labels=labels,
        expires=expires,
    )
    credentials = deployment.invitation_credentials(
        signers.enrol_signer, signers.nodes, token.token, now_s=now_s, expires_s=expires
    )
    made = enrolment.invite(operator, token=token, key=key, credentials=credentials)
    sha256 = documents.name_of(token)
    place = Path(args.out or f"{node}.invitation")
    fleet_signing.write(place, made, secret=True, new=True)
    if screen.json_wanted:
        screen.json({"path": str(place), "node": node, "labels": labels, "expires": expires, "sha256": sha256})
        return ExitCode.OK
    shown = ", ".join(f"{name}={value}" for name, value in sorted(labels.items())) or "no labels"
    screen.line(f"{place}: invites one host to be {node} ({shown}) of the fleet {fleet.facts.fleet}")
    screen.note("it is a secret: whoever has it first joins in this host's name, and it counts once")
    screen.note(f"to take it back before it is used: latticectl fleet revoke {sha256}")
    screen.hint(f"on the host, as root: latticed-fleet join {place.name}")
    return ExitCode.OK


def _labels(given: list[str]) -> dict[str, str]:
    """The labels of --label; Problem usage."""
    import msgspec

    from latticed.fleet import documents

    found: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or name in found:
            what = "each label once" if equals else "NAME=VALUE"
            raise Problem("usage", f"--label: expected {what}, found {one[:80]!r}")
        found[name] = value
    try:
        return msgspec.convert(found, documents.Labels)
    except msgspec.ValidationError as error:
        reason = "expected labels of letters, digits and . _ / - within, at most 63 characters"
        raise Problem("usage", f"--label: {reason}, found {', '.join(given)[:200]!r}") from error
