"""latticectl explain: a plugin's state from artifact to last denial, the reason for it, and the next command."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import advice, ask, codes, decode, replies, table
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode, of
from latticed.ctl.table import Cell
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from latticed import wire
    from latticed.ctl.advice_failures import Advice
    from latticed.ctl.ask import Asked
    from latticed.ctl.render import Screen
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl explain acme.demo                  # why it is as it is, and what to do",
    "latticectl explain acme.demo --format json",
    "latticectl explain ledger_damaged             # a code, without the daemon",
)

_Field = tuple[str, str | Cell | None]


def arguments(parser: Parser) -> None:
    parser.add_argument(
        "id", metavar="ID|CODE", help="the plugin's id; of a refused bundle its directory's name, too; or a code"
    )


def run(session: CtlSession) -> int:
    """Print the plugin's state, the reason for it and the next command; always exit code 0 for a known id."""
    # No id has an underscore, and most codes do; of the others, such as `busy`, docs/troubleshooting.md tells.
    if "_" in session.args.id and (text := codes.text_of(session.args.id)) is not None:
        return _code(session, session.args.id, text)
    plain, facts = _facts(session, session.client(), session.args.id)
    found = advice.advice(facts)
    screen = session.screen
    if screen.json_wanted:
        screen.json({**plain, "why": found.why, "what_to_do": found.command or None})
        return ExitCode.OK
    screen.fields([*_lines(facts, screen), ("why", found.why)])
    screen.line("what to do:", found.command or "nothing")
    return ExitCode.OK


def _code(session: CtlSession, name: str, text: codes.CodeText) -> int:
    """Print what a code means, why it happens and what to type."""
    seen = next(one.title for one in codes.symptoms() if name in one.codes)
    command, screen = codes.shown(text.command), session.screen
    with contextlib.suppress(Problem):  # settings that cannot be read are not what is to be explained
        command = codes.placed(command, session.settings())
    if screen.json_wanted:
        screen.json({"code": name, "seen": seen, "means": text.means, "why": text.why, "what_to_do": command})
        return ExitCode.OK
    screen.fields([("code", name), ("seen as", seen), ("means", text.means), ("why", text.why)])
    screen.line("what to do:", command)
    return ExitCode.OK


def steps(session: CtlSession, client: Asked, plugin_id: str) -> tuple[list[tuple[str, str, str]], Advice]:
    """The lines of the report as name, text and tone, and the advice; asked for through `client`."""
    _, facts = _facts(session, client, plugin_id)
    cells = [(name, table.cell(value)) for name, value in _lines(facts, session.screen) if value]
    return [(name, one.value, one.tone) for name, one in cells], advice.advice(facts)


def _facts(session: CtlSession, client: Asked, plugin_id: str) -> tuple[dict[str, Any], advice.RemedyFacts]:
    """The plugin as answered, and the facts for advice; Problem("not_found") when no plugin or bundle has the id."""
    missing: Problem | None = None
    plain: dict[str, Any] = {}
    try:
        plain = ask.about(client, plugin_id, explain="1")
    # No record: a bundle that was refused may still have the id, or its directory that name.
    except Problem as problem:
        if of(problem) is not ExitCode.NOT_FOUND:
            raise
        missing = problem
    # By id or by the name of the directory: a manifest that cannot be read has no id.
    answer = client.get("plugins", "rejected", query={"about": plugin_id})
    rejected = replies.rows(answer, "list of rejected bundles")
    if missing is not None and not rejected:
        raise missing
    verdict, grants, causes = plain.get("verdict"), plain.get("grants"), plain.get("causes")
    facts = advice.RemedyFacts(
        plugin_id=plugin_id,
        view=decode.plugin(plain["plugin"]) if plain else None,
        verdict=verdict if isinstance(verdict, dict) else {},
        grants=grants if isinstance(grants, dict) else {},
        denials=[decode.event(row) for row in replies.rows(plain.get("denials") or [], "denials")],
        rejected=list(decode.rejected(rejected)),
        policy=_policy(client),
        directory=_directory(session),
        causes=causes if isinstance(causes, dict) else {},
    )
    return {"id": plugin_id, "plugin": None, **plain, "rejected": rejected}, facts


