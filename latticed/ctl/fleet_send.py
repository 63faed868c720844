"""latticectl fleet send: hand what an operator has signed over to the controller, which judges and keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ctl import fleet_controller, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl fleet send home/signed/revocations*.json",
    "latticectl fleet send home/controllers/c2/certificate.json home/signed/intent-*.json",
)


def arguments(parser: Parser) -> None:
    fleet_controller.add_arguments(parser)
    parser.add_argument("files", metavar="FILE", type=str, nargs="+", help="what latticectl fleet sign or revoke wrote")


def run(session: CtlSession) -> int:
    """Print what became of each; what is there already stays."""
    screen = session.screen
    asked = fleet_controller.client(session)
    documents = [fleet_controller.envelope(path, "a signed document") for path in session.args.files]
    taken = []
    for path, document in zip(session.args.files, documents, strict=True):
        found = fleet_controller.send(asked, document)
        taken.append(found)
        if not screen.json_wanted:
            said = "taken" if found.get("new") else "there already"
            screen.line(f"{path}: {found.get('kind')}, {said}, SHA-256 {found.get('sha256')}")
        for note in replies.texts(found.get("notes")):
            screen.note(note)
    if screen.json_wanted:
        screen.json(taken)
    return ExitCode.OK
