"""latticectl apply: plan, difference, approval, apply and confirmation of what a plugin wants of this host, in one go.

Each step says what failed. Until the approval nothing is changed but, with -f, the configuration, which is put back
when it comes to nothing (nothing takes a first one away: it becomes an empty one, or stays where the schema takes none
such); from then on the root helper undoes whatever was not confirmed in time, even if this process is killed.
"""

from __future__ import annotations

import select
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from latticed.ctl import ask, plan_view, replies, root_helper
from latticed.ctl.arguments import Parser, examples
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.root_helper import HelperClient
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl apply latticed.nft-guard",
    "latticectl apply latticed.nft-guard -f guard.toml --confirm-within 5m",
    "latticectl apply latticed.nft-guard --review 91aa…           # without a terminal: what plan show printed",
    "latticectl apply latticed.nft-guard --review 91aa… --confirm # and keep it if its self-check passes",
)

ACTION: Final = "plan"
"""The action by which a plugin plans what it is configured for; its result has the plan's `sha256`."""
_APPROVAL_DIGITS: Final = 8
_INVOKE_S: Final = 60.0
_TICK_S: Final = 1.0
_DONE: Final = frozenset({"applied", "unconfirmed"})
"""States in which the host is as the plan says."""
_UNDONE_S: Final = 10.0
"""For the helper to undo what was not confirmed."""


class Reviewed(NamedTuple):
    """A plan and what the helper showed of it."""

    plan: str
    review: str
    plain: dict[str, Any]

    def is_settled(self) -> bool:
        """Whether there is nothing to do: it is what the target holds."""
        return self.plain.get("state") == "applied" and not self.plain.get("diff")

    def needs_approval(self) -> bool:
        """Whether an operator has to approve: not if it only takes away, or this very review is approved."""
        return self.plain.get("narrows") is not True and self.plain.get("state") != "approved"


def arguments(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="the plugin's id, as latticectl list shows it")
    parser.add_argument(
        "-f", "--file", metavar="FILE", type=str, help="set this configuration first (TOML or JSON, - for stdin)"
    )
    parser.add_argument("--review", metavar="REVIEW", help="approve this review, whole: no question is asked")
    parser.add_argument("--confirm", action="store_true", help="keep it at once if its self-check passes")
    plan_view.add_override(parser)
    plan_view.add_confirm_within(parser)


def run(session: CtlSession) -> int:
    """The whole of it; exit code 1 when it was not approved, failed or was undone."""
    args = session.args
    plugin_id = ask.known_id(args.id)
    if args.review is not None and not root_helper.is_digest(args.review):
        raise Problem("usage", "--review: expected all 64 digits of the review", "latticectl plan show PLAN prints it")
    client = root_helper.of(session)
    # First of all: without the helper nothing is configured or planned.
    client.observe()
    answer = (_sit if args.file is None else _configured)(session, client, plugin_id)
    return plan_view.moved(session.screen, answer)


def _sit(session: CtlSession, client: HelperClient, plugin_id: str) -> dict[str, Any]:
    """From the plan to the confirmation; what became of the plan."""
    args, screen = session.args, session.screen
    reviewed = _review(session, client, *_plan(session, plugin_id))
    if not screen.json_wanted:
        plan_view.review(screen, reviewed.plain)
    if reviewed.is_settled():
        message = "it is applied already"
        return {"plan": reviewed.plan, "state": "applied", "review": "", "deadline_s": 0.0, "message": message}
    if reviewed.plain.get("state") == "refused":
        detail = f"the plan {reviewed.plan[: plan_view.SHORT]} was refused for good; nothing was changed"
        raise Problem("refused", detail, f"configure {plugin_id} for something else")
    _check_free(client.observe(), str(reviewed.plain.get("kind") or ""))
    if reviewed.needs_approval():
        _check_overrides(args.override, reviewed)
        _ask_approval(session, reviewed)
        _approve(client, reviewed, args.override)
        screen.note("approved")
    answer = _apply(client, reviewed, args.confirm_within)
    if answer.get("state") == "unconfirmed":
        screen.note("applied, and its self-check passed")
        answer = _confirm(session, client, reviewed, answer)
    return answer


# The configuration.


def _configured(session: CtlSession, client: HelperClient, plugin_id: str) -> dict[str, Any]:
    """`_sit` with the file as configuration, after which the one of before is set again unless the plan is applied.

    Problem config_invalid.
    """
    from latticed.client.control import ApiRefusal
    from latticed.ctl import config

    wanted, wanted_sha256, before = _checked(session, plugin_id)
    # Unless the daemon says that nothing changed: it answers after the plugin's restart, and may not be waited for.
    changed, done = True, False
    try:
        try:
            changed = bool(config.send(session, plugin_id, wanted, dry_run=False).get("changed"))
        except ApiRefusal as refusal:
            changed = refusal.status >= 500  # broken off, perhaps after it was set
            raise
        if changed:
            session.screen.note(f"{plugin_id} configured")
        answer = _sit(session, client, plugin_id)
        done = answer.get("state") in _DONE
    finally:
        # Also after Ctrl-C: what is not applied must not stay configured.
        if changed and not done:
            _put_back(session, plugin_id, before, wanted_sha256)
    return answer


