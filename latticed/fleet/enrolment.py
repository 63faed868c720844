"""How a host joins a fleet, once, and how its credentials are renewed: the documents' order and both sides' decisions.

    operator (offline) ── invitation: signed token, a key, credentials that may only ask ──► host
    host ── {"token", "request"} at enrol.<nonce> ──► controller ── {"credentials", "controller"} ──► host
    node ── {"request"} at renew.<node> ──► controller ── the same answer ──► node

The host makes its keys itself. The token's nonce is what `nonce_of` makes of the invitation's public key, and that key
signs the request: whoever carries it cannot put keys of his own in. The first host that asks has the token; the same
host may ask again, with the same keys, until the token expires. Pure.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Collection
from typing import Annotated, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta, Struct

from latticed.fleet import deployment, documents, nkeys
from latticed.fleet.documents import (
    ControllerCertificate,
    EnrolmentRequest,
    EnrolmentToken,
    Malformed,
    NodeCredentials,
    RenewalRequest,
    Signed,
)
from latticed.fleet.judging import Refusal
from latticed.kit import strict_json
from latticed.kit.text import sanitise
from latticed.model.errors import Problem
from latticed.trust import key_files, keys

FORMAT: Final = "latticed-fleet-invitation-1"
INVITATION_BYTES: Final = 128 << 10
"""Largest invitation: a token with its certificates, and credentials."""
REQUEST_BYTES: Final = 64 << 10
"""Largest request, as a message of a node may have."""
ANSWER_BYTES: Final = 32 << 10
CREDENTIALS_S: Final = 14 * 86_400
"""How long a node's credentials last: as long as a host may be off without being invited anew."""
TOKEN_S: Final = 30 * 86_400
"""Longest life of a token: a controller remembers for so long that it was used."""

_HINTS: Final = {
    "enrolment_used": (
        "if no host of yours has used it, revoke that key (latticectl fleet revoke); latticectl fleet enroll makes "
        "another invitation"
    ),
    "enrolment_expired": "latticectl fleet enroll makes another invitation",
    "enrolment_revoked": "latticectl fleet enroll makes another invitation",
    "enrolment_invalid": "ask the operator for the invitation once more, or for another one",
    "node_exists": (
        "another host has this name: choose another one, or revoke that host's key (latticectl fleet revoke) when it "
        "is gone"
    ),
    "labels_kept": (
        "for other labels have this host invited for longer (latticectl fleet enroll --days), or its labels certified "
        "(latticectl fleet sign)"
    ),
    "node_unknown": "the controller knows no such node: have the operator invite this host anew",
    "node_revoked": (
        "this host was revoked; to have it back, under another key: systemctl stop latticed-fleet, remove "
        "/var/lib/latticed-fleet/node, then latticed-fleet join with a new invitation"
    ),
    "renewal_invalid": "look at the agent's log on the host",
    "operator_unknown": "the invitation is by an operator whom the controller does not know",
    "store_unavailable": "free some space on the controller's host, then run this again: the invitation stays yours",
    "other_fleet": "the invitation is of another fleet than the controller's",
}


class Invitation(Struct, frozen=True, kw_only=True):
    """What is in an invitation's file. `key` signs the request; `credentials` is a credentials file as nsc writes it,
    which may only ask at `enrol.<nonce>`.
    """

    token: Signed
    key: Ed25519PrivateKey
    credentials: nkeys.UserCredentials

    @property
    def document(self) -> EnrolmentToken:
        """What the operator signed."""
        found: EnrolmentToken = self.token.document
        return found


class _InvitationFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: str
    token: msgspec.Raw
    key: str
    credentials: str


