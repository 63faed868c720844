"""The messages of the root helper's socket: requests, answers, codes and bounds (contracts §12).

One request for each connection, a line of JSON each way, UTF-8, ended by a newline:

    {"verb":"offer","kind":"nft","intent":{…},"secrets":[{"reference":"wg#ada","form":"key","value":"…"}]}
    {"plan":"3f0c…","state":"planned","review":""}

    {"verb":"approve","plan":"3f0c…","review":"91aa…"}
    {"code":"stale","message":"the live state has moved since …","hint":"latticectl plan show 3f0c…"}

An answer with `code` is an ErrorAnswer, anything else the struct that `ANSWERS` names for the verb. The answer of
`apply` comes when the change is unconfirmed, applied or undone, which may take OPERATION_S; the change goes on when the
caller leaves. Whoever connects must check that the peer is root (`kit.peers.of(sock).uid == 0`) before it sends, and
try again after EAGAIN: many wait to be accepted then.

| who | may ask |
|---|---|
| root | everything; `boot` is root's alone |
| approvers (`[apply] approvers`) | all but `boot` |
| `[apply] daemon_user`, whatever else `[apply]` says of it | offer, observe, apply of what is approved |
| everybody else, and uid 65534 | nothing |

No message carries a path, an argument vector or bytes. Imports neither the daemon nor asyncio: latticectl and the
daemon build on it. What a caller shows of the texts in answers it escapes (`kit.text`).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from latticed.kit import strict_json
from latticed.model import plan as plans
from latticed.model.errors import Problem
from latticed.model.plan import PlanState

MAX_REQUEST_BYTES: Final = 2 << 20
"""Longest request with its newline: an intent (256 KiB) and its secrets."""
MAX_ANSWER_BYTES: Final = 8 << 20
"""Longest answer with its newline; diff, intent and live state are bounded below it."""
MAX_DIFF_CHARACTERS: Final = 1 << 20
"""Of `Reviewed.diff`; what is longer is cut, and a last line says so. The review is over all of it."""
MAX_SECRETS: Final = 8_192
"""Secrets of one plan: 2,000 users of proxies have up to three derived ones each."""
MAX_FINDINGS: Final = 100
"""Findings in one answer; the first ones."""
MAX_STEPS: Final = 500
"""Steps in one answer of `observe`; ask again after the last one."""
OPERATION_S: Final = 120.0
"""Longest time that an operation takes at the helper, in seconds: a proxy core that neither ends nor starts, where a
dead-man takes as long as it may, and all is undone. Callers wait a little longer.
"""
REQUEST_S: Final = 5.0
"""How long a caller may take to send its request, in seconds, and to take the answer."""

OFFERS: Final = 32
"""Plans that the helper keeps at most."""

CODES: Final = {
    "bad_request": 400,
    "intent_refused": 400,
    "denied": 403,
    "not_found": 404,
    "not_approved": 409,
    "stale": 409,
    "target_busy": 409,
    "invalid_transition": 409,
    "expired": 409,
    "quota_exceeded": 409,
    "kind_unknown": 503,
    "tool_missing": 503,
    "tool_failed": 502,
    "apply_failed": 502,
    "state_unusable": 507,
    "busy": 503,
    "deadline_exceeded": 504,
    "internal": 500,
}
"""All codes of ErrorAnswer, each with the HTTP status that fits it.

`stale`: the live state is not the reviewed one, nothing was touched. `target_busy`: the target has an unconfirmed
change. `expired`: the deadline passed, the change was undone. `kind_unknown`: this helper has no such kind, or `[apply]
kinds` does not list it. `tool_missing`, `tool_failed`: a program of the kind. `apply_failed`: the change was begun and
undone. `state_unusable`: the helper's own directory cannot be written (full, read-only). `busy`: too many
requests wait.
"""

Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""A plan's name or a review, whole."""
KindName = Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9-]{0,31}\Z")]
Reference = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.-]{1,64}(#[A-Za-z0-9_.@-]{1,64})?\Z")]
"""What stands between the braces of `${secret:NAME#label}` in an intent."""
Source = Annotated[str, Meta(pattern=r"\A([0-9A-Fa-f:.]{1,45}(%[!-$&-.0-~]{1,15})?)?\Z")]
"""An IP address, or empty: where the operator's session comes from (the first field of SSH_CONNECTION).

A link-local one has its interface: `fe80::1%eth0`.
"""
Whole = Annotated[int, Meta(ge=0, le=2**53)]
Override = Annotated[str, Meta(pattern=r"\A[a-z][a-z_]{0,31}\Z")]
"""The code of findings in spite of which a plan is approved."""
SECRET_FORMS: Final = {
    "key": r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=",
    "uuid": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "password": r"[A-Za-z0-9._~+/=!@%^,:-]{6,256}",
}
"""Forms of secret values, whole: 32 bytes in base64, a UUID, a password without quotes, spaces and controls."""


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="verb"):
    """Base of all requests."""


