"""Chooses the next command for a plugin from the daemon's answers about it. Pure."""

from __future__ import annotations

import shlex
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from latticed.ctl import advice_denials, advice_failures, codes, replies
from latticed.ctl.advice_failures import Advice
from latticed.model.verdict import OTHER_SCHEMA, Code

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from latticed import wire


class RemedyFacts(NamedTuple):
    """The daemon's answers about one plugin id.

    `view`: None when only refused bundles claim the id; `rejected`: those bundles; `verdict`, `grants`, `causes`: as in
    `GET /api/plugins/by-id/{id}?explain=1`; `denials`: newest first; `policy`: the problem of the daemon's trust
    policy, or empty; `directory`: the plugin directory.
    """

    plugin_id: str
    view: wire.PluginView | None
    verdict: Mapping[str, Any]
    grants: Mapping[str, Any]
    denials: Sequence[wire.AuditRow]
    rejected: Sequence[wire.RejectedView]
    policy: str
    directory: str
    causes: Mapping[str, Any] = MappingProxyType({})


def advice(facts: RemedyFacts) -> Advice:
    """The most urgent step; for an upgrade that would be refused, what is needed to have it accepted.

    Never raises: unexpected answers give less precise advice.
    """
    found = _advice(facts)
    refusal = facts.causes.get("upgrade")
    if isinstance(refusal, dict) and found.command == _verb("upgrade", facts):
        return advice_failures.refused(facts.plugin_id, found.why, "upgrade", refusal)
    return found


def _advice(facts: RemedyFacts) -> Advice:
    """The most urgent step: the policy, then the bundle, then the decision, then how it runs."""
    code = _code(facts)
    # First: while no policy is in force every bundle looks untrusted. A plugin that runs is not held up by it.
    if facts.policy and code in {"", Code.PUBLISHER_UNTRUSTED.value} and not _runs(facts):
        return Advice(f"the daemon's trust policy is not in force: {facts.policy}", "latticectl trust show")
    if facts.view is not None and code and facts.view.candidate is not None:
        # A candidate verifies, whatever is wrong with what was accepted. `advice` adds what the upgrade needs.
        why = f"the version that was accepted is refused ({code}), and another one is not"
        return Advice(why, _verb("upgrade", facts))
    if facts.view is None or code:
        return _refused(facts, code)
    match facts.view.status:
        case "verified":
            return _next(facts, "its bundle verifies, and nothing was decided about it", "install")
        case "installed":
            return _next(facts, "it is installed and was not activated", "activate")
        case "disabled":
            return _next(facts, "an operator disabled it", "activate")
        case _:
            return _active(facts, facts.view)


def _code(facts: RemedyFacts) -> str:
    """The code of the verdict that prevents the plugin from running; empty when there is none."""
    # With a record its own verdict counts, not that of other bundles with the id.
    if facts.view is not None:
        return "" if facts.verdict.get("ok", True) else str(facts.verdict.get("code") or Code.MANIFEST_MISSING)
    return facts.rejected[0].code if facts.rejected else ""


def _runs(facts: RemedyFacts) -> bool:
    """Whether the plugin runs now."""
    return facts.view is not None and facts.view.runtime.state == "armed"


def _verb(verb: str, facts: RemedyFacts, *more: str) -> str:
    """A command line of latticectl for this plugin, quoted for a shell."""
    return shlex.join(["latticectl", verb, facts.plugin_id, *more])


# A bundle that does not verify.

_VERDICTS: Final = frozenset(code.value for code in Code)
_OF_BYTES: Final = frozenset({Code.SIGNATURE_INVALID, Code.DIGEST_MISMATCH, Code.ARTIFACT_MISSING, Code.UNREADABLE})
"""Codes that are about the stored pair when no bundle in the directory is refused."""
_OF_POLICY: Final = frozenset({Code.PUBLISHER_UNTRUSTED.value, Code.CAPABILITY_NOT_ALLOWED.value})
_OF_OPERATORS: Final = frozenset({Code.PLUGIN_REVOKED.value, Code.DIGEST_REVOKED.value})
"""Codes of what operators decided, about built-in plugins as about any."""


def _refused(facts: RemedyFacts, code: str) -> Advice:
    """Advice on a bundle with this verdict code."""
    if facts.view is not None and facts.view.builtin and code not in _OF_OPERATORS:
        return _builtin(facts, facts.view, code)
    if code == Code.MANIFEST_MISSING.value and facts.view is not None and facts.rejected:
        code = facts.rejected[0].code  # its own bundle is gone, and another one claims its id
    known = codes.text_of(code) if code in _VERDICTS else None
    if known is None:
        return Advice(f"refused: {code}", "latticectl rejected --hints")
    # No refused bundle claims the id: what fails is the stored pair, or there is no bundle.
    if facts.view is not None and not facts.rejected:
        if code == Code.MANIFEST_MISSING.value:
            return _gone(facts, facts.view)
        if code in {found.value for found in _OF_BYTES}:  # of the copy that was stored when it was accepted
            return Advice(
                "the daemon's own copy of it is damaged: take the plugin in anew",
                " && ".join(_verb(verb, facts) for verb in _afresh(facts.view)),
            )
    if code == Code.MANIFEST_INVALID.value and OTHER_SCHEMA in [row.hint for row in facts.rejected]:
        return Advice(OTHER_SCHEMA, "latticectl version")
    if code in _OF_POLICY and (hint := _hint(facts, code)):
        # What the policy says of this publisher the daemon knows better: `…: latticectl trust add …`.
        why, _, command = hint.partition(": latticectl ")
        return Advice(f"{known.why}; {why}", f"latticectl {command}" if command else known.command)
    return Advice(known.why, known.command.format_map(_words(facts, code)))