class _RequestForm(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    token: msgspec.Raw
    request: msgspec.Raw


class _RenewalForm(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    request: msgspec.Raw


class _AnswerForm(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Either credentials and the controller's certificate, or why there are none."""

    credentials: msgspec.Raw = msgspec.Raw(b"")
    controller: msgspec.Raw = msgspec.Raw(b"")
    code: Annotated[str, Meta(pattern=r"^[a-z_]{0,64}\Z")] = ""
    reason: Annotated[str, Meta(max_length=500)] = ""


class EnrolmentAsked(Struct, frozen=True, kw_only=True):
    """A request to join whose signatures hold under the keys that they name; nothing more is judged."""

    token: Signed
    request: EnrolmentRequest

    @property
    def document(self) -> EnrolmentToken:
        """What an operator signed."""
        found: EnrolmentToken = self.token.document
        return found


class EnrolmentKnown(Struct, frozen=True, kw_only=True):
    """What a controller knows when it decides: its fleet, the operators' keys that it was given, what they revoked
    (keys and SHA-256 of documents), which node's key has used the token already, and which key has the node's name.
    """

    fleet: str
    operators: tuple[str, ...]
    revoked: Collection[str]
    used_by: str | None
    holder: str | None
    used_with: str | None = None
    """The key that it was given credentials for, to connect with; None where that is not known."""
    lasting: tuple[dict[str, str], int] | None = None
    """Labels that the key keeps, and until when the invitation counts that they are from: it has joined by it, and it
    ends after this one. None where there is none.
    """


class Joined(Struct, frozen=True, kw_only=True):
    """The host may be this node: to be kept, with the token, before it is answered. `again`: it is kept already."""

    node: str
    node_key: str
    user: str
    labels: dict[str, str]
    token: str
    expires: int
    again: bool


class Renewed(Struct, frozen=True, kw_only=True):
    """The node may have credentials for `user`."""

    node: str
    node_key: str
    user: str


def nonce_of(key: str) -> str:
    """The nonce of the token whose invitation has this public key (base64): 32 hex digits."""
    return hashlib.sha256(b"latticed.fleet.invitation.v1\n" + keys.raw(key)).hexdigest()[:32]


# The operator's side.


def invite(
    operator: Ed25519PrivateKey,
    *,
    token: EnrolmentToken,
    key: Ed25519PrivateKey,
    credentials: nkeys.UserCredentials,
) -> bytes:
    """An invitation's file. `token.token` is `nonce_of` the public half of `key`. Problem enrolment_invalid."""
    try:
        envelope = documents.sign(token, operator)
    except Malformed as error:
        raise Problem("enrolment_invalid", f"expected a token that hosts can read, found: {error}") from error
    file = _InvitationFile(
        format=FORMAT,
        token=msgspec.Raw(envelope),
        key=base64.b64encode(key.private_bytes_raw()).decode(),
        credentials=credentials.text().decode(),
    )
    return msgspec.json.encode(file) + b"\n"


# The host's side.


def read_invitation(data: bytes, *, now_s: int) -> Invitation:
    """What is in an invitation's file; Problem enrolment_invalid, enrolment_expired.

    Its operator's signature holds. That this operator is one's own is the word of who hands it over: by it a host
    begins to trust.
    """
    try:
        if len(data) > INVITATION_BYTES:
            raise ValueError(f"more than {INVITATION_BYTES} bytes")
        file = msgspec.convert(_raw_fields(data), _InvitationFile)
        if file.format != FORMAT:
            raise ValueError(f"the format {file.format[:40]!r}")
        token = documents.read(bytes(file.token), EnrolmentToken)
        seed = base64.b64decode(file.key, validate=True)
        key = Ed25519PrivateKey.from_private_bytes(seed)
        credentials = nkeys.UserCredentials.parse(file.credentials.encode())
    except (ValueError, binascii.Error, msgspec.ValidationError) as error:
        raise _invalid(f"an invitation that is whole and unaltered, found: {sanitise(str(error), 300)}") from error
    found: EnrolmentToken = token.document
    if token.key not in found.operators:
        raise _invalid("a token signed by one of the operators that it names, found another key")
    if nonce_of(key_files.public_text(key)) != found.token or credentials.name != found.token:
        raise _invalid("a token, a key and credentials that belong together, found those of different invitations")
    if now_s >= found.expires:
        expected = f"expected an invitation that is valid now ({now_s}), found one that expired at {found.expires}"
        raise Problem("enrolment_expired", expected, _HINTS["enrolment_expired"])
    return Invitation(token=token, key=key, credentials=credentials)


def request(invited: Invitation, node_key: str, user: str) -> bytes:
    """What is sent to `subjects.enrolment(token)`."""
    token = invited.document
    wanted = EnrolmentRequest(fleet=token.fleet, token=token.token, node=token.node, node_key=node_key, user=user)
    return msgspec.json.encode(
        _RequestForm(
            token=msgspec.Raw(invited.token.envelope), request=msgspec.Raw(documents.sign(wanted, invited.key))
        )
    )


def renewal(key: Ed25519PrivateKey, *, fleet: str, node: str, user: str) -> bytes:
    """What is sent to `subjects.renewal(node)`."""
    wanted = RenewalRequest(fleet=fleet, node=node, node_key=key_files.public_text(key), user=user)
    return msgspec.json.encode(_RenewalForm(request=msgspec.Raw(documents.sign(wanted, key))))


def answered(
    data: bytes, *, fleet: str, operators: Collection[str], node: str, node_key: str, user: str, now_s: int
) -> NodeCredentials:
    """The credentials in a controller's answer, which count for this node and these keys; Problem with the code of the
    refusal, or answer_invalid.

    A refusal is signed by nobody: it is a reason to ask again later, and to give nothing up.
    """
    try:
        if len(data) > ANSWER_BYTES:
            raise Malformed(f"more than {ANSWER_BYTES} bytes")
        form = msgspec.convert(_raw_fields(data), _AnswerForm)
        if form.code:
            raise Problem(form.code, sanitise(form.reason, 400), _HINTS.get(form.code, ""))
        certificate = documents.read(bytes(form.controller), ControllerCertificate)
        signed = documents.read(bytes(form.credentials), NodeCredentials)
        found: NodeCredentials = signed.document
        if certificate.key not in operators or signed.key != certificate.document.controller_key:
            raise Malformed("credentials that no controller certified by this fleet's operators has signed")
        if now_s >= certificate.document.expires:
            raise Malformed(f"the controller's certificate expired at {certificate.document.expires}")
        if {certificate.document.fleet, found.fleet} != {fleet}:
            raise Malformed("credentials of another fleet")
        if (found.node, found.node_key, found.user) != (node, node_key, user):
            raise Malformed("credentials of another node")
        claims = nkeys.unverified(found.jwt)
        if (claims.get("sub"), claims.get("name"), claims.get("exp")) != (user, node, found.expires):
            raise Malformed("a token that says something else than what was signed")
    except (ValueError, msgspec.ValidationError) as error:
        reason = f"expected credentials of this node from a controller, found: {sanitise(str(error), 300)}"
        raise Problem("answer_invalid", reason, "look at the controller's log") from error
    return found


# The controller's side.


def read_request(data: bytes) -> EnrolmentAsked | Refusal:
    """The request of a host to join, as far as it can be judged without knowing anything: signatures, and that token
    and request belong together.
    """
    try:
        if len(data) > REQUEST_BYTES:
            raise Malformed(f"more than {REQUEST_BYTES} bytes")
        form = msgspec.convert(_raw_fields(data), _RequestForm)
        token = documents.read(bytes(form.token), EnrolmentToken)
        signed = documents.read(bytes(form.request), EnrolmentRequest)
        found: EnrolmentRequest = signed.document
        invited: EnrolmentToken = token.document
        if nonce_of(signed.key) != invited.token:
            raise Malformed("a request that the invitation's key did not sign")
        if (found.fleet, found.token, found.node) != (invited.fleet, invited.token, invited.node):
            raise Malformed("a request that asks for something else than its token")
        nkeys.check_public(found.user, nkeys.KeyKind.USER)
    except (ValueError, msgspec.ValidationError) as error:
        return _unfit("enrolment_invalid", "a request to join by an invitation of this fleet", str(error))
    return EnrolmentAsked(token=token, request=found)


def user_of(request_: str) -> str:
    """The key to connect with in a request that was judged before."""
    form = msgspec.convert(_raw_fields(request_.encode()), _RequestForm)
    found: EnrolmentRequest = documents.read(bytes(form.request), EnrolmentRequest).document
    return found.user


def decide(asked: EnrolmentAsked, known: EnrolmentKnown, *, now_s: int) -> Joined | Refusal:
    """Whether this host may be the node that its token names."""
    token, wanted = asked.document, asked.request
    if token.fleet != known.fleet:
        return _unfit("other_fleet", f"an invitation of the fleet {known.fleet}", token.fleet)
    if asked.token.key not in known.operators or asked.token.key in known.revoked:
        return _unfit("operator_unknown", "an invitation by an operator of this fleet", f"one by {asked.token.key}")
    if asked.token.sha256 in known.revoked:
        return _unfit("enrolment_revoked", "an invitation that is not revoked", asked.token.sha256)
    if wanted.node_key in known.revoked:
        return _unfit("node_revoked", "a key that is not revoked", wanted.node_key)
    if known.used_by is not None and known.used_by != wanted.node_key:
        return _unfit("enrolment_used", "an invitation that no other host has used", f"the key {known.used_by}")
    if known.used_with not in {None, wanted.user}:
        # By many keys one host could have many connections, and nobody would know which ones to cut off.
        return _unfit("enrolment_used", f"the key to connect with that it was used for, {known.used_with}", wanted.user)
    if now_s >= token.expires:
        return _unfit("enrolment_expired", f"an invitation that is valid now ({now_s})", f"expired {token.expires}")
    if token.expires > now_s + TOKEN_S:
        return _unfit("enrolment_invalid", f"an invitation for at most {TOKEN_S} s", f"one until {token.expires}")
    if known.holder not in {None, wanted.node_key} and known.holder not in known.revoked:
        return _unfit("node_exists", f"no other host that is {token.node}", f"one with the key {known.holder}")
    if known.lasting is not None and known.lasting[0] != token.labels:
        # The host would go by the labels of this one, and controllers by those of the other, in whatever order they
        # learn of both.
        labels, until = known.lasting
        expected = f"the labels {_labels(labels)} of the invitation until {until} by which this host has joined"
        return _unfit("labels_kept", expected, f"{_labels(token.labels)} in one until {token.expires}")
    return Joined(
        node=token.node,
        node_key=wanted.node_key,
        user=wanted.user,
        labels=token.labels,
        token=token.token,
        expires=token.expires,
        again=known.used_by is not None,
    )


def decide_renewal(
    data: bytes, *, fleet: str, node: str, holder: str | None, revoked: Collection[str], users: Collection[str] = ()
) -> Renewed | Refusal:
    """Whether who asked at the subject of `node` may have credentials; `holder` is the key that has this name, `users`
    the keys to connect with that it has joined by, where they are known.
    """
    try:
        if len(data) > REQUEST_BYTES:
            raise Malformed(f"more than {REQUEST_BYTES} bytes")
        form = msgspec.convert(_raw_fields(data), _RenewalForm)
        signed = documents.read(bytes(form.request), RenewalRequest)
        found: RenewalRequest = signed.document
        nkeys.check_public(found.user, nkeys.KeyKind.USER)
    except (ValueError, msgspec.ValidationError) as error:
        return _unfit("renewal_invalid", "a node's request for credentials", str(error))
    if found.fleet != fleet:
        return _unfit("other_fleet", f"a node of the fleet {fleet}", found.fleet)
    if found.node != node or signed.key != found.node_key:
        return _unfit("renewal_invalid", f"a request of {node}, signed by its key", f"one of {found.node}")
    if found.node_key in revoked:
        return _unfit("node_revoked", "a key that is not revoked", found.node_key)
    if holder != found.node_key:
        return _unfit("node_unknown", f"a key that is known as {node}", found.node_key)
    if users and found.user not in users:
        return _unfit("renewal_invalid", f"a request for a key that {node} has joined by", found.user)
    return Renewed(node=node, node_key=found.node_key, user=found.user)


def answer(
    granted: Joined | Renewed,
    *,
    fleet: str,
    signer: nkeys.Key,
    account: str,
    key: Ed25519PrivateKey,
    certificate: bytes,
    now_s: int,
    life_s: int = CREDENTIALS_S,
) -> bytes:
    """What is answered to a host that may connect, for `life_s` seconds. `signer` signs users of the account `account`
    (`Identities.node_signer` and `.nodes`); `key` is the controller's, `certificate` the operator's envelope for it.
    """
    expires = now_s + life_s
    jwt = deployment.node_token(signer, account, granted.user, granted.node, now_s=now_s, expires_s=expires)
    made = NodeCredentials(
        fleet=fleet, node=granted.node, node_key=granted.node_key, user=granted.user, jwt=jwt, expires=expires
    )
    form = _AnswerForm(credentials=msgspec.Raw(documents.sign(made, key)), controller=msgspec.Raw(certificate))
    return msgspec.json.encode({"credentials": form.credentials, "controller": form.controller})


def refused(refusal: Refusal) -> bytes:
    """What is answered to a host that may not."""
    return msgspec.json.encode({"code": refusal.code, "reason": sanitise(refusal.reason, 400)})


def renewal_due_s(begun_s: int, expires_s: int) -> int:
    """From when on a node asks for new credentials: the middle of the life of those that it has."""
    return begun_s + (expires_s - begun_s) // 2


def _raw_fields(data: bytes) -> dict[str, object]:
    """The members of a JSON object: text as text, objects as their JSON; ValueError."""
    found = strict_json.loads(data, max_depth=2)
    if not isinstance(found, dict):
        raise Malformed("expected a JSON object")
    return {
        name: msgspec.Raw(msgspec.json.encode(value)) if isinstance(value, dict) else value
        for name, value in found.items()
    }


def _labels(labels: dict[str, str]) -> str:
    return sanitise(", ".join(f"{name}={value}" for name, value in sorted(labels.items())), 100) or "of none"


def _unfit(code: str, expected: str, found: str) -> Refusal:
    return Refusal(code=code, expected=expected, found=sanitise(found, 200))


def _invalid(expected: str) -> Problem:
    return Problem("enrolment_invalid", f"expected {expected}", _HINTS["enrolment_invalid"])
