"""What a node believes: its state, a document and a clock in, a verdict and the next state out. Pure.

    operator (offline) ── signs ──► intent, certificates of controllers and nodes, revocations, invocations
    controller (online) ── signs ──► assignment: this node, an epoch, a generation, the SHA-256 of an intent

A node takes up an intent when both hold. The controller chooses which intent that an operator signed, and when; it can
have no node run, grant or believe what no operator signed for it. The engine can withhold, and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from latticed.fleet import documents
from latticed.fleet.decisions import Followed
from latticed.fleet.documents import (
    Assignment,
    BundleSource,
    ControllerCertificate,
    Intent,
    Invocation,
    Malformed,
    NodeCertificate,
    Revocations,
    Signed,
    WantedPlugin,
)
from latticed.fleet.engine import DESIRED_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

INVOCATION_S: Final = 3_600
"""Seconds that an invocation may be valid for: nonces are remembered for so long."""
MAX_NONCES: Final = 10_000
_MOST_HAD: Final = 16
"""Intents of which it is remembered what a node had under them, beside those that it may go back to at once."""
MAX_REVOKED: Final = 20_000
"""Keys and intents that are remembered as revoked: only operators add to them."""


class Present(Struct, frozen=True, kw_only=True):
    """The intent that a node has taken up, and the assignment by which it did. Of an intent that it went back to,
    `plugins` name the identities that it had under it in place of ranges.
    """

    generation: int
    intent: str
    intent_generation: int
    back_to: tuple[str, ...]
    plugins: tuple[WantedPlugin, ...]
    bundles: tuple[BundleSource, ...]
    operator: str = ""
    """Whose key signed the intent."""
    since: int = 0
    """When it was first taken up after another one, in seconds since 1970."""


class NodeState(Struct, frozen=True, kw_only=True):
    """All that a node remembers. `operators`: pinned at enrolment. `serial` and `certified_by`: of the certificate that
    the labels are from, and whose key signed it. `epoch` and `generation`: of the last assignment
    that was taken up, whose SHA-256 is `assignment`. `highest`: the highest generation of an intent that it has ever
    taken up. `nonces`: of invocations that were carried out, with their expiry; what expires by `spent` is carried out
    no more, as its nonce may be forgotten. `followed`: how far the daemon's record was told. `lists`: those that
    `revoked` is from, the last ones, by SHA-256. `had`: by the SHA-256 of an intent, the one taken up last at the end,
    which identity of a plugin, of which that intent has a range, was as wanted last.
    """

    fleet: str
    operators: tuple[str, ...]
    node: str
    node_key: str
    labels: dict[str, str]
    serial: int = 0
    certified_by: str = ""
    epoch: int = 0
    generation: int = 0
    assignment: str = ""
    highest: int = 0
    present: Present | None = None
    settled: frozenset[str] = frozenset()
    had: dict[str, dict[str, str]] = {}
    revocations: int = 0
    revoked: frozenset[str] = frozenset()
    lists: tuple[str, ...] = ()
    nonces: Annotated[dict[str, int], Meta(max_length=MAX_NONCES)] = {}
    spent: int = 0
    events: int = 0
    head: str = documents.GENESIS
    followed: Followed | None = None

    @property
    def withdrawn(self) -> bool:
        """Whether what is present was revoked, or its operator, or he is none any more: it stays as far as it was
        carried out, and nothing more follows.
        """
        if self.present is None:
            return False
        return self.present.intent in self.revoked or self.gone(self.present.operator)

    def operator(self, key: str) -> bool:
        """Whether this key is a pinned operator's, and not revoked."""
        return key in self.operators and key not in self.revoked

    def gone(self, key: str) -> bool:
        """Whether whoever signed something that is kept counts no more; empty where it was not kept who."""
        return bool(key) and not self.operator(key)


class Refusal(Struct, frozen=True, kw_only=True):
    """Why a document does not count."""

    code: str
    expected: str
    found: str

    @property
    def reason(self) -> str:
        return f"expected {self.expected}, found {self.found}"