class SecretValue(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The value of one reference of an intent: `form` is one of SECRET_FORMS, and what the kind expects there."""

    reference: Reference
    form: Annotated[str, Meta(max_length=16)]
    value: Annotated[str, Meta(min_length=6, max_length=256)]

    def __repr__(self) -> str:
        return f"SecretValue(reference={self.reference!r})"  # a value must not get into a log by accident


class Offer(Request, frozen=True, tag="offer"):
    """Keep a plan: checked and rendered, nothing is granted. `secrets`: exactly those that the intent refers to.

    The same plan with other values of secrets is planned anew: an approval was for another review. Answer: Moved.
    """

    kind: KindName
    intent: dict[str, Any]
    secrets: Annotated[tuple[SecretValue, ...], Meta(max_length=MAX_SECRETS)] = ()


class Observe(Request, frozen=True, tag="observe"):
    """What is there: the live state of `kind` (empty: of none), all plans that are kept, targets, and steps.

    `steps_after`: the steps with a greater `seq`, at most MAX_STEPS; -1 for none. Answer: Observed.
    """

    kind: Annotated[str, Meta(pattern=r"\A([a-z][a-z0-9-]{0,31})?\Z")] = ""
    steps_after: Annotated[int, Meta(ge=-1, le=2**53)] = -1


class Review(Request, frozen=True, tag="review"):
    """Render the plan against the live state: what an operator has to see before approving. Answer: Reviewed."""

    plan: Sha256
    source: Source = ""


class Approve(Request, frozen=True, tag="approve"):
    """Approve the plan as reviewed; `stale` when it would be another review now. Answer: Moved.

    `overrides`: codes of overridable findings in spite of which it is approved. What is overridden are the findings of
    that moment, each as it is: one that comes later, also of the same code, keeps the plan from being applied.
    """

    plan: Sha256
    review: Sha256
    source: Source = ""
    overrides: Annotated[tuple[Override, ...], Meta(max_length=8)] = ()


class Refuse(Request, frozen=True, tag="refuse"):
    """Refuse the plan for good; its secrets are removed. Answer: Moved."""

    plan: Sha256


class Apply(Request, frozen=True, tag="apply"):
    """Apply the plan, if it is approved or only takes away from what was approved last (`narrows`). Answer: Moved.

    `unconfirmed` with its deadline for an approved plan, `applied` at once for one that narrows. `confirm_within_s`: 0
    for the setting; ignored from the daemon's user.
    """

    plan: Sha256
    confirm_within_s: Annotated[int, Meta(ge=0, le=3_600)] = 0
    source: Source = ""


class Confirm(Request, frozen=True, tag="confirm"):
    """Keep the unconfirmed change of this plan; `expired` after its deadline. Answer: Moved."""

    plan: Sha256


class Rollback(Request, frozen=True, tag="rollback"):
    """Undo the unconfirmed change of this plan now. Answer: Moved."""

    plan: Sha256


class Boot(Request, frozen=True, tag="boot"):
    """After a boot: undo what was unconfirmed, and restore each kind's confirmed state. Root alone. Answer: Booted."""


AnyRequest = Offer | Observe | Review | Approve | Refuse | Apply | Confirm | Rollback | Boot


class Answer(Struct, frozen=True, kw_only=True):
    """Base of all answers. Unknown fields are ignored, so that an older caller understands a newer helper."""


class Finding(Answer, frozen=True):
    """One fault of an intent; `path` is where in it (`rules[3].ports`). `overridable`: an operator may approve the plan
    in spite of it (`Approve.overrides`).
    """

    code: str
    path: str
    expected: str
    found: str
    hint: str = ""
    overridable: bool = False


class ErrorAnswer(Answer, frozen=True):
    """What went wrong; `code` is one of CODES. `findings`: with intent_refused, each fault of the intent."""

    code: str
    message: str
    hint: str = ""
    findings: tuple[Finding, ...] = ()


class Moved(Answer, frozen=True):
    """The plan and its state now.

    `review`: the one that is approved, empty for none. `deadline_s`: for `unconfirmed`, the seconds left to confirm.
    `message`: a sentence for people, may be empty.
    """

    plan: str
    state: PlanState
    review: str = ""
    deadline_s: float = 0.0
    message: str = ""


class PlanView(Answer, frozen=True):
    """One plan that the helper keeps; times are RFC 3339 UTC. `message` says why it failed, was undone or is stale."""

    plan: str
    kind: str
    state: PlanState
    review: str
    message: str
    offered_at: str
    updated_at: str


class TargetView(Answer, frozen=True):
    """What a kind's target holds. Plans are named whole, or empty for none.

    `approved`: the plan whose intent bounds what narrows. `confirmed`: what is kept, and restored by `boot`.
    `unconfirmed`: what waits for confirmation, for `deadline_s` seconds more. `drifted`: the live state is not the
    confirmed one; None when it was not looked at. `problem`: what keeps it from being looked at (a missing tool), or
    from being put back where settings say so; the same words as long as that is so.
    """

    kind: str
    approved: str = ""
    confirmed: str = ""
    unconfirmed: str = ""
    deadline_s: float = 0.0
    drifted: bool | None = None
    problem: str = ""


class Step(Answer, frozen=True):
    """One step of the helper's own hash chain (`plans.steps`); fields as in contracts §11, without those it has no use
    for. `detail` holds texts, integers and booleans.
    """

    seq: int
    ts: str
    actor: str
    action: str
    target: str
    decision: str
    code: str
    reason: str
    detail: dict[str, str | int | bool]
    prev: str
    hash: str


class Observed(Answer, frozen=True):
    """`live`: the facts of the kind that was asked for, as its own model has them; None when none was asked for.

    `kinds`: those that this helper can apply. `first_step`: the oldest step that is still kept, 0 for none; a caller
    that asked for older ones missed some. `deadline_s` of targets and plans' states belong to one moment.
    """

    kinds: tuple[str, ...]
    targets: tuple[TargetView, ...]
    plans: tuple[PlanView, ...]
    live: dict[str, Any] | None = None
    steps: tuple[Step, ...] = ()
    first_step: int = 0
    last_step: int = 0


class Reviewed(Answer, frozen=True):
    """What an operator approves: `review` is over plan, rendering, target, live state and secrets.

    `diff` is a unified diff from the live state to the rendering, with references in place of secrets, empty when they
    are equal. `rendering`: the SHA-256 of that rendering, in hex. `narrows`: it may be applied without approval.
    `findings`: overridable ones that stand against it now; `overridden`: those in spite of which it is approved.
    """

    plan: str
    kind: str
    target: str
    state: PlanState
    review: str
    rendering: str
    diff: str
    intent: dict[str, Any]
    narrows: bool
    findings: tuple[Finding, ...] = ()
    overridden: tuple[Finding, ...] = ()


class Restored(Answer, frozen=True):
    """What `boot` did for one kind: `undone`, `restored`, `nothing`, or `failed` with its reason."""

    kind: str
    outcome: str
    message: str = ""


class Booted(Answer, frozen=True):
    """What `boot` did."""

    targets: tuple[Restored, ...]


ANSWERS: Final[dict[type[Request], type[Answer]]] = {
    Offer: Moved,
    Observe: Observed,
    Review: Reviewed,
    Approve: Moved,
    Refuse: Moved,
    Apply: Moved,
    Confirm: Moved,
    Rollback: Moved,
    Boot: Booted,
}
"""The answer of each request, unless it is an ErrorAnswer."""


def encode(message: Request | Answer) -> bytes:
    """A message as its line, newline included. Problem too_large for a request that no helper would read."""
    # Not ASCII-escaped: an intent of 256 KiB would grow sixfold.
    line = json.dumps(msgspec.to_builtins(message), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    if isinstance(message, Request) and len(line) > MAX_REQUEST_BYTES:
        raise Problem("too_large", f"expected a request of at most {MAX_REQUEST_BYTES} bytes, found {len(line)}")
    return line


def decode_request(line: bytes) -> AnyRequest:
    """The request of a line; Problem bad_request says what was expected. Never repeats a value."""
    found = _loads(line, MAX_REQUEST_BYTES, plans.MAX_DEPTH + 2)
    try:
        request: AnyRequest = msgspec.convert(found, AnyRequest, strict=True)
    except (msgspec.ValidationError, ValueError) as error:
        raise Problem("bad_request", str(error)[:300]) from error
    return request


def decode_answer(line: bytes, request: Request) -> Answer:
    """The answer to `request`: an ErrorAnswer or the struct of ANSWERS; Problem bad_request for anything else."""
    found = _loads(line, MAX_ANSWER_BYTES, 64)
    kind = ErrorAnswer if isinstance(found, dict) and "code" in found else ANSWERS[type(request)]
    try:
        # JSON has arrays, the structs have tuples.
        return msgspec.convert(found, kind, strict=True)
    except (msgspec.ValidationError, ValueError) as error:
        raise Problem("bad_request", f"the root helper gave an answer that cannot be read: {error}"[:300]) from error


def _loads(line: bytes, limit: int, depth: int) -> Any:
    """The JSON of a line, strictly; Problem bad_request."""
    if len(line) > limit:
        raise Problem("bad_request", f"expected a line of at most {limit} bytes")
    try:
        return strict_json.loads(line, max_depth=depth, integers_only=False)
    except strict_json.InvalidJson as error:
        raise Problem("bad_request", str(error)[:300]) from error
