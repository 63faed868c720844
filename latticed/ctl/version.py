"""latticectl version: the versions of latticectl and of the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import latticed
from latticed.ctl import replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode, of
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl version",
    "latticectl version --verbose            # also the host key that signs the audit chain",
)


def arguments(parser: Parser) -> None:
    parser.add_argument("--verbose", action="store_true", help="also print the host's public key and the socket")


def run(session: CtlSession) -> int:
    """Print both versions; without a daemon its own, the error, and the exit code of that."""
    found: dict[str, Any] = {}
    trouble: Problem | None = None
    try:
        client = session.client()
        found = replies.mapping(client.get("status"), "status")
    # Reported at the end: latticectl's own version is known without a daemon.
    except Problem as problem:
        trouble = problem
    screen = session.screen
    pairs = [("latticectl", latticed.__version__), ("latticed", str(found.get("version") or ""))]
    if session.args.verbose:
        pairs.append(("public_key", str(found.get("public_key") or "")))
        pairs.append(("started_at", str(found.get("started_at") or "")))
    if screen.json_wanted:
        screen.json({name: value or None for name, value in pairs})
    else:
        screen.fields((name.replace("_", " "), value) for name, value in pairs)
    if trouble is not None:
        screen.flush()
        screen.error(trouble)
        return of(trouble)
    return ExitCode.OK