def _checked(session: CtlSession, plugin_id: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """The file's configuration, which fits, its SHA-256, and what the daemon says of the one that is set.

    Problem config_invalid.
    """
    from latticed.client.control import ApiRefusal
    from latticed.ctl import config

    wanted = config.document(session.args.file)
    before = _configuration(session, plugin_id)
    try:
        fits = config.send(session, plugin_id, wanted, dry_run=True)
    except ApiRefusal as refusal:
        if refusal.code != "config_invalid":
            raise
        raise config.misfit(session.screen, refusal, session.args.file, plugin_id) from refusal
    return wanted, str(fits.get("sha256")), before


def _configuration(session: CtlSession, plugin_id: str) -> dict[str, Any]:
    """What the daemon says of the configuration that is set."""
    found = replies.mapping(session.client().get("plugins", "by-id", plugin_id, "config"), "configuration")
    replies.mapping(found.get("config"), "configuration")
    return found


def _put_back(session: CtlSession, plugin_id: str, before: dict[str, Any], wanted_sha256: str) -> None:
    """Set the configuration of before unless another one than the file's is set; a note says what became of it.

    A plugin that had none gets an empty one, if its schema takes that: the API takes none away.
    """
    from latticed.ctl import config

    screen, is_first = session.screen, not before.get("is_set")
    try:
        found = _configuration(session, plugin_id)
        if found.get("sha256") not in {before.get("sha256"), wanted_sha256}:
            screen.note(f"{plugin_id} was configured by somebody else meanwhile, and stays so")
        elif not found.get("is_set"):
            screen.note(f"{plugin_id} has no configuration, as before")
        else:
            # Also when it is the one of before: the request to set the file's may still be under way.
            config.send(session, plugin_id, before["config"], dry_run=False)
            again = "an empty configuration: it had none before" if is_first else "the configuration of before again"
            screen.note(f"{plugin_id} has {again}")
    except Problem as problem:
        why = f"the configuration of before could not be put back: {problem.reason}"
        if problem.code == "config_invalid" and is_first:
            why = f"{plugin_id} had no configuration, and the schema takes no empty one: this one stays set"
        screen.note(why)
        screen.hint(f"latticectl config get {plugin_id} shows what is set")


# The plan, its review and its approval.


def _plan(session: CtlSession, plugin_id: str) -> tuple[str, str]:
    """Have the plugin plan; the plan's name, and why the daemon could not offer it to the helper, or empty.

    Problems action_failed, plan_failed.
    """
    client, body = session.client(read_s=_INVOKE_S), {"action": ACTION, "payload": {}}
    reply = ask.invoke(client, plugin_id, body)
    if reply.get("ok") is not True:
        detail = str(reply.get("error") or reply.get("message") or "it gave no reason")
        hint = ask.where_it_tells(client, plugin_id)
        raise Problem("action_failed", f"planning: {plugin_id} refused: {detail}; nothing was changed", hint)
    result = reply.get("result")
    if not isinstance(result, dict):
        result = {}
    plan = str(result.get("sha256") or "")
    if not root_helper.is_digest(plan):
        detail = f"planning: {plugin_id} has no plan: expected its sha256 in the result of {ACTION!r}"
        raise Problem("plan_failed", detail, f"latticectl invoke {plugin_id} {ACTION}")
    return plan, ": ".join(filter(None, (str(result.get("code") or ""), str(result.get("reason") or ""))))


def _review(session: CtlSession, client: HelperClient, plan: str, not_offered: str) -> Reviewed:
    """What the helper shows of the plan; its faults are printed before the Problem is raised.

    `not_offered`: why the helper may not have it.
    """
    try:
        plain = client.review(plan)
    except root_helper.HelperFault as fault:
        plan_view.findings(session.screen, fault)
        if fault.code == "not_found" and not_offered:
            raise Problem("plan_failed", f"review: the daemon could not offer the plan: {not_offered}") from fault
        raise _at("review", fault) from fault
    return Reviewed(plan, str(plain.get("review") or ""), plain)


def _check_free(observed: dict[str, Any], kind: str) -> None:
    """Problem target_busy while another change waits for its confirmation: the apply would be refused."""
    for target in replies.rows(observed.get("targets"), "list of targets"):
        busy = str(target.get("unconfirmed") or "")
        if busy and target.get("kind") == kind:
            short = busy[: plan_view.SHORT]
            detail = f"{kind} has an unconfirmed change of plan {short}; nothing was changed"
            raise Problem("target_busy", detail, f"latticectl plan confirm {short}, or plan rollback {short}")


def _check_overrides(overrides: list[str], reviewed: Reviewed) -> None:
    """Problem intent_refused while something stands against the plan that is not overridden: nobody is asked then."""
    left = [code for code in plan_view.standing(reviewed.plain) if code not in overrides]
    if left:
        words = " ".join(f"--override {code}" for code in left)
        detail = f"approval: {', '.join(left)} stands against the plan, as printed above; nothing was changed"
        raise Problem("intent_refused", detail, f"change what is configured, or approve it in spite of that: {words}")


def _approve(client: HelperClient, reviewed: Reviewed, overrides: list[str]) -> None:
    """Approve; the helper looks again, so that it may find what did not stand against the plan before."""
    try:
        client.approve(reviewed.plan, reviewed.review, overrides)
    except root_helper.HelperFault as fault:
        raise _at("approval", fault) from fault


def _ask_approval(session: CtlSession, reviewed: Reviewed) -> None:
    """Return if the operator approves; Problems review_differs, not_approved: then nothing was changed."""
    args, screen = session.args, session.screen
    again = f"latticectl apply {args.id} --review {reviewed.review}"
    if args.review is not None:
        if args.review.lower() != reviewed.review:
            detail = f"approval: expected the review {reviewed.review}, found another one: the live state or the plan"
            raise Problem("review_differs", f"{detail} has changed since; nothing was changed", again)
        return
    if screen.json_wanted or not sys.stdin.isatty():
        raise Problem("not_approved", f"approval: the review is {reviewed.review}; nothing was changed", again)
    screen.flush()
    screen.err.write(f"to approve, type the first {_APPROVAL_DIGITS} digits of the review: ")
    screen.err.flush()
    typed = sys.stdin.readline().strip().lower()
    if typed != reviewed.review[:_APPROVAL_DIGITS]:
        raise Problem("not_approved", "approval: those are not its first digits; nothing was changed", again)


def _apply(client: HelperClient, reviewed: Reviewed, within_s: int) -> dict[str, Any]:
    """Apply; the helper checks the review against the live state again."""
    try:
        return client.apply(reviewed.plan, within_s)
    except root_helper.HelperFault as fault:
        raise _at("apply", fault) from fault


def _at(step: str, fault: root_helper.HelperFault) -> root_helper.HelperFault:
    """The fault with the step that it came from."""
    return root_helper.HelperFault(fault.code, f"{step}: {fault.reason}", fault.hint, fault.findings)


# Confirmation.


def _confirm(session: CtlSession, client: HelperClient, reviewed: Reviewed, answer: dict[str, Any]) -> dict[str, Any]:
    """Keep the change, or have it undone, as the operator says; without a terminal it stays to be confirmed."""
    args = session.args
    if args.confirm:
        return client.decide("confirm", reviewed.plan)
    if session.screen.json_wanted or not sys.stdin.isatty():
        return answer
    left = answer.get("deadline_s")
    until_s = time.monotonic() + (float(left) if isinstance(left, int | float) else 0.0)
    try:
        keep = _counted_down(session, until_s)
    except KeyboardInterrupt:
        keep = False
    if keep is None:
        # The helper's dead-man undoes it by itself; this asks what became of it.
        return _after_deadline(client, reviewed)
    return client.decide("confirm" if keep else "rollback", reviewed.plan)


def _counted_down(session: CtlSession, until_s: float) -> bool | None:
    """True for Enter, False for `r` or the end of input, None when the time is over."""
    err = session.screen.err
    while (left_s := until_s - time.monotonic()) > 0:
        err.write(f"\rEnter keeps it, r and Enter undoes it; it is undone in {left_s:3.0f} s ")
        err.flush()
        if select.select([sys.stdin], [], [], min(_TICK_S, left_s))[0]:
            typed = sys.stdin.readline()
            return typed.strip() == "" and typed != ""
    err.write("\n")
    return None


def _after_deadline(client: HelperClient, reviewed: Reviewed) -> dict[str, Any]:
    """The state of the plan once its deadline is over; Problem expired when the helper has undone it."""
    short = reviewed.plan[: plan_view.SHORT]
    deadline_s = time.monotonic() + _UNDONE_S
    while time.monotonic() < deadline_s:
        plans = replies.rows(client.observe().get("plans"), "list of plans")
        found = next((one for one in plans if one.get("plan") == reviewed.plan), {})
        if found.get("state") != "unconfirmed":
            return {"plan": reviewed.plan, "state": found.get("state"), "message": "not confirmed in time"}
        time.sleep(_TICK_S)
    raise Problem("expired", f"{short} was not confirmed in time", f"latticectl plan show {short}")