class TakenUp(Struct, frozen=True, kw_only=True):
    """A new assignment was taken up: the state's `present` is what is wanted now."""

    generation: int


class Unchanged(Struct, frozen=True, kw_only=True):
    """It is the assignment that was taken up already: what is wanted stays, whatever has expired since."""


class Carried(Struct, frozen=True, kw_only=True):
    """An invocation that may be carried out, once the state with its nonce is kept. `operator`: whose key signed it."""

    invocation: Invocation
    operator: str


Verdict = TakenUp | Unchanged | Refusal


class _No(Exception):
    """Carries a refusal out of the checks."""

    def __init__(self, code: str, expected: str, found: str) -> None:
        super().__init__(code)
        self.refused = Refusal(code=code, expected=expected, found=found[:200])


def judge(state: NodeState, data: bytes, *, now_s: int) -> tuple[NodeState, Verdict]:
    """The verdict on a desired document, and the state to keep before anything is done.

    Revocations that an operator signed are learnt even when the rest is refused.
    """
    try:
        found = documents.unpack(data, most=DESIRED_BYTES)
    except Malformed as error:
        return state, Refusal(code="document_malformed", expected="a desired document", found=str(error)[:200])
    try:
        if found.revocations is not None:
            state = _learnt(state, found.revocations)
        if found.node is not None:
            state = _certified(state, found.node)
        return _judged(state, found, now_s)
    except _No as no:
        return state, no.refused


def judge_invocation(state: NodeState, data: bytes, *, now_s: int) -> tuple[NodeState, Carried | Refusal]:
    """The verdict on an invocation; the state with its nonce is to be kept before it is carried out."""
    try:
        signed = _by_operator(state, data, Invocation)
        wanted: Invocation = signed.document
        _check_audience(state, wanted.node, wanted.node_key)
        if not now_s < wanted.expires <= now_s + INVOCATION_S:
            moment = f"{wanted.expires} at {now_s}"
            raise _No("invocation_expired", f"an invocation that expires within {INVOCATION_S} s from now", moment)
        live = {nonce: at for nonce, at in state.nonces.items() if at > now_s}
        # Also when the clock has gone back since.
        spent = max((state.spent, *(at for at in state.nonces.values() if at <= now_s)))
        if wanted.nonce in state.nonces or wanted.expires <= spent:
            raise _No("invocation_replayed", "an invocation that was not carried out yet", f"nonce {wanted.nonce}")
        if len(live) >= MAX_NONCES:
            raise _No("invocations_too_many", f"at most {MAX_NONCES} within {INVOCATION_S} s", "more")
    except _No as no:
        return state, no.refused
    kept = {**live, wanted.nonce: wanted.expires}
    return msgspec.structs.replace(state, nonces=kept, spent=spent), Carried(invocation=wanted, operator=signed.key)


def why_not_begun(state: NodeState, carried: Carried, *, now_s: int) -> Refusal | None:
    """Why an invocation that counted when it came, and waited for its turn, is not begun now; None when it is."""
    try:
        _check_operator(state, carried.operator)
        _check_unexpired("invocation_expired", carried.invocation.expires, now_s)
    except _No as no:
        return no.refused
    return None


def settled(state: NodeState, present: Present, wanted: WantedPlugin, identity: str) -> NodeState:
    """The state once a plugin is as wanted by what is present, in this identity (empty for none)."""
    had = state.had
    if wanted.versions is not None and identity:
        had = {**had, present.intent: {**had.get(present.intent, {}), wanted.id: identity}}
    return msgspec.structs.replace(state, settled=state.settled | {wanted.id}, had=had)


