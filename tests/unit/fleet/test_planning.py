"""What a node asks next: one step after the other, each only from what an operator signed."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.fleet import documents, node_daemon, planning
from tests.house import fleets

OLD = planning.Version(version="1.0.0", identity="1" * 64, publisher="acme")
NEW = planning.Version(version="1.1.0", identity="2" * 64, publisher="acme")
SOURCE = documents.BundleSource(id="acme.demo", sha256="a" * 64, urls=())


def has(status, now=OLD, **fields):
    return planning.Has(id="acme.demo", status=status, now=now, available=True, **fields)


def candidate(version=NEW, **fields):
    plain = {"adds": (), "drops": (), "needs_downgrade": False, "bad": ""}
    return planning.Candidate(**msgspec.structs.asdict(version), **{**plain, **fields})


def step(found, wanted, *, source=SOURCE, settled=False, secrets=frozenset(), **fields):
    return planning.next_step(found, wanted, source=source, settled=settled, secrets=secrets, **fields)


def asked(found, wanted, **fields):
    """The request as text, or the code of what blocks."""
    match step(found, wanted, **fields):
        case planning.Request() as one:
            return f"{one.method} {'/'.join(one.parts)}", one.body
        case planning.Take() as one:
            return "take", one.then.body
        case planning.Blocked() as one:
            return "blocked", one.code
    return None


def wanted(**fields):
    return fleets.plugin(identity=OLD.identity, **fields)


BY_ID = "plugins/by-id/acme.demo"


@pytest.mark.parametrize(
    ("found", "plugin", "expected"),
    [
        (planning.Has(id="acme.demo"), wanted(), "take"),
        (has("verified"), wanted(), "POST plugins/lifecycle"),
        (has("verified", NEW), wanted(), "take"),
        (has("installed"), wanted(), "POST plugins/lifecycle"),
        (has("disabled"), wanted(), "POST plugins/lifecycle"),
        (has("active"), wanted(), None),
        (has("installed"), wanted(status="installed"), None),
        (has("disabled"), wanted(status="installed"), None),
        (has("active"), wanted(status="installed"), "blocked"),
        (has("active"), wanted(status="disabled"), "POST plugins/lifecycle"),
        (has("active", NEW), wanted(status="disabled"), "POST plugins/lifecycle"),
        (has("verified"), wanted(status="disabled"), None),
        (planning.Has(id="acme.demo"), wanted(status="disabled"), None),
        (has("active", NEW, candidate=candidate(OLD)), wanted(), f"POST {BY_ID}/upgrade"),
        (has("active", NEW, kept=(OLD,)), wanted(), f"POST {BY_ID}/rollback"),
        (has("active", NEW, candidate=candidate(OLD, bad="unhealthy")), wanted(), "blocked"),
        (has("active"), wanted(config={"a": 1}), f"PUT {BY_ID}/config"),
        (has("active", config={"a": 1}), wanted(config={"a": 1}), None),
        (has("active", config={"a": 1}), wanted(), None),
        (has("active", declared=("kv:read",)), wanted(accept=("kv:read",)), f"PUT {BY_ID}/grants"),
        (has("active", declared=("kv:read",), granted=("kv:read",)), wanted(accept=("kv:read",)), None),
        (has("active"), wanted(accept=("kv:read",)), None),
    ],
)
def test_next_step(found, plugin, expected):
    result = asked(found, plugin)
    assert (result and result[0]) == expected


LIMITED = {"withheld": ("limit=memory_mib:512", "level=filtered"), "limits": {"memory_mib": 128}}
USUAL = {"usual_limits": {"memory_mib": 256}}
LEFT = {"withheld": ("limit=memory_mib:512",), **USUAL}
"""What was accepted leaves it to the settings."""
LEAVING = {"withheld": ("limit=memory_mib:default",), "limits": {"memory_mib": 64}, **USUAL}
"""The manifest leaves it to the settings, and less was accepted."""
HOSTS = ("api.example.org:443", "api.example.org:8443")


@pytest.mark.parametrize(
    ("accept", "found", "expected"),
    [
        ("limit=memory_mib:512", LIMITED, {"grant": ["limit=memory_mib:512"]}),
        ("limit=memory_mib:256", LIMITED, {"grant": ["limit=memory_mib:256"]}),
        ("limit=memory_mib:128", LIMITED, None),
        ("limit=memory_mib:1024", LIMITED, None),
        ("limit=memory_mib:default", LIMITED, None),
        ("limit=memory_mib:256", {"withheld": ("limit=memory_mib:512",)}, None),
        ("limit=fuel:9", LIMITED, None),
        ("limit=memory_mib:384", LEFT, {"grant": ["limit=memory_mib:384"]}),
        ("limit=memory_mib:256", LEFT, None),
        ("limit=memory_mib:640", LEFT, None),
        ("limit=memory_mib:default", {**LIMITED, **USUAL}, {"grant": ["limit=memory_mib:default"]}),
        ("limit=memory_mib:128", LEAVING, {"grant": ["limit=memory_mib:128"]}),
        ("limit=memory_mib:256", LEAVING, {"grant": ["limit=memory_mib:256"]}),
        ("limit=memory_mib:257", LEAVING, None),
        ("limit=memory_mib:257", {**LEAVING, "usual_limits": {}}, {"grant": ["limit=memory_mib:257"]}),
        ("level=filtered", LIMITED, {"grant": ["level=filtered"]}),
        ("level=isolated", LIMITED, None),
        ("level=isolated", {**LIMITED, "level": "dedicated"}, {"grant": ["level=isolated"]}),
        ("level=default", {**LIMITED, "level": "dedicated"}, {"grant": ["level=default"]}),
        ("level=dedicated", {**LIMITED, "level": "dedicated"}, None),
        ("level=filtered", {"withheld": ("level=default",), "level": "dedicated"}, None),
        ("feature=threads", {}, {"grant": ["feature=threads"]}),
        ("feature=threads", {"withheld": ("feature=threads",)}, {"grant": ["feature=threads"]}),
        ("feature=threads", {"features": frozenset({"threads"})}, None),
        ("feature=threads", {"permits": ("feature=threads",)}, None),
        ("prefix=/shop", {}, {"grant": ["prefix=/shop"]}),
        ("prefix=/shop", {"permits": ("prefix=/shop/",)}, None),
        ("prefix=/shop", {"permits": ("prefix=/shop",), "withheld": ("prefix=/shop/",)}, {"grant": ["prefix=/shop"]}),
        ("schedule=a@every_s:60@b", {"withheld": ("schedule=a@every_s:60@b",)}, {"grant": ["schedule=a@every_s:60@b"]}),
        ("schedule=a@every_s:60@b", {}, None),
        ("dependency=acme.base", {"withheld": ("dependency=acme.base",)}, None),
        ("host=*", {"withheld_hosts": HOSTS}, {"hosts": ["*"]}),
        ("host=*", {"withheld_hosts": HOSTS[1:], "hosts": HOSTS[:1]}, None),
        ("host=*", {"declares_hosts": False, "hosts": HOSTS}, {"hosts": ["*", *HOSTS]}),
        ("host=*", {"declares_hosts": False, "hosts": ("*",)}, None),
        ("host=* host=api.example.org:8443", {"withheld_hosts": HOSTS}, {"hosts": ["*", HOSTS[1]]}),
        ("host=* host=api.example.org:8443", {"hosts": HOSTS[:1]}, {"hosts": [*HOSTS]}),
    ],
)
def test_what_is_consented_to_later_is_granted_to_the_version_that_is_there(accept, found, expected):
    request = asked(has("active", **found), wanted(accept=tuple(accept.split())))
    assert request == (expected and (f"PUT {BY_ID}/grants", expected))


def test_range_is_met_by_its_publisher_alone():
    ranged = fleets.plugin(identity=None, versions="^1.0", publisher="acme")
    assert asked(has("active"), ranged) is None
    assert asked(has("active", msgspec.structs.replace(OLD, publisher="other")), ranged)[0] == "take"
    assert asked(has("active", msgspec.structs.replace(OLD, version="2.0.0")), ranged)[0] == "take"


def test_import_says_all_that_the_operator_signed_of_the_bundle():
    """A controller chooses the file: of another plugin, publisher or version nothing is placed."""
    ranged = fleets.plugin(identity=None, versions="^1.0", publisher="acme")
    file = {"name": f"{'a' * 64}.tar", "sha256": "a" * 64, "id": "acme.demo", "accept": []}
    nothing = planning.Has(id="acme.demo")
    assert asked(nothing, ranged)[1] == {**file, "publisher": "acme", "versions": "^1.0"}
    assert asked(nothing, wanted())[1] == {**file, "identity": OLD.identity, "allow_downgrade": True}


def test_lower_version_takes_the_operators_word_for_this_very_one():
    """An identity is that word; a range, of which the controller picks, is not."""
    lower = candidate(OLD, needs_downgrade=True)
    assert asked(has("active", NEW, candidate=lower), wanted())[1] == {"accept": [], "allow_downgrade": True}
    assert asked(planning.Has(id="acme.demo"), wanted())[1]["allow_downgrade"] is True
    ranged = fleets.plugin(identity=None, versions="1.0.0", publisher="acme")
    assert asked(has("active", NEW, candidate=lower), ranged)[1] == {"accept": []}
    assert "allow_downgrade" not in asked(planning.Has(id="acme.demo"), ranged)[1]
    assert asked(has("active", NEW, kept=(OLD,)), ranged)[0] == "take"


def test_what_was_settled_and_altered_by_hand_is_told_and_left():
    assert asked(has("disabled"), wanted(), settled=True) == ("blocked", "changed_here")
    # A version that the daemon gave up by itself was not altered by hand.
    bad = has("active", NEW, candidate=candidate(OLD, bad="unhealthy"))
    assert asked(bad, wanted(), settled=True) == ("blocked", "candidate_bad")


def test_release_that_somebody_went_back_from_is_wanted_again_by_a_later_intent_alone():
    """Not while the intent is the same: then an operator of the host went back by hand."""
    plugin = fleets.plugin(versions=">=1.1, <2", publisher="acme", identity=None)
    found = has("active", OLD, candidate=candidate(NEW, bad="rolled_back", left=100))
    assert asked(found, plugin, since=99) == ("blocked", "candidate_bad")
    assert asked(found, plugin, since=100) == (f"POST {BY_ID}/upgrade", {"accept": [], "retry": True})
    unwell = has("active", OLD, candidate=candidate(NEW, bad="unhealthy"))
    assert asked(unwell, plugin, since=100) == ("blocked", "candidate_bad")


def test_secret_is_bound_by_name_once_the_host_has_it():
    plugin = wanted(secrets=("TOKEN",))
    assert asked(has("installed"), plugin) == ("blocked", "secret_missing")
    bound = asked(has("installed"), plugin, secrets=frozenset({"TOKEN"}))
    assert bound == ("PUT secrets/TOKEN/plugins/acme.demo", {})
    assert asked(has("active", secrets=frozenset({"TOKEN"})), plugin) is None


def test_nothing_is_taken_without_a_bundle_that_is_assigned():
    assert asked(planning.Has(id="acme.demo"), wanted(), source=None) == ("blocked", "bundle_unknown")


_VERSIONS = st.sampled_from([OLD, NEW])
_HAS = st.builds(
    planning.Has,
    id=st.just("acme.demo"),
    status=st.sampled_from(["", "verified", "installed", "active", "disabled"]),
    now=_VERSIONS,
    candidate=st.none() | st.builds(candidate, _VERSIONS, needs_downgrade=st.booleans()),
    kept=st.lists(_VERSIONS, max_size=2).map(tuple),
    declared=st.just(("http:egress", "kv:read")),
    granted=st.sampled_from([(), ("kv:read",)]),
    withheld=st.sampled_from([(), ("limit=memory_mib:512", "schedule=a@every_s:60@b")]),
    withheld_hosts=st.sampled_from([(), ("a.example.org:443",)]),
    config=st.none() | st.just({"a": 1}),
)
_WANTED = st.builds(
    wanted,
    status=st.sampled_from(["installed", "active", "disabled"]),
    accept=st.sampled_from(
        [(), ("kv:read", "limit=memory_mib:512"), ("http:egress", "host=a.example.org:443", "feature=threads")]
    ),
    config=st.none() | st.just({"a": 2}),
)


@given(_HAS, _WANTED, st.booleans())
def test_every_step_is_in_the_table_and_accepts_what_was_signed_alone(found, plugin, settled):
    result = step(found, plugin, settled=settled)
    request = result.then if isinstance(result, planning.Take) else result
    if not isinstance(request, planning.Request):
        return
    assert node_daemon.allowed(request.method, request.parts)
    granted = {*request.body.get("accept", ()), *request.body.get("grant", ())}
    assert granted <= set(plugin.accept)
    assert set(request.body.get("hosts", ())) <= {"a.example.org:443"}
    assert not settled
