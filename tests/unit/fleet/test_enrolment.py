"""A host joins by an invitation once, and nobody who carries what is sent can change who joins."""

from __future__ import annotations

import base64
import json

import msgspec
import pytest

from latticed.fleet import deployment, documents, enrolment, nkeys
from latticed.fleet.judging import Refusal
from latticed.fleet.signers import Identities
from latticed.model.errors import Problem
from latticed.trust import key_files
from tests.house import fleets
from tests.house.fleets import NOW

INVITED, NODE, OTHER = (key_files.generate() for _ in range(3))
IDENTITIES = Identities.generate()
USER, OTHER_USER = (nkeys.Key.generate(nkeys.KeyKind.USER).public for _ in range(2))
NONCE = enrolment.nonce_of(fleets.public(INVITED))
FLEET = fleets.Fleet()


def invitation(*, operator=fleets.OPERATOR, key=INVITED, **fields):
    token = FLEET.token(**{"token": enrolment.nonce_of(fleets.public(key)), **fields})
    credentials = deployment.invitation_credentials(
        IDENTITIES.enrol_signer, IDENTITIES.nodes.public, token.token, now_s=NOW, expires_s=NOW + 3_600
    )
    return enrolment.invite(operator, token=token, key=key, credentials=credentials)


def invited(**fields):
    return enrolment.read_invitation(invitation(**fields), now_s=NOW)


def request(node=NODE, user=USER, **fields):
    return enrolment.request(invited(**fields), fleets.public(node), user)


def known(**fields):
    plain = {
        "fleet": FLEET.name,
        "operators": (fleets.public(fleets.OPERATOR),),
        "revoked": frozenset(),
        "used_by": None,
        "holder": None,
    }
    return enrolment.EnrolmentKnown(**{**plain, **fields})


def decided(data, now_s=NOW, **fields):
    asked = enrolment.read_request(data)
    return asked if isinstance(asked, Refusal) else enrolment.decide(asked, known(**fields), now_s=now_s)


def answer(granted, *, key=fleets.CONTROLLER, certificate=None, **fields):
    certificate = certificate or documents.sign(FLEET.certificate(), fleets.OPERATOR)
    plain = {
        "fleet": FLEET.name,
        "signer": IDENTITIES.node_signer,
        "account": IDENTITIES.nodes.public,
        "now_s": NOW,
    }
    return enrolment.answer(granted, key=key, certificate=certificate, **{**plain, **fields})


def taken(data, **fields):
    plain = {
        "fleet": FLEET.name,
        "operators": (fleets.public(fleets.OPERATOR),),
        "node": "n1",
        "node_key": fleets.public(NODE),
        "user": USER,
        "now_s": NOW,
    }
    return enrolment.answered(data, **{**plain, **fields})


def code_of(found):
    assert isinstance(found, Refusal), found
    return found.code


def test_host_that_is_invited_is_given_credentials_for_its_own_keys():
    joined = decided(request())
    assert (joined.node, joined.node_key, joined.user, joined.again) == ("n1", fleets.public(NODE), USER, False)
    assert joined.labels == {"role": "web"}
    found = taken(answer(joined))
    assert found.expires == NOW + enrolment.CREDENTIALS_S
    claims = nkeys.verified(found.jwt, frozenset({IDENTITIES.node_signer.public}))
    assert (claims["sub"], claims["name"], claims["nats"]["issuer_account"]) == (USER, "n1", IDENTITIES.nodes.public)


def test_same_host_may_ask_again_and_no_other_may():
    mine, other = fleets.public(NODE), fleets.public(OTHER)
    assert decided(request(), used_by=mine, holder=mine).again
    assert code_of(decided(request(OTHER), used_by=mine, holder=mine)) == "enrolment_used"
    assert code_of(decided(request(), holder=other)) == "node_exists"
    # Of a host that is gone: its key was revoked, and the name is free.
    assert decided(request(), holder=other, revoked={other}).node_key == mine
    assert code_of(decided(request(), used_by=mine, revoked={mine})) == "node_revoked"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"fleet": "other"}, "other_fleet"),
        ({"operators": (fleets.public(fleets.SECOND),)}, "operator_unknown"),
        ({"revoked": {fleets.public(fleets.OPERATOR)}}, "operator_unknown"),
        ({"now_s": NOW + fleets.DAY}, "enrolment_expired"),
        ({"now_s": NOW - enrolment.TOKEN_S}, "enrolment_invalid"),
    ],
)
def test_invitation_that_does_not_count_is_refused(fields, code):
    assert code_of(decided(request(), **fields)) == code


