"""trust.json: every documented form, and errors that name the key."""

from __future__ import annotations

import json

import pytest

from latticed.bundle import decode
from latticed.model.capability import Risk
from latticed.model.errors import Problem
from latticed.trust import keys, policy
from tests.house import bundles

ACME, OTHER = bundles.author(), bundles.author("other.org")


def _decode(plain):
    return policy.decode(json.dumps(plain).encode())


def test_every_form_of_a_publisher_in_the_policy_is_decoded():
    """A key, a list of keys, or an object with keys, ids and max_risk."""
    found = _decode(
        {
            "trusted_publishers": {
                "one": ACME.public,
                "two": [ACME.public.rstrip("="), f" {OTHER.public}\n"],
                "three": {"keys": [OTHER.public], "ids": ["acme.*", "acme"], "max_risk": "write"},
                "four": {"keys": [OTHER.public, OTHER.public]},
            }
        }
    )
    assert found.publishers["one"] == policy.Publisher(keys=(ACME.public,))
    assert found.publishers["two"] == policy.Publisher(keys=(ACME.public, OTHER.public))
    assert found.publishers["three"] == policy.Publisher(
        keys=(OTHER.public,), ids=("acme.*", "acme"), max_risk=Risk.WRITE
    )
    assert found.publishers["four"] == policy.Publisher(keys=(OTHER.public,))


def test_empty_policy_is_strict():
    """It trusts no publisher, requires signatures and revokes nothing."""
    assert _decode({}) == policy.NOBODY
    assert policy.NOBODY.require_signature
    assert not policy.NOBODY.allow_unsigned_host_risk


def test_revocations_are_normalised():
    """Keys by their bytes, digests in lower case, so that no other spelling escapes."""
    found = _decode(
        {"revoked": {"keys": [f" {ACME.public.rstrip('=')} "], "digests": ["AB" * 32], "plugins": ["acme.demo@1.0.0"]}}
    )
    assert found.revoked == policy.Revoked(
        keys=frozenset({ACME.public}), digests=frozenset({"ab" * 32}), plugins=frozenset({"acme.demo@1.0.0"})
    )


@pytest.mark.parametrize("version", ["1.0\u00a0beta", "1.0\u3000", "1.0\ue000", "1.0 beta", "\u0378"])
def test_every_version_that_a_manifest_may_have_can_be_revoked(version):
    """Other blanks, and private or unassigned characters, are no control characters (contracts §2)."""
    _, manifest = decode.decode(json.dumps(bundles.manifest_v1(version=version)).encode())
    assert policy.revoked_plugin(f"acme.demo@{manifest.version}", "x") == f"acme.demo@{version}"


@pytest.mark.parametrize("version", ["1\n2", "1\u2028", "1\u200b", "1\u3164", "1\udcff", "1" * 65])
def test_version_that_no_manifest_may_have_is_not_revoked(version):
    with pytest.raises(Problem, match="policy_invalid"):
        policy.revoked_plugin(f"acme.demo@{version}", "x")


def test_plugins_are_revoked_by_version_without_version_or_altogether():
    """`id@version`, `id@` for a plugin without version, `id@*` for all."""
    revoked = policy.Revoked(plugins=frozenset({"acme.one@1.0.0", "acme.two@", "acme.three@*"}))
    assert revoked.plugin("acme.one", "1.0.0") == "acme.one@1.0.0"
    assert revoked.plugin("acme.one", "1.0.1") is None
    assert revoked.plugin("acme.two", "") == "acme.two@"
    assert revoked.plugin("acme.two", "1.0.0") is None
    assert revoked.plugin("acme.three", "9.9.9") == "acme.three@*"


