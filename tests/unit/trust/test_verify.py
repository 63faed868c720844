"""The checks of contracts §5: every code, and the first failure wins."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest

from latticed.bundle import read
from latticed.bundle.refusal import BundleRefused
from latticed.model.verdict import Code, Refused, Verified
from latticed.trust import policy, verify
from tests.house import bundles

ACME, SPARE, OTHER = bundles.author(), bundles.author(), bundles.author("other.org")


class Held:
    """A source with the two files in memory; the artifact may be a refusal."""

    def __init__(self, raw, artifact=bundles.ARTIFACT):
        self.data = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
        self.artifact = artifact
        self.hashed = 0

    def manifest(self):
        return self.data

    interpreter = ""

    def hash_artifact(self):
        self.hashed += 1
        if isinstance(self.artifact, BundleRefused):
            raise self.artifact
        return hashlib.sha256(self.artifact).hexdigest(), len(self.artifact)


def _trust(*authors, **fields):
    return policy.decode(bundles.policy_bytes(*(authors or (ACME,)), **fields))


def _bound(**fields):
    return policy.decode(json.dumps({"trusted_publishers": {"acme": {"keys": [ACME.public], **fields}}}).encode())


def _signed(by=ACME, *, v2=False, **fields):
    raw = (bundles.manifest_v2 if v2 else bundles.manifest_v1)(**fields)
    return bundles.signed(raw, bundles.ARTIFACT, by)


def _unsigned(**fields):
    return bundles.with_digest(bundles.manifest_v1(**fields), bundles.ARTIFACT)


def _judge(raw, trust=None, artifact=bundles.ARTIFACT, host_version="0.1.0"):
    return verify.verify(Held(raw, artifact), trust or _trust(), host_version=host_version)


def _code(*args, **more):
    found = _judge(*args, **more)
    assert isinstance(found, Refused), found
    assert found.reason
    assert found.hint
    return found.code


@pytest.mark.parametrize("v2", [False, True])
def test_valid_bundle_verifies(v2):
    """The verdict has identity, digest, size and the key that verified."""
    raw = _signed(v2=v2)
    found = _judge(raw)
    assert found == Verified(
        manifest=found.manifest,
        identity=hashlib.sha256(bundles.payload(raw)).hexdigest(),
        artifact_sha256=hashlib.sha256(bundles.ARTIFACT).hexdigest(),
        artifact_bytes=len(bundles.ARTIFACT),
        key=ACME.public,
    )


def test_signature_verifies_with_and_without_padding():
    """Both decode to the same 64 bytes."""
    raw = _signed()
    assert isinstance(_judge({**raw, "signature_ed25519": raw["signature_ed25519"].rstrip("=")}), Verified)


def test_bundle_with_digest_in_capitals_verifies():
    """The payload has it as written; the comparison ignores case."""
    digest = hashlib.sha256(bundles.ARTIFACT).hexdigest().upper()
    found = _judge(_signed(digest_sha256=digest))
    assert isinstance(found, Verified)
    assert found.artifact_sha256 == digest.lower()
    lowered = {**_signed(digest_sha256=digest), "digest_sha256": digest.lower()}
    assert _code(lowered) == "signature_invalid"


def test_signature_by_any_key_of_the_publisher_verifies():
    """Publishers can then rotate keys; the verdict names the key that verified."""
    trust = policy.decode(json.dumps({"trusted_publishers": {"acme": [ACME.public, SPARE.public]}}).encode())
    found = _judge(_signed(SPARE), trust)
    assert isinstance(found, Verified)
    assert found.key == SPARE.public


def test_signature_by_key_of_another_publisher_does_not_verify():
    """A trusted key signs in its own name only."""
    stolen = bundles.signed(bundles.manifest_v1(publisher="acme"), bundles.ARTIFACT, OTHER)
    assert _code(stolen, _trust(ACME, OTHER)) == "signature_invalid"


def test_v1_signature_is_not_valid_for_v2():
    """The payloads have different prefixes."""
    plain = {**bundles.with_digest(bundles.manifest_v2(), bundles.ARTIFACT), "publisher": "acme"}
    as_v1 = {name: value for name, value in plain.items() if name != "schema"}
    assert _code({**plain, "signature_ed25519": ACME.sign(bundles.payload(as_v1))}) == "signature_invalid"


def test_artifact_is_not_read_before_the_signature_verifies():
    """Otherwise anybody could make the daemon hash 64 MiB."""
    source = Held(_signed(OTHER))
    assert isinstance(verify.verify(source, _trust(), host_version="0.1.0"), Refused)
    assert source.hashed == 0


def test_unreadable_or_undecodable_bundle_is_refused_with_its_code():
    """The refusal carries the manifest when it was decoded."""
    assert _code(b"{") == "manifest_invalid_json"
    found = _judge(_signed(capabilities=["kv:reed"]))
    assert (found.code, found.manifest.id) == (Code.UNKNOWN_CAPABILITY, "acme.demo")
    gone = BundleRefused(Code.ARTIFACT_MISSING, "expected an artifact", "put it there")
    found = _judge(_signed(), artifact=gone)
    assert (found.code, found.reason, found.manifest.id) == (Code.ARTIFACT_MISSING, "expected an artifact", "acme.demo")


@pytest.mark.parametrize(
    ("kind", "names", "allowed"),
    [
        ("system", ["network:apply", "http:egress", "kv:read"], True),
        ("wasm", ["kv:write", "notify:send", "worker:route"], True),
        ("wasm", ["http:egress"], True),
        ("wasm", ["node:admin"], False),
        ("wasm", ["task:run"], False),
        ("worker", ["worker:route", "kv:read", "static:read"], True),
        ("worker", ["kv:write"], False),
        ("worker", ["log:write"], False),
        ("worker", ["http:egress"], False),
    ],
)
def test_plugin_type_limits_capabilities_of_signed_bundles(kind, names, allowed):
    """Contracts §2 has the limits."""
    found = _judge(_signed(type=kind, capabilities=names))
    assert isinstance(found, Verified) if allowed else found.code == "capability_not_allowed"


@pytest.mark.parametrize(
    ("require", "host", "kind", "capability", "expected"),
    [
        (True, False, "system", "kv:write", "publisher_missing"),
        (True, True, "system", "kv:write", "publisher_missing"),
        (True, True, "system", "node:admin", "publisher_missing"),
        (False, False, "system", "kv:write", None),
        (False, False, "system", "node:admin", "capability_not_allowed"),
        (False, True, "system", "node:admin", None),
        (True, True, "wasm", "http:egress", "capability_not_allowed"),
        (False, False, "wasm", "http:egress", "capability_not_allowed"),
        (False, True, "wasm", "http:egress", None),
        (False, True, "wasm", "node:admin", "capability_not_allowed"),
        (False, False, "worker", "worker:route", None),
    ],
)
def test_policy_switches_limit_capabilities_of_unsigned_bundles(require, host, kind, capability, expected):
    """Contracts §4; the verdict's `key` is empty."""
    trust = _trust(require_signature=require, allow_unsigned_host_risk=host)
    found = _judge(_unsigned(type=kind, capabilities=[capability]), trust)
    if expected:
        assert found.code == expected
    else:
        assert isinstance(found, Verified)
        assert (found.key, found.manifest.signed) == ("", False)


