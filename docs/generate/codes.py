"""Codes: where the code has them, docs/reference/codes.md, and docs/troubleshooting.md."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import latticed
from generate import source
from generate.markdown import Page, anchored, code, or_dash, sentence, slug
from latticed import apply, daemon
from latticed.ctl import codes
from latticed.ingress import answers
from latticed.model import hostcall, verdict
from latticed.plans import protocol
from latticed.rpc import problems

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(latticed.__file__).parent
CALLS: Final = {
    **dict.fromkeys("Problem Fault Refused HostError BundleRefused PermissionRefused Finding GuestFailed".split(), 0),
    **dict.fromkeys("refuse transient denied down note_error fail _broken _No _unfit _check_unexpired".split(), 0),
    "twice": 1,
    "_overlaps": 1,
    "_no_verdict": 1,
    "text": 2,
    "_once": 4,
}
"""Calls that name a code, and which argument it is; everywhere else, the argument `code`."""
NO_CODES: Final = ("ctl/doctor.py",)
"""Findings of `latticectl doctor` are named by what was looked at."""
PLACES: Final = {
    "verdict": "a bundle's verdict",
    "host call": "a denied host call",
    "api": "an answer of the control API",
    "page": "an answer of a plugin's page",
    "helper": "an answer of the root helper",
    "latticed": "an end of latticed at its start",
    "latticed-apply": "an end of latticed-apply at its start",
}
ELSEWHERE: Final = {
    "ledger/directory_identity.py": "state_replaced ledger_replaced host_key_replaced",
    "rpc/status.py": "catalog_degraded lifecycle_failed critical_plugin audit_calls_removed",
    "market/shelved.py": "revocations_expired",
    "host/monitor/rules.py": "reset body_mismatch body_too_large content_coding charset_unknown status_unexpected"
    " certificate_expiring",
    "host/tunnel/keeper.py": "not_ready",
    "ingress/deliverer.py": "notifications_wait channel_degraded",
    "ledger/deliveries.py": "no_channel",
    "system/findings.py": "bad_intent",
    "system/proxy/links.py": "bad_link",
    "fleet/controller/operations.py": "controller_uncertified",
    "fleet/controller/core.py": "node_key_changed chain_forked events_missed",
    "fleet/controller/observing.py": "status_forged status_old",
    "fleet/controller/chains.py": "event_forged",
    "fleet/controller/leader.py": "desired_foreign",
    "fleet/controller/views.py": "engine_away certificate_expires lease_lost no_leader controller_clock state_rebuilt"
    " revocations_untold users_not_revoked node_not_cut_off not_done rollout_halted rollout_returning",
}
"""Codes in no such call, by the module that has them as a constant."""
MADE: Final = {
    "reload.py": "settings_stalled policy_stalled socket_stalled state_stalled",
    "system/notify/services.py": "http_NNN",
}
"""Codes that are put together, by the module that does it."""


def anchor(name: str) -> str:
    """Where a code stands on the page."""
    return slug("code", name)


def text_of(name: str) -> codes.CodeText:
    """Its text; KeyError for a code that has none."""
    found = codes.text_of(name)
    if found is None:
        raise KeyError(f"{name}: expected an entry in {codes.FILE}")
    return found


def texts() -> dict[str, codes.CodeText]:
    """All texts, by code."""
    return {name: text for one in codes.symptoms() for name, text in one.codes.items()}


@functools.cache
def tables() -> dict[str, dict[str, str]]:
    """By place: {code: what the table has of it}."""
    return {
        "verdict": {one.value: "" for one in verdict.Code},
        "host call": {one.value: "" for one in hostcall.Denial},
        "api": {name: str(int(status)) for name, status in problems.STATUS_OF.items()},
        "page": {name: str(int(status)) for name, status in answers.STATUS_OF.items()},
        "helper": {name: str(status) for name, status in protocol.CODES.items()},
        "latticed": {name: str(number) for name, number in daemon.EXIT_CODES.items()},
        "latticed-apply": {name: str(number) for name, number in apply.EXIT_CODES.items()},
    }


@functools.cache
def known() -> dict[str, set[str]]:
    """Every code that exists: {code: the modules that name it}."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, tree in source.trees().items():
        if name not in NO_CODES:
            for one in _in_module(name, tree):
                found[one].add(name)
    for module, names in (*ELSEWHERE.items(), *MADE.items()):
        for one in names.split():
            found[one].add(module)
    for names in tables().values():
        for one in names:
            found[one].add("")
    return found


def _in_module(place: str, tree: list[ast.AST]) -> Iterator[str]:
    """The codes that a module names: in calls, and in what it returns or keeps as (code, words)."""
    module: Any = None
    for node in tree:
        name, given = _given(node)
        for one in given:
            for part in _values(one):
                if isinstance(part, ast.Constant):
                    said = part.value
                else:
                    module = module or _module(place)
                    said = _evaluated(part, module)
                if isinstance(said, str) and re.fullmatch(
                    r"[a-z][a-z0-9_]+" if name != "text" else "bad_[a-z_]+", said
                ):
                    yield str(said)


