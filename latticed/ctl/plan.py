"""latticectl plan: changes of this host that plugins ask for; the root helper shows, applies and undoes them.

The list comes from the daemon. Everything that decides goes to the helper's own socket: the daemon can approve nothing
(contracts §12).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import plan_view, replies, root_helper
from latticed.ctl.arguments import Parser, examples, newest
from latticed.ctl.exit_codes import ExitCode, of
from latticed.ctl.table import Cell, Column
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.root_helper import HelperClient
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl plan list",
    "latticectl plan show 3f0c91ab                     # the difference to the live state, and the review to approve",
    "latticectl plan approve 3f0c91ab 91aa…            # the whole review, as it was shown",
    "latticectl plan approve 3f0c91ab 91aa… --override lockout_source",
    "latticectl plan apply 3f0c91ab --confirm-within 2m",
    "latticectl plan confirm 3f0c91ab                  # keep it; else it is undone when the time is over",
    "latticectl plan rollback 3f0c91ab                 # undo it now",
    "latticectl plan refuse 3f0c91ab",
)

_STATES: Final = tuple(plan_view.TONES)
_TABLE: Final = (
    Column(title="PLAN"),
    Column(title="STATE"),
    Column(title="KIND"),
    Column(title="PLUGIN"),
    Column(title="CREATED"),
    Column(title="REASON", shrinks=True),
)
_PLAN: Final = "8 or more digits of its name, as plan list shows it"
_ELSEWHERE: Final = frozenset({"unreachable", "socket_denied", "denied"})
"""Problems of the helper after which the daemon can still show what was planned."""
_HOLDS: Final = {"confirm": "applied", "rollback": "rolled_back"}
"""The state in which there is nothing left for an action to do."""
_MOST: Final = 500
"""Plans of one answer of the daemon."""


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="the newest plans", description="the newest plans")
    listing.add_argument("--state", choices=_STATES, help="only those in this state")
    listing.add_argument("--plugin", metavar="ID", help="only those of this plugin")
    listing.add_argument("--last", metavar="N", type=newest(_MOST), default=50, help="the newest so many (default 50)")
    for name, summary in (
        ("show", "what it would change, and the review to approve"),
        ("approve", "approve a plan as it was reviewed"),
        ("refuse", "refuse a plan for good"),
        ("apply", "apply an approved plan; it is undone unless it is confirmed in time"),
        ("confirm", "keep what was applied"),
        ("rollback", "undo now what is not confirmed"),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("plan", metavar="PLAN", help=_PLAN)
        if name == "approve":
            action.add_argument("review", metavar="REVIEW", help="all 64 digits, as plan show prints them")
            plan_view.add_override(action)
        if name == "apply":
            plan_view.add_confirm_within(action)


def run(session: CtlSession) -> int:
    """List plans from the daemon, or have the helper carry out an action."""
    args = session.args
    if args.action == "list":
        return _list(session)
    if args.action == "approve" and not root_helper.is_digest(args.review):
        hint = "approve what you have read: latticectl plan show PLAN prints it"
        raise Problem("usage", "REVIEW: expected all 64 digits of the review", hint)
    client = root_helper.of(session)
    if args.action == "show":
        return _show(session, client)
    plan = client.whole(args.plan)
    match args.action:
        case "approve":
            answer = _approved(session, client, plan)
        case "apply":
            answer = client.apply(plan, args.confirm_within)
        case action:
            answer = _decided(client, action, plan)
    # What was asked for: to have undone is no failure of `rollback`.
    code = plan_view.moved(session.screen, answer)
    return ExitCode.OK if args.action in {"rollback", "refuse"} else code


def _approved(session: CtlSession, client: HelperClient, plan: str) -> dict[str, Any]:
    """Approve a plan as it was reviewed; what stands against it is printed before the Problem is raised."""
    args = session.args
    try:
        return client.approve(plan, args.review.lower(), args.override)
    except root_helper.HelperFault as fault:
        plan_view.findings(session.screen, fault)
        raise


def _decided(client: HelperClient, action: str, plan: str) -> dict[str, Any]:
    """Confirm, roll back or refuse a plan; one for which that holds already succeeds, and says so."""
    try:
        return client.decide(action, plan)
    except root_helper.HelperFault as fault:
        plans = replies.rows(client.observe().get("plans"), "list of plans")
        found = next((str(one.get("state")) for one in plans if one.get("plan") == plan), "")
        if fault.code != "invalid_transition" or found != _HOLDS.get(action):
            raise
        return {"plan": plan, "state": found, "review": "", "deadline_s": 0.0, "message": "it was so already"}


def _list(session: CtlSession) -> int:
    """Print the newest plans: the daemon's, or the helper's own while no daemon runs."""
    args, screen = session.args, session.screen
    query = {"state": args.state, "plugin": args.plugin, "limit": args.last}
    try:
        plain = replies.mapping(session.client().get("plans", query=query), "plans")
    except Problem as problem:
        # Whoever has to undo something must find its name without a daemon.
        if of(problem) is not ExitCode.UNREACHABLE:
            raise
        return _list_of_helper(session, problem)
    rows = replies.rows(plain.get("plans"), "list of plans")
    if screen.json_wanted:
        screen.json(plain)
        return ExitCode.OK
    screen.rows(_TABLE, [_row(session, row) for row in rows])
    if plain.get("helper"):
        screen.note("states are of its last report:", str(plain["helper"]))
    return ExitCode.OK


def _row(session: CtlSession, row: dict[str, Any]) -> tuple[str | Cell, ...]:
    """The cells of one plan."""
    return (
        str(row.get("sha256") or "")[: plan_view.SHORT],
        plan_view.state(str(row.get("state") or "")),
        str(row.get("kind") or ""),
        str(row.get("plugin") or ""),
        session.screen.when(str(row.get("created_at") or "")),
        ": ".join(filter(None, (str(row.get("code") or ""), str(row.get("reason") or "")))),
    )


def _list_of_helper(session: CtlSession, unreachable: Problem) -> int:
    """Print the plans that the helper keeps; `unreachable` is raised when it cannot be asked either."""
    args, screen = session.args, session.screen
    try:
        observed = root_helper.of(session).observe()
    except Problem:
        raise unreachable from None
    rows = [
        {"sha256": row.get("plan"), "reason": row.get("message"), "created_at": row.get("offered_at"), **row}
        for row in replies.rows(observed.get("plans"), "list of plans")
        if args.state in {None, row.get("state")} and args.plugin is None
    ]
    screen.note(f"{unreachable.reason}: these are the root helper's")
    if screen.json_wanted:
        screen.json({"plans": rows, "next": None, "helper": ""})
    else:
        screen.rows(_TABLE, [_row(session, row) for row in rows])
    return ExitCode.OK


def _show(session: CtlSession, client: HelperClient) -> int:
    """Print the review of a plan; without the helper what was planned, and then the problem."""
    screen = session.screen
    try:
        plain = client.review(client.whole(session.args.plan))
    except root_helper.HelperFault as fault:
        plan_view.findings(screen, fault)
        if fault.code in _ELSEWHERE:
            _show_planned(session)
        raise
    except Problem as problem:
        if problem.code in _ELSEWHERE:
            _show_planned(session)
        raise
    if screen.json_wanted:
        screen.json(plain)
        return ExitCode.OK
    plan_view.review(screen, plain)
    command, overrides = plan_view.approval(plain)
    if command:
        screen.hint(f"mend the findings, or add {overrides} to: {command}" if overrides else command)
    return ExitCode.OK


def _show_planned(session: CtlSession) -> None:
    """Print the daemon's view of a plan, as far as it can be had."""
    screen, given = session.screen, session.args.plan.lower()
    try:
        client = session.client()
        plans = replies.rows(replies.mapping(client.get("plans", query={"limit": _MOST}), "plans").get("plans"), "list")
        found = sorted({str(one.get("sha256")) for one in plans if str(one.get("sha256")).startswith(given)})
        if len(found) != 1:
            return
        plain = replies.mapping(client.get("plans", found[0]), "plan")
    except Problem:
        return  # the helper's problem is the one that is reported
    if screen.json_wanted:
        screen.json(plain)
        return
    screen.fields(
        (
            ("plan", found[0]),
            ("kind", str(plain.get("kind") or "")),
            ("plugins", " ".join(replies.texts(plain.get("plugins")))),
            ("state", plan_view.state(str(plain.get("state") or ""))),
        )
    )
    plan_view.intent(screen, plain.get("intent"))