def test_invitation_that_its_operator_took_back_is_refused():
    assert code_of(decided(request(), revoked={invited().token.sha256})) == "enrolment_revoked"


def test_whoever_carries_a_request_cannot_put_in_other_keys():
    plain = json.loads(request())
    forms = []
    for field, value in (("node_key", fleets.public(OTHER)), ("user", OTHER_USER), ("node", "n2"), ("token", "0" * 32)):
        document = fleets.opened(json.dumps(plain["request"]).encode()) | {field: value}
        for signer in (OTHER, NODE, fleets.CONTROLLER):
            forged = fleets.forged(document, documents.DOMAINS[documents.EnrolmentRequest], signer)
            forms.append({**plain, "request": json.loads(forged)})
            forms.append({**plain, "request": json.loads(forged) | {"key": plain["request"]["key"]}})
    # Signed by the invitation's key, as another kind of document.
    wrong = fleets.forged(
        fleets.opened(json.dumps(plain["request"]).encode()), documents.DOMAINS[documents.RenewalRequest], INVITED
    )
    forms.append({**plain, "request": json.loads(wrong)})
    assert len(forms) == 25
    for form in forms:
        assert code_of(enrolment.read_request(json.dumps(form).encode())) == "enrolment_invalid"


def test_request_of_one_invitation_does_not_go_with_another_token():
    mine, other = json.loads(request()), json.loads(request(key=OTHER))
    mixed = json.dumps({"token": other["token"], "request": mine["request"]}).encode()
    assert code_of(enrolment.read_request(mixed)) == "enrolment_invalid"
    # Both of one key, and of two tokens.
    again = json.loads(enrolment.request(invited(node="n2"), fleets.public(NODE), USER))
    mixed = json.dumps({"token": again["token"], "request": mine["request"]}).encode()
    assert code_of(enrolment.read_request(mixed)) == "enrolment_invalid"


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"null", b"{" * 1_000, b'{"token": 1, "request": {}}', b"\xff" * 100, b"0" * (80 << 10)],
)
def test_bytes_that_are_no_request_are_refused(data):
    assert code_of(enrolment.read_request(data)) == "enrolment_invalid"
    assert (
        code_of(enrolment.decide_renewal(data, fleet="home", node="n1", holder=None, revoked=())) == "renewal_invalid"
    )
    with pytest.raises(Problem, match="answer_invalid"):
        taken(data)
    with pytest.raises(Problem, match="enrolment_invalid"):
        enrolment.read_invitation(data, now_s=NOW)


@pytest.mark.parametrize("field", ["token", "key", "credentials", "format"])
def test_invitation_with_parts_of_another_is_refused(field):
    mine, other = json.loads(invitation()), json.loads(invitation(key=OTHER))
    mixed = {**mine, field: other[field] if field != "format" else "latticed-fleet-invitation-2"}
    with pytest.raises(Problem, match="enrolment_invalid"):
        enrolment.read_invitation(json.dumps(mixed).encode(), now_s=NOW)


def test_every_byte_of_an_invitation_counts():
    """One character changed, anywhere: it is refused, or is the same invitation."""
    data = invitation()
    same = enrolment.read_invitation(data, now_s=NOW)
    refused = 0
    for place in range(0, len(data), 7):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        found = _read(changed)
        refused += found == "enrolment_invalid"
        assert found in {"enrolment_invalid", _read(data)}, place
    assert refused > len(data) // 10
    assert same.token.sha256 in _read(data)


def _read(data):
    """The code of the refusal, or what the invitation comes to."""
    try:
        found = enrolment.read_invitation(data, now_s=NOW)
    except Problem as problem:
        return problem.code
    return f"{found.token.sha256} {found.key.private_bytes_raw().hex()}"