@pytest.mark.parametrize(
    ("entry", "version", "covered"),
    [
        ("1.0.0", "1.0.0+x", True),
        ("1.0.0", "1.0.0+x.7", True),
        ("1.0.0-rc.1", "1.0.0-rc.1+x", True),
        ("1.0.0", "1.0.0-rc.1+x", False),
        ("1.0.0+x", "1.0.0+x", True),
        ("1.0.0+x", "1.0.0", False),
        ("1.0.0+x", "1.0.0+y", False),
        ("", "+x", False),
    ],
)
def test_revoked_version_covers_its_builds(entry, version, covered):
    """Build metadata makes no other version (SemVer 2.0.0, section 10); a revoked build is revoked alone."""
    revoked = policy.Revoked(plugins=frozenset({f"acme.one@{entry}"}))
    assert (revoked.plugin("acme.one", version) is not None) == covered


def test_id_patterns_of_publishers_match_exactly_or_by_prefix():
    """`acme.*` covers ids that begin with `acme.`; without ids a publisher may sign any."""
    bound = policy.Publisher(keys=(ACME.public,), ids=("acme.*", "solo"))
    assert bound.may_sign("acme.demo")
    assert bound.may_sign("solo")
    assert not bound.may_sign("acme")
    assert not bound.may_sign("solo.two")
    assert policy.Publisher(keys=(ACME.public,)).may_sign("anything")


@pytest.mark.parametrize(
    ("plain", "where"),
    [
        ([], "the policy"),
        ("x", "the policy"),
        ({"trusted_publisher": {}}, "trusted_publisher"),
        ({"trusted_publishers": []}, "trusted_publishers"),
        ({"trusted_publishers": None}, "trusted_publishers"),
        ({"trusted_publishers": {"ACME": ACME.public}}, "trusted_publishers"),
        ({"trusted_publishers": {"a": ACME.public}}, "trusted_publishers"),
        ({"trusted_publishers": {"latticed": ACME.public}}, "reserved"),
        ({"trusted_publishers": {"acme": ""}}, "trusted_publishers.acme"),
        ({"trusted_publishers": {"acme": "A" * 43}}, "trusted_publishers.acme"),
        ({"trusted_publishers": {"acme": 5}}, "trusted_publishers.acme"),
        ({"trusted_publishers": {"acme": []}}, "trusted_publishers.acme"),
        ({"trusted_publishers": {"acme": [ACME.public, "AAAA"]}}, "trusted_publishers.acme[1]"),
        ({"trusted_publishers": {"acme": [ACME.public, None]}}, "trusted_publishers.acme[1]"),
        ({"trusted_publishers": {"acme": {}}}, "trusted_publishers.acme.keys"),
        ({"trusted_publishers": {"acme": {"keys": ACME.public}}}, "trusted_publishers.acme.keys"),
        ({"trusted_publishers": {"acme": {"keys": [ACME.public, "AA"]}}}, "trusted_publishers.acme.keys[1]"),
        ({"trusted_publishers": {"acme": {"keys": [ACME.public], "id": []}}}, "trusted_publishers.acme"),
        ({"trusted_publishers": {"acme": {"keys": [ACME.public], "ids": []}}}, "trusted_publishers.acme.ids"),
        ({"trusted_publishers": {"acme": {"keys": [ACME.public], "ids": ["a*b"]}}}, "trusted_publishers.acme.ids[0]"),
        ({"trusted_publishers": {"acme": {"keys": [ACME.public], "ids": ["**"]}}}, "trusted_publishers.acme.ids[0]"),
        ({"trusted_publishers": {"acme": {"keys": [ACME.public], "ids": [1]}}}, "trusted_publishers.acme.ids[0]"),
        (
            {"trusted_publishers": {"acme": {"keys": [ACME.public], "max_risk": "all"}}},
            "trusted_publishers.acme.max_risk",
        ),
        ({"trusted_publishers": {"acme": {"keys": [ACME.public], "max_risk": 1}}}, "trusted_publishers.acme.max_risk"),
        ({"require_signature": "no"}, "require_signature"),
        ({"require_signature": 0}, "require_signature"),
        ({"allow_unsigned_host_risk": None}, "allow_unsigned_host_risk"),
        ({"revoked": []}, "revoked"),
        ({"revoked": {"key": []}}, "revoked"),
        ({"revoked": {"keys": "x"}}, "revoked.keys"),
        ({"revoked": {"keys": ["AAAA"]}}, "revoked.keys[0]"),
        ({"revoked": {"digests": ["ab" * 31]}}, "revoked.digests[0]"),
        ({"revoked": {"plugins": ["acme.demo"]}}, "revoked.plugins[0]"),
        ({"revoked": {"plugins": ["acme.demo@1.0.0", "A@1"]}}, "revoked.plugins[1]"),
    ],
)
def test_invalid_policy_error_names_the_json_key(plain, where):
    """It says what was expected there and what was found."""
    with pytest.raises(Problem) as caught:
        _decode(plain)
    assert caught.value.code == "policy_invalid"
    assert where in caught.value.reason
    assert "expected" in caught.value.reason
    assert caught.value.hint