def _policy(client: Asked) -> str:
    """The error of the daemon's trust policy, as health reports it; empty when there is none."""
    problems = replies.rows(client.health().get("problems") or [], "list of problems")
    return next((str(row.get("detail")) for row in problems if str(row.get("code")).startswith("policy_")), "")


def _directory(session: CtlSession) -> str:
    """The plugin directory in the local settings, since the API gives no paths.

    With --socket the daemon may have other settings, so a placeholder is returned.
    """
    named = getattr(session.args, "socket", None) or session.environ.get("LATTICED_SOCKET")
    try:
        settings = session.settings()
    # Settings that cannot be read are not what is to be explained here.
    except Problem:
        return "PLUGIN_DIR"
    return "PLUGIN_DIR" if named and settings.origins["plugin_dir"] == "default" else str(settings.plugin_dir)


def _lines(facts: advice.RemedyFacts, screen: Screen) -> Iterator[_Field]:
    """The fields of the report, in the order in which a plugin comes to run."""
    view = facts.view
    yield "artifact", _artifact(view, facts.rejected)
    yield "verdict", _verdict(facts)
    for row in facts.rejected:
        yield "refused", Cell(f"bundle {row.name}: {row.code}: {row.reason}", "bad")
    yield "decision", _decision(view, screen)
    masked = replies.texts(facts.grants.get("masked"))
    if masked:
        yield "not granted", Cell(", ".join(masked), "warn")
    if view is not None and view.candidate is not None:
        yield "candidate", Cell(f"version {view.candidate.version or '-'}", "warn")
    yield "runtime", _runtime(view)
    if isinstance(ended := facts.causes.get("ended"), dict):
        moment = screen.when(ended.get("at"))
        yield "last end", Cell(f"{moment}: {ended.get('code')}: {ended.get('reason')}", "warn")
    yield "last denial", _denial(facts.denials, screen)
    yield "next retry", screen.when(view.runtime.next_retry_at) if view is not None else None


def _artifact(view: wire.PluginView | None, rejected: Sequence[wire.RejectedView]) -> str:
    """The version on record, with publisher and digest, in words; without a record that of the first refused bundle."""
    if view is None:
        return f"version {rejected[0].version or '-'} in the bundle {rejected[0].name}"
    publisher = f" from {view.publisher}" if view.publisher else ", unsigned"
    return f"version {view.version or '-'}{publisher}, sha256 {view.artifact_sha256}"


def _verdict(facts: advice.RemedyFacts) -> Cell:
    """The verdict on the accepted bundle, or that all are refused."""
    if facts.view is None:
        return Cell("refused", "bad")
    if facts.verdict.get("ok"):
        return Cell("verified", "good")
    return Cell(f"refused: {facts.verdict.get('code')}: {facts.verdict.get('reason') or '-'}", "bad")


def _decision(view: wire.PluginView | None, screen: Screen) -> str | None:
    """What the operator decided and when, in words; None when nothing was decided."""
    if view is None:
        return "none: a refused bundle is not up for one"
    moments = {"installed": view.installed_at, "active": view.activated_at, "disabled": view.disabled_at}
    moment = screen.when(moments.get(view.status))
    said = "none yet" if view.status == "verified" else view.status
    return f"{said} ({moment})" if moment else said


def _runtime(view: wire.PluginView | None) -> str | Cell | None:
    """The runtime state with its last error or message."""
    if view is None:
        return None
    runtime = view.runtime
    error = runtime.last_error
    said = [f"{runtime.state} ({runtime.runner}), health {runtime.health}"]
    if error is not None:
        said.append(f"{error.code}: {error.message}")
    elif runtime.message:
        said.append(runtime.message)
    if runtime.restart_count:
        said.append(f"{runtime.restart_count} restart{'s' if runtime.restart_count > 1 else ''}")
    return Cell("; ".join(said), {"armed": "good", "failed": "bad"}.get(runtime.state, ""))


def _denial(denials: Sequence[wire.AuditRow], screen: Screen) -> str | None:
    """The newest denial in one line; None without any."""
    if not denials:
        return None
    last = denials[0]
    return f"{last.target} {screen.when(last.ts)}: {last.code}: {last.reason}"