def _judged(state: NodeState, found: documents.DesiredDocument, now_s: int) -> tuple[NodeState, Verdict]:
    """The verdict on what is left once revocations and labels are learnt; _No."""
    certificate = _by_operator(state, found.controller, ControllerCertificate)
    assignment = _read(found.assignment, Assignment)
    _check_controller(state, certificate, assignment)
    wanted: Assignment = assignment.document
    _check_fleet(state, wanted.fleet)
    _check_audience(state, wanted.node, wanted.node_key)
    if assignment.sha256 == state.assignment:
        return state, Unchanged()
    _check_turn(state, wanted, certificate.document)
    # From here on something new would begin: what has expired is no reason for that.
    _check_unexpired("controller_expired", certificate.document.expires, now_s)
    _check_unexpired("assignment_expired", wanted.expires, now_s)
    signed = _by_operator(state, found.intent, Intent)
    intent: Intent = signed.document
    if signed.sha256 != wanted.intent:
        raise _No("intent_mismatch", f"the intent {wanted.intent[:16]}…", f"{signed.sha256[:16]}…")
    if signed.sha256 in state.revoked:
        raise _No("intent_revoked", "an intent that is not revoked", f"{signed.sha256[:16]}…")
    _check_unexpired("intent_expired", intent.expires, now_s)
    _check_order(state, signed)
    if not intent.selector.selects(state.node, state.labels):
        raise _No("not_selected", "an intent whose selector has this node", _labels(intent.selector.labels))
    if strangers := {one.id for one in wanted.bundles} - {one.id for one in intent.plugins}:
        raise _No("bundle_unwanted", "bundles of plugins that the intent names", min(strangers))
    present = Present(
        generation=wanted.generation,
        intent=signed.sha256,
        intent_generation=intent.generation,
        back_to=intent.back_to,
        plugins=_plugins(state, signed),
        bundles=wanted.bundles,
        operator=signed.key,
        since=state.present.since if state.present and state.present.intent == signed.sha256 else now_s,
    )
    fresh = msgspec.structs.replace(
        state,
        epoch=wanted.epoch,
        generation=wanted.generation,
        assignment=assignment.sha256,
        highest=max(state.highest, intent.generation),
        present=present,
        settled=frozenset(),
        had=_remembered(state.had, signed),
    )
    return fresh, TakenUp(generation=wanted.generation)


def _remembered(had: dict[str, dict[str, str]], signed: Signed) -> dict[str, dict[str, str]]:
    """What is kept of `had` once this intent is taken up: from those that it names there may be further steps back."""
    before = {name: of for name, of in had.items() if name != signed.sha256}
    kept = {*signed.document.back_to, *list(before)[-_MOST_HAD:]}
    found = {name: of for name, of in before.items() if name in kept}
    return {**found, signed.sha256: had[signed.sha256]} if signed.sha256 in had else found


def _plugins(state: NodeState, signed: Signed) -> tuple[WantedPlugin, ...]:
    """What an intent that is taken up has this node run. Of one that it goes back to, that is what it had under it:
    a range may have what it goes back from as well, and never goes down.
    """
    if state.present is not None and signed.sha256 == state.present.intent:
        return state.present.plugins
    plugins: tuple[WantedPlugin, ...] = signed.document.plugins
    if signed.document.generation > state.highest:
        return plugins
    had = state.had.get(signed.sha256, {})
    return tuple(
        msgspec.structs.replace(one, identity=had[one.id], versions=None, publisher=None) if one.id in had else one
        for one in plugins
    )


def _check_turn(state: NodeState, wanted: Assignment, certificate: ControllerCertificate) -> None:
    """_No unless an assignment comes after the last by (epoch, generation), in the epoch that an operator certified.

    Both say the epoch: otherwise a new certificate of the same key would raise everything that the key has signed
    before, and whoever holds the engine could send any of it again.
    """
    if wanted.epoch != certificate.epoch:
        raise _No("epoch_mismatch", f"an assignment of the certificate's epoch {certificate.epoch}", str(wanted.epoch))
    if wanted.epoch < state.epoch:
        raise _No("epoch_old", f"an assignment of epoch {state.epoch} or above", str(wanted.epoch))
    if wanted.epoch == state.epoch and wanted.generation <= state.generation:
        raise _No("generation_old", f"a generation above {state.generation}", str(wanted.generation))