def _hint(facts: RemedyFacts, code: str) -> str:
    """What the daemon says that helps against this refusal of a bundle, or of the plugin's own; empty for nothing."""
    told = [row.hint for row in facts.rejected if row.code == code]
    return told[0] if told else str(facts.verdict.get("hint") or "")


def _builtin(facts: RemedyFacts, view: wire.PluginView, code: str) -> Advice:
    """Advice on a plugin that latticed brings itself, or no longer does."""
    if code == Code.MANIFEST_MISSING.value:
        why = "this version of latticed does not bring it: run one that does, or give the plugin up"
        return Advice(why, _verb("disable" if view.status == "active" else "forget", facts))
    reason = str(facts.verdict.get("reason") or code)
    return Advice(f"this version of latticed brings it with a mistake: {reason}", "latticectl version")


def _gone(facts: RemedyFacts, view: wire.PluginView) -> Advice:
    """Advice on a plugin whose bundle was removed."""
    why = "its bundle is gone from the plugin directory: put it back, or give the plugin up"
    return Advice(why, _verb("disable" if view.status == "active" else "forget", facts))


def _afresh(view: wire.PluginView) -> Iterator[str]:
    """The verbs that remove a plugin and install it again, in order."""
    if view.status == "active":
        yield "disable"
    yield from ("forget", "install")


def _words(facts: RemedyFacts, code: str) -> dict[str, str]:
    """Values for the placeholders in the commands above, quoted for a shell; capitals where only the operator knows."""
    refused = [row for row in facts.rejected if row.code == code]
    row, view = refused[0] if refused else None, facts.view
    names = [shlex.quote(f"{facts.directory}/{one.name}") for one in refused]
    publisher = row.publisher if row and row.publisher else view.publisher if view else None
    version = row.version if row and row.version else view.version if view else None
    kept = names if view is not None else names[1:]  # without a record, the first bundle is the one to keep
    return {
        "id": shlex.quote(row.id if row and row.id else facts.plugin_id),
        "version": shlex.quote(version) if version else "'*'",
        "publisher": shlex.quote(publisher) if publisher else "PUBLISHER",
        "digest": view.artifact_sha256 if view else "SHA256",
        "bundle": names[0] if names else f"{facts.directory}/BUNDLE",
        "others": " ".join(kept) or f"{facts.directory}/BUNDLE",
    }


# A plugin about which an operator decided.


def _next(facts: RemedyFacts, why: str, verb: str) -> Advice:
    """The command `verb`, or what must come first when the daemon says that it would refuse it."""
    refusal = facts.causes.get("refusal")
    if not isinstance(refusal, dict):
        return Advice(why, _verb(verb, facts))
    return advice_failures.refused(facts.plugin_id, why, verb, refusal)


def _active(facts: RemedyFacts, view: wire.PluginView) -> Advice:
    """Advice on an active plugin: failures first, then what it misses, then what could be better."""
    runtime = view.runtime
    if runtime.state == "failed":
        return advice_failures.failed(facts.plugin_id, runtime, facts.grants, _sign(facts))
    if runtime.state != "armed":
        return Advice("it is being started", _verb("wait", facts, "--for", "active"))
    # The first of these that applies. What stderr suggests is a guess, so it comes last.
    found = advice_denials.suffered(facts.plugin_id, facts.denials, facts.grants, facts.causes, runtime.started_at)
    found = found or advice_denials.of_dns(facts.plugin_id, facts.causes)
    found = found or advice_denials.of_services(facts.plugin_id, facts.causes)
    found = found or _sign(facts)
    if found is not None:
        return found
    if runtime.health == "unhealthy":
        return Advice(f"it runs and says that it is not well: {runtime.message}".rstrip(": "), _verb("restart", facts))
    if runtime.health == "degraded":
        return Advice(f"it runs, but not as it should: {runtime.message}".rstrip(": "), _verb("logs", facts))
    if view.upgrade is not None and view.upgrade.state == "gating":
        until = f" until {view.upgrade.until}" if view.upgrade.until else ""
        return Advice(f"it runs, and is watched beside {view.upgrade.before}{until}")
    if view.candidate is not None and view.candidate.bad is None:
        more = ["--allow-downgrade"] if view.candidate.needs_downgrade else []
        adds = f"; it adds {', '.join(view.candidate.adds)}" if view.candidate.adds else ""
        return Advice(f"it runs; another version waits in the plugin directory{adds}", _verb("upgrade", facts, *more))
    if facts.rejected:
        other = _refused(facts, facts.rejected[0].code)
        return Advice(f"it runs; beside it, {other.why}", other.command)
    return Advice("it runs as decided")


def _sign(facts: RemedyFacts) -> Advice | None:
    """Advice for a known failure recognised in its stderr."""
    found = facts.causes.get("signs")
    signs = found if isinstance(found, list) else []
    return advice_failures.sign(facts.plugin_id, signs, replies.texts(facts.grants.get("permits") or []))