def _given(node: ast.AST) -> tuple[str, list[ast.expr]]:
    """(function, what may be a code) of a call that names one, of `{"code": …}`, `code = …` and `code, message = …`."""
    match node:
        case ast.Call(func=function):
            name = str(getattr(function, "id", getattr(function, "attr", "")))
            at = CALLS.get(name)
            given = [node.args[at]] if at is not None and len(node.args) > at else []
            return name, given + [one.value for one in node.keywords if one.arg == "code"]
        case ast.Dict(keys=keys, values=values):
            named = zip(keys, values, strict=True)
            return "", [value for key, value in named if isinstance(key, ast.Constant) and key.value == "code"]
        case ast.Assign(targets=[ast.Name(id="code")], value=value):
            return "", [value]
        case ast.Assign(targets=[ast.Tuple(elts=[ast.Name(id="code"), *_])], value=value):
            return "", [one.elts[0] for one in _values(value) if isinstance(one, ast.Tuple)]
        case _:
            return "", []


def _values(node: ast.expr) -> Iterator[ast.expr]:
    """What an argument can be: both sides of a condition."""
    if isinstance(node, ast.IfExp):
        yield from (*_values(node.body), *_values(node.orelse))
    elif isinstance(node, ast.BoolOp):
        yield from (one for part in node.values for one in _values(part))
    else:
        yield node


def _module(place: str) -> Any:
    name = f"latticed.{place.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__")
    return importlib.import_module(name)


def _evaluated(node: ast.expr, module: Any) -> Any:
    """The value of a constant of the module; None of what only a run knows."""
    if not isinstance(node, ast.Name | ast.Attribute):
        return None
    try:
        return eval(compile(ast.Expression(node), "", "eval"), vars(module))  # noqa: S307 - our own source
    except (NameError, AttributeError):
        return None


def _numbers(place: str, number: str) -> str:
    """An HTTP status or exit code, in brackets; nothing where there is none."""
    return f" ({number})" if number and place != "helper" else ""


def page() -> str:
    """docs/reference/codes.md"""
    found = Page(
        "Codes",
        "Every refusal and failure has a stable code for programs, a reason for people that says what was expected and"
        " what was found, and mostly a hint:",
    )
    found.block(
        "text",
        "error: cannot make acme.demo active: expected installed after verified (invalid_transition)\n"
        "hint: latticectl install acme.demo",
    )
    found.text(
        "This is the list of all of them, A to Z, and where they can appear; each leads to [what to do about"
        " it](../troubleshooting.md)."
    )
    by_place = tables()
    rows = []
    for name, text in sorted(texts().items()):
        where = [place for place, names in by_place.items() if name in names]
        rows.append(
            (
                anchored(anchor(name), f"[`{name}`](../troubleshooting.md#{anchor(name)})"),
                sentence(text.means),
                or_dash("; ".join(f"{PLACES[place]}{_numbers(place, by_place[place][name])}" for place in where)),
            )
        )
    found.table(("code", "meaning", "told as"), rows)
    found.heading("Verdicts, in their order", anchor="verdicts")
    found.text("The first that applies is told: `latticectl verify BUNDLE`, `latticectl rejected --hints`.")
    found.items(f"[`{one}`](../troubleshooting.md#{anchor(one)}): {text_of(one).means}" for one in by_place["verdict"])
    found.heading("Denials of host calls", anchor="denials")
    found.text("What a plugin gets as the `code` of a `HostError`.")
    found.items(
        f"[`{one}`](../troubleshooting.md#{anchor(one)}): {text_of(one).means}" for one in by_place["host call"]
    )
    found.heading("Answers of the control API, by status", anchor="api-codes")
    found.text("What is not here is an error of latticed itself: 500.")
    by_status: dict[str, list[str]] = defaultdict(list)
    for name, status in by_place["api"].items():
        by_status[status].append(f"[`{name}`](../troubleshooting.md#{anchor(name)})")
    found.table(("status", "codes"), [(status, ", ".join(names)) for status, names in sorted(by_status.items())])
    return str(found)


def troubleshooting() -> str:
    """docs/troubleshooting.md"""
    found = Page(
        "What to do when something does not work",
        "Look for what you see; below it stand the codes that may be behind it, each with why it happens and what to"
        " type. If you know the plugin, begin with the command that says it for this one:",
    )
    found.block(
        "text",
        "latticectl explain acme.demo        # about a plugin\n"
        "latticectl explain ledger_damaged   # about a code\n"
        "latticectl doctor                   # about everything around the daemon",
    )
    found.text(
        "If you have a code, search this page for it, or see [the list from A to Z](reference/codes.md). In commands,"
        " ID is a plugin's id, BUNDLE its directory, other words in capitals are yours to fill in."
    )
    found.items(f"[{one.title}](#{one.anchor})" for one in codes.symptoms())
    for one in codes.symptoms():
        found.heading(one.title, anchor=one.anchor)
        found.text(one.about)
        found.block("text", one.command)
        found.table(
            ("code", "what it means", "why, and what helps", "type"),
            [
                (
                    anchored(anchor(name), code(name)),
                    sentence(text.means),
                    sentence(text.why),
                    code(codes.shown(text.command)),
                )
                for name, text in one.codes.items()
            ],
        )
    return str(found)