def test_invitation_that_expired_or_that_no_operator_signed_is_refused():
    with pytest.raises(Problem, match="enrolment_expired"):
        enrolment.read_invitation(invitation(), now_s=NOW + fleets.DAY)
    with pytest.raises(Problem, match="enrolment_invalid"):
        enrolment.read_invitation(invitation(operator=fleets.STRANGER), now_s=NOW)


def renewal(key=NODE, node="n1", user=USER, fleet="home"):
    return enrolment.renewal(key, fleet=fleet, node=node, user=user)


def renewed(data, **fields):
    plain = {"fleet": "home", "node": "n1", "holder": fleets.public(NODE), "revoked": frozenset()}
    return enrolment.decide_renewal(data, **{**plain, **fields})


def test_node_has_its_credentials_renewed_and_no_other_s():
    granted = renewed(renewal())
    assert (granted.node, granted.node_key, granted.user) == ("n1", fleets.public(NODE), USER)
    assert taken(answer(granted)).user == USER
    for data, fields, code in (
        (renewal(), {"node": "n2"}, "renewal_invalid"),
        (renewal(node="n2"), {}, "renewal_invalid"),
        (renewal(OTHER), {}, "node_unknown"),
        (renewal(), {"holder": None}, "node_unknown"),
        (renewal(fleet="other"), {}, "other_fleet"),
        (renewal(), {"revoked": {fleets.public(NODE)}}, "node_revoked"),
    ):
        assert code_of(renewed(data, **fields)) == code


def test_answer_counts_only_from_a_certified_controller_and_for_this_host():
    joined = decided(request())
    good = answer(joined)
    assert taken(good)
    expired = documents.sign(FLEET.certificate(expires=NOW), fleets.OPERATOR)
    elsewhere = documents.sign(FLEET.certificate(fleet="other"), fleets.OPERATOR)
    by_stranger = documents.sign(FLEET.certificate(), fleets.STRANGER)
    for data in (
        answer(joined, key=fleets.OTHER_CONTROLLER),
        answer(joined, certificate=by_stranger),
        answer(joined, certificate=expired),
        answer(joined, certificate=elsewhere),
        answer(joined, fleet="other"),
        answer(msgspec.structs.replace(joined, node="n2")),
        answer(msgspec.structs.replace(joined, node_key=fleets.public(OTHER))),
        answer(msgspec.structs.replace(joined, user=OTHER_USER)),
    ):
        with pytest.raises(Problem, match="answer_invalid"):
            taken(data)
    plain = json.loads(good)
    signed = fleets.opened(json.dumps(plain["credentials"]).encode())
    other_jwt = json.loads(answer(msgspec.structs.replace(joined, user=OTHER_USER)))
    mixed = signed | {"jwt": fleets.opened(json.dumps(other_jwt["credentials"]).encode())["jwt"]}
    forged = fleets.forged(mixed, documents.DOMAINS[documents.NodeCredentials], fleets.CONTROLLER)
    with pytest.raises(Problem, match="answer_invalid"):
        taken(json.dumps({**plain, "credentials": json.loads(forged)}).encode())


def test_refusal_is_shown_with_what_helps_and_without_control_characters():
    data = enrolment.refused(Refusal(code="enrolment_used", expected="one", found="\x1b[31mred\n"))
    with pytest.raises(Problem) as found:
        taken(data)
    assert found.value.code == "enrolment_used"
    assert "\x1b" not in found.value.reason
    assert "latticectl fleet revoke" in found.value.hint
    with pytest.raises(Problem) as found:
        taken(b'{"code": "made_up", "reason": "x"}')
    assert (found.value.code, found.value.hint) == ("made_up", "")


def test_invitation_holds_no_more_than_the_right_to_ask():
    claims = nkeys.unverified(invited().credentials.token)
    assert claims["iss"] == IDENTITIES.enrol_signer.public
    assert claims["exp"] == NOW + 3_600
    assert claims["name"] == NONCE
    seeds = {getattr(IDENTITIES, name).seed.encode() for name in ("node_signer", "nodes", "control_signer", "operator")}
    data = invitation()
    assert not [one for one in seeds if one in data]
    assert base64.b64encode(fleets.OPERATOR.private_bytes_raw()) not in data