def test_unsigned_bundle_needs_a_matching_digest():
    """It is compared as for signed ones."""
    trust = _trust(require_signature=False)
    assert _code(_unsigned(digest_sha256=None) | {"digest_sha256": ""}, trust) == "digest_missing"
    assert _code(bundles.manifest_v1(), trust) == "digest_missing"
    assert _code(_unsigned(), trust, b"other") == "digest_mismatch"


@pytest.mark.parametrize("require", [True, False])
def test_publisher_or_signature_that_is_present_must_verify(require):
    """This holds whatever the policy allows for unsigned bundles."""
    trust = _trust(require_signature=require, allow_unsigned_host_risk=True)
    raw = _signed()
    assert _code({**raw, "signature_ed25519": ""}, trust) == "signature_missing"
    assert _code({key: raw[key] for key in raw if key != "signature_ed25519"}, trust) == "signature_missing"
    assert _code({key: raw[key] for key in raw if key != "publisher"}, trust) == "publisher_missing"
    assert _code(_signed(OTHER), trust) == "publisher_untrusted"
    assert _code({**_signed(OTHER), "signature_ed25519": ""}, trust) == "publisher_untrusted"
    assert _code({**raw, "name": "Other"}, trust) == "signature_invalid"


def test_v2_manifest_must_be_signed():
    """An empty publisher, signature or digest counts as missing."""
    trust = _trust(require_signature=False, allow_unsigned_host_risk=True)
    raw = _signed(v2=True)
    assert _code({**raw, "publisher": "", "signature_ed25519": ""}, trust) == "publisher_missing"
    assert _code({**raw, "signature_ed25519": ""}, trust) == "signature_missing"
    assert _code({**raw, "digest_sha256": ""}, trust) == "digest_missing"


