"""latticectl verify: judge bundles as the daemon would, each alone, without it (contracts §8)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode

if TYPE_CHECKING:
    from latticed import wire
    from latticed.bundle.read import ReadLimits
    from latticed.ctl.session import CtlSession
    from latticed.trust.policy import TrustPolicy

EXAMPLES: Final = examples(
    "latticectl verify ./acme.demo",
    "latticectl verify --trust trust.json --format json plugins/*",
)


def arguments(parser: Parser) -> None:
    parser.add_argument("bundles", metavar="DIR", type=str, nargs="+", help="a bundle: manifest.json and artifact")
    parser.add_argument("--trust", metavar="FILE", type=str, help="this trust.json instead of the settings'")


def run(session: CtlSession) -> int:
    """Judge each bundle; exit code 6 when one is refused."""
    from latticed.ctl import offline

    policy, limits = _rules(session)
    found = [offline.judge(directory, policy, limits) for directory in session.args.bundles]
    if session.screen.json_wanted:
        session.screen.json([dataclasses.asdict(one) for one in found])
    else:
        for one in found:
            _print(session, one)
    return ExitCode.OK if all(one.ok for one in found) else ExitCode.REFUSED


def _rules(session: CtlSession) -> tuple[TrustPolicy, ReadLimits]:
    """Policy and limits. With --trust and no --config no settings are read: the verdict is the same on any host."""
    from latticed.bundle.read import ReadLimits
    from latticed.ctl import policy_file

    given = session.args.trust
    if given and not getattr(session.args, "config", None):
        return policy_file.read(Path(given)), ReadLimits()
    settings = session.settings()
    limits = ReadLimits(
        manifest_bytes=settings.limits.manifest_bytes,
        artifact_bytes=settings.limits.artifact_bytes,
        deadline_s=settings.limits.read_deadline_s,
    )
    return policy_file.read(Path(given) if given else settings.trust_file), limits


def _print(session: CtlSession, one: wire.VerdictView) -> None:
    """Print one verdict as text: one line, and a second one with the hint of a refusal."""
    named = " ".join(part for part in (one.id, one.version) if part)
    if one.ok:
        session.screen.line(f"{one.path}: verified", named)
        return
    session.screen.line(f"{one.path}: refused", f"{one.code}:", one.reason or "")
    if one.hint:
        session.screen.line(f"  hint: {one.hint}")