def test_key_not_on_the_curve_makes_the_policy_invalid():
    """No signature verifies under it, so the operator must be told; the error names the key."""
    wrong = keys.encode_base64((2).to_bytes(32, "little"))
    with pytest.raises(Problem) as caught:
        _decode({"trusted_publishers": {"acme": [ACME.public, wrong]}})
    assert caught.value.code == "policy_invalid"
    assert caught.value.reason.startswith("trusted_publishers.acme[1]: expected a public key, found 32 bytes that are")
    assert wrong in caught.value.reason
    assert _decode({"revoked": {"keys": [wrong]}}).revoked.keys == {wrong}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"revoked": {}, "revoked": {}}',
        b"\xef\xbb\xbf{}",
        b"\xff",
        b'{"trusted_publishers": {"acme": "a", "acme": "b"}}',
    ],
)
def test_policy_that_is_not_strict_json_is_invalid(data):
    """Duplicate keys included: two parsers could read different publishers."""
    with pytest.raises(Problem) as caught:
        policy.decode(data)
    assert caught.value.code == "policy_invalid"


def test_policy_error_cuts_and_escapes_the_value_found():
    """It may be a private key in the wrong place, or an escape sequence."""
    with pytest.raises(Problem) as caught:
        _decode({"trusted_publishers": {"acme": "\x1b[31m" + "S" * 5000}})
    assert "\x1b" not in caught.value.reason
    assert len(caught.value.reason) < 300


def test_encoded_policy_round_trips():
    """A policy with everything that `latticectl trust` writes; one key is written as a text, several as a list."""
    full = policy.TrustPolicy(
        publishers={
            "acme": policy.Publisher(keys=(ACME.public,)),
            "duo": policy.Publisher(keys=(ACME.public, OTHER.public)),
            "bound": policy.Publisher(keys=(OTHER.public,), ids=("bound.*",), max_risk=Risk.READ),
        },
        allow_unsigned_host_risk=True,
        require_signature=False,
        revoked=policy.Revoked(
            keys=frozenset({OTHER.public}), digests=frozenset({"ab" * 32}), plugins=frozenset({"acme.demo@*"})
        ),
    )
    assert policy.decode(policy.encode(full)) == full
    assert json.loads(policy.encode(full))["trusted_publishers"]["acme"] == ACME.public


def test_policy_edits_return_new_values():
    """Adding, removing and revoking do not change the old value."""
    added = policy.with_publisher(policy.NOBODY, "acme", policy.Publisher(keys=(ACME.public,)))
    assert dict(policy.NOBODY.publishers) == {}
    assert added.publishers["acme"].keys == (ACME.public,)
    assert policy.without_publisher(added, "acme") == policy.NOBODY
    with pytest.raises(KeyError):
        policy.without_publisher(added, "other")
    remembered = policy.Revoked(plugins=frozenset({"acme.demo@*"}))
    twice = policy.with_revocations(policy.with_revocations(added, remembered), policy.Revoked(keys=frozenset({"k"})))
    assert twice.revoked == policy.Revoked(keys=frozenset({"k"}), plugins=frozenset({"acme.demo@*"}))