def _check_order(state: NodeState, signed: Signed) -> None:
    """_No unless an intent is newer than all before, the present one, or one that the present one names."""
    present, intent = state.present, signed.document
    if intent.generation > state.highest:
        return
    named = present is not None and (signed.sha256 == present.intent or signed.sha256 in present.back_to)
    if named and not state.withdrawn:
        return
    expected = f"an intent of a generation above {state.highest}, or one that the present one names in back_to"
    raise _No("intent_old", expected, f"generation {intent.generation}")


def _check_controller(state: NodeState, certificate: Signed, assignment: Signed) -> None:
    if assignment.key in state.revoked:
        raise _No("controller_revoked", "an assignment by a controller that is not revoked", assignment.key)
    if assignment.key != certificate.document.controller_key:
        expected = f"an assignment by the certified controller {certificate.document.controller}"
        raise _No("controller_unknown", expected, f"one by {assignment.key}")


def _learnt(state: NodeState, data: bytes) -> NodeState:
    """The state with what an operator revokes, which stays revoked; _No for what no operator signed."""
    signed = _by_operator(state, data, Revocations)
    found: Revocations = signed.document
    named = state.revoked.union(found.keys, found.intents)
    if len(named) > MAX_REVOKED:
        raise _No("revocations_too_many", f"at most {MAX_REVOKED} of all revocations", str(len(named)))
    # Of whatever serial: another operator may have signed one at the same time, and none takes anything back.
    lists = state.lists if signed.sha256 in state.lists else (*state.lists, signed.sha256)[-documents.MOST_LISTS :]
    serial = max(state.revocations, found.serial)
    return msgspec.structs.replace(state, revoked=named, revocations=serial, lists=lists)


def _certified(state: NodeState, data: bytes) -> NodeState:
    """The state with the labels of a newer certificate of this node; one that is older changes nothing, unless the
    operator of the newer one was revoked since. _No.
    """
    signed = _by_operator(state, data, NodeCertificate)
    found: NodeCertificate = signed.document
    _check_audience(state, found.node, found.node_key)
    if found.serial <= state.serial and not state.gone(state.certified_by):
        return state
    return msgspec.structs.replace(state, labels=found.labels, serial=found.serial, certified_by=signed.key)


def _by_operator(state: NodeState, data: bytes, kind: type[documents.D]) -> Signed:
    """A document of this fleet that a pinned operator signed who is not revoked; _No."""
    signed = _read(data, kind)
    _check_operator(state, signed.key)
    _check_fleet(state, signed.document.fleet)
    return signed


def _check_operator(state: NodeState, key: str) -> None:
    if key not in state.operators:
        raise _No("operator_unknown", "the signature of an operator whom this node knows", f"one by {key}")
    if key in state.revoked:
        raise _No("operator_revoked", "the signature of an operator who is not revoked", f"one by {key}")


def _read(data: bytes, kind: type[documents.D]) -> Signed:
    try:
        return documents.read(data, kind)
    except Malformed as error:
        word = documents.DOMAINS[kind].split(b".")[2].decode()
        raise _No("document_malformed", f"a signed document of the kind {word}", str(error)) from error


def _check_fleet(state: NodeState, fleet: str) -> None:
    if fleet != state.fleet:
        raise _No("other_fleet", f"a document of the fleet {state.fleet}", fleet)


def _check_audience(state: NodeState, node: str, key: str) -> None:
    if node != state.node or key != state.node_key:
        raise _No("other_node", f"a document for {state.node} and its key", f"one for {node} and {key}")


def _check_unexpired(code: str, expires: int, now_s: int) -> None:
    if now_s >= expires:
        raise _No(code, f"an expiry after now ({now_s})", str(expires))


def _labels(labels: dict[str, str]) -> str:
    return _joined(f"{name}={value}" for name, value in sorted(labels.items()))


def _joined(parts: Iterable[str]) -> str:
    return ", ".join(parts) or "names that are not this one"