@pytest.mark.parametrize(
    "written",
    [
        "x",
        "!" * 88,
        base64.b64encode(b"s" * 63).decode(),
        base64.b64encode(b"s" * 65).decode(),
        base64.urlsafe_b64encode(b"\xff" * 64).decode(),
        base64.b64encode(b"s" * 64).decode() + "\u00e9",
        " " + base64.b64encode(b"s" * 64).decode(),
        base64.b64encode(b"s" * 64).decode().replace("=", "") + "=",
        "A" * 85 + "B",
    ],
)
def test_signature_not_in_strict_base64_is_malformed(written):
    """Strict base64 of 64 bytes with unused bits zero."""
    assert _code({**_signed(), "signature_ed25519": written}) == "signature_malformed"


def test_publisher_may_sign_only_its_ids():
    """`ids` of the policy are exact or prefixes."""
    assert isinstance(_judge(_signed(), _bound(ids=["acme.*"])), Verified)
    assert _code(_signed(), _bound(ids=["acme.other", "demo.*"])) == "publisher_untrusted"


def test_publisher_may_not_exceed_max_risk():
    """The policy has `max_risk` for each publisher."""
    assert isinstance(_judge(_signed(), _bound(max_risk="write")), Verified)
    assert _code(_signed(), _bound(max_risk="read")) == "capability_not_allowed"
    assert _code(_signed(capabilities=["node:admin"]), _bound(max_risk="write")) == "capability_not_allowed"
    assert isinstance(_judge(_signed(capabilities=["node:admin"]), _bound(max_risk="host")), Verified)


def test_signature_by_revoked_key_does_not_verify():
    """Another key of the same publisher still does."""
    both = {"trusted_publishers": {"acme": [ACME.public, SPARE.public]}, "revoked": {"keys": [ACME.public.rstrip("=")]}}
    trust = policy.decode(json.dumps(both).encode())
    assert _code(_signed(ACME), trust) == "key_revoked"
    assert isinstance(_judge(_signed(SPARE), trust), Verified)
    assert _code({**_signed(ACME), "name": "Other"}, trust) == "signature_invalid"
    assert _code({**_signed(ACME), "name": "Other"}, _trust(revoked={"keys": [ACME.public]})) == "key_revoked"


def test_revoked_plugins_and_digests_are_refused():
    """A policy names id and version, an id, no version, or the artifact's digest in either case."""
    digest = hashlib.sha256(bundles.ARTIFACT).hexdigest()
    assert _code(_signed(), _trust(revoked={"plugins": ["acme.demo@1.0.0"]})) == "plugin_revoked"
    assert _code(_signed(), _trust(revoked={"plugins": ["acme.demo@*"]})) == "plugin_revoked"
    assert _code(_signed(version=None), _trust(revoked={"plugins": ["acme.demo@"]})) == "plugin_revoked"
    assert isinstance(_judge(_signed(), _trust(revoked={"plugins": ["acme.demo@1.0.1", "acme@*"]})), Verified)
    assert _code(_signed(), _trust(revoked={"digests": [digest.upper()]})) == "digest_revoked"
    unsigned = _trust(require_signature=False, revoked={"digests": [digest], "plugins": ["acme.other@*"]})
    assert _code(_unsigned(), unsigned) == "digest_revoked"


def test_changed_artifact_is_a_digest_mismatch():
    """The reason shows both digests."""
    found = _judge(_signed(), artifact=b"changed")
    assert found.code == "digest_mismatch"
    assert hashlib.sha256(bundles.ARTIFACT).hexdigest() in found.reason
    assert hashlib.sha256(b"changed").hexdigest() in found.reason


def test_plugin_for_another_host_version_is_incompatible():
    """`requires_host` of v2; a host version that is not SemVer satisfies no range."""
    raw = _signed(v2=True, requires_host=">=0.2 <1")
    assert _code(raw) == "host_incompatible"
    assert isinstance(_judge(raw, host_version="0.2.7"), Verified)
    assert _code(raw, host_version="unknown") == "host_incompatible"


def test_no_publisher_is_trusted_without_a_policy():
    """There is none while trust.json is missing or invalid."""
    assert _code(_signed(), policy.NOBODY) == "publisher_untrusted"
    assert _code(_unsigned(), policy.NOBODY) == "publisher_missing"


def test_first_failure_in_the_order_of_codes_wins():
    """One bundle with every defect, repaired one by one."""
    evil, signature = hashlib.sha256(b"evil").hexdigest(), ACME.sign(b"something else")
    revoked = {"keys": [ACME.public], "plugins": ["acme.demo@*"], "digests": [evil]}
    raw = {
        **bundles.manifest_v2(),
        "type": "worker",
        "requires_host": ">=9",
        "capabilities": ["kv:write", "kv:write", "x"],
    }
    raw |= {"publisher": "", "signature_ed25519": "", "digest_sha256": ""}
    trust = {"trusted_publishers": {}, "revoked": revoked}
    artifact: object = BundleRefused(Code.ARTIFACT_MISSING, "expected one", "put one")
    seen = [_step(b"\xff", trust, artifact), _step({**raw, "name": ""}, trust, artifact), _step(raw, trust, artifact)]
    repairs = [
        ({"capabilities": ["kv:write", "kv:write"]}, {}),
        ({"capabilities": ["kv:write"]}, {}),
        ({"type": "system"}, {}),
        ({"publisher": "acme"}, {}),
        ({}, {"trusted_publishers": {"acme": ACME.public}}),
        ({"signature_ed25519": "short"}, {}),
        ({"signature_ed25519": signature}, {}),
        ({"digest_sha256": "0" * 64}, {}),
        ({}, {"revoked": {**revoked, "keys": []}}),
        ({}, {"revoked": {**revoked, "keys": [], "plugins": []}}),
    ]
    for in_manifest, in_trust in repairs:
        raw, trust = {**raw, **in_manifest}, {**trust, **in_trust}
        seen.append(_step(raw, trust, artifact))
    raw["signature_ed25519"] = ACME.sign(bundles.payload(raw))
    seen.append(_step(raw, trust, artifact))
    seen.append(_step(raw, trust, b"evil"))
    raw["digest_sha256"] = evil
    raw["signature_ed25519"] = ACME.sign(bundles.payload(raw))
    seen.append(_step(raw, trust, b"evil"))
    seen.append(_step(raw, {**trust, "revoked": {}}, b"evil"))
    from_invalid_json = list(Code)[list(Code).index(Code.MANIFEST_INVALID_JSON) :]
    elsewhere = {Code.ARTIFACT_NOT_REGULAR, Code.ARTIFACT_TOO_LARGE, Code.CHANGED_WHILE_READING}
    elsewhere |= {Code.PUBLISHER_CHANGED, Code.DUPLICATE_ID}
    assert seen == [code for code in from_invalid_json if code not in elsewhere]


def _step(raw, trust, artifact):
    return _code(raw, policy.decode(json.dumps(trust).encode()), artifact)


def test_bundle_on_disk_gets_the_same_verdict(tmp_path):
    """The source is a real BundleDirectory."""
    bundle = bundles.drop(tmp_path, author=ACME, v2=True)
    limits, owners = read.ReadLimits(), frozenset({0, bundle.path.stat().st_uid})
    with read.open_bundle(bundle.path, limits=limits, owners=owners) as source:
        assert isinstance(verify.verify(source, _trust(), host_version="0.1.0"), Verified)
    bundles.tamper(bundle.artifact_path)
    with read.open_bundle(bundle.path, limits=limits, owners=owners) as source:
        found = verify.verify(source, _trust(), host_version="0.1.0")
    assert isinstance(found, Refused)
    assert found.code == "digest_mismatch"
