"""Required against provided levels and features: never less than required without an error."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.model import manifest
from latticed.model.fault import Fault
from latticed.sandbox import levels
from latticed.sandbox.levels import Chosen, Failure, HostSupport, Level, Provided, Required

UNSHARE = Failure(token="isolated", step="unshare(user)", errno=errno.EPERM, fix="the unit sets RestrictNamespaces=yes")
PROCESSES = Failure(
    token="processes", step="unshare(user)", errno=errno.EPERM, fix="the unit sets RestrictNamespaces=yes"
)
FILTERED = Provided(level=Level.FILTERED, features=frozenset({"threads"}), failures=(UNSHARE, PROCESSES))
DEDICATED = Provided(level=Level.DEDICATED, features=levels.FEATURES)


def test_highest_provided_level_is_chosen():
    """The required level is only the least."""
    found = levels.decide(Required(level=Level.FILTERED, features=frozenset({"threads"})), DEDICATED)
    assert found == Chosen(level=Level.DEDICATED, features=frozenset({"threads"}))


def test_refusal_names_level_step_errno_and_fix():
    found = levels.decide(Required(level=Level.ISOLATED), FILTERED)
    assert found == Fault(
        code="sandbox_unavailable",
        reason="needs isolated, host gives filtered: EPERM at unshare(user)",
        hint="the unit sets RestrictNamespaces=yes",
    )


def test_refusal_names_the_failure_of_the_first_missing_level():
    """If dedicated is required on a host that gives filtered, it says why the host does not give isolated."""
    found = levels.decide(Required(level=Level.DEDICATED), FILTERED)
    assert isinstance(found, Fault)
    assert found.reason == "needs dedicated, host gives filtered: EPERM at unshare(user)"


def test_missing_feature_is_refused_by_name():
    """The host does give the level that is required."""
    found = levels.decide(Required(level=Level.FILTERED, features=frozenset({"processes"})), FILTERED)
    assert isinstance(found, Fault)
    assert found.reason == "needs processes, host gives filtered: EPERM at unshare(user)"


def test_level_open_is_chosen_only_if_the_operator_allows_it():
    """This holds also on a host that gives no other level; a manifest has no word for it."""
    nothing = Provided(level=Level.OPEN)
    assert isinstance(levels.decide(Required(level=Level.OPEN), nothing), Fault)
    assert levels.decide(Required(level=Level.OPEN, open_=True), nothing) == Chosen(
        level=Level.OPEN, features=frozenset()
    )
    assert "open" not in manifest.SandboxLevel.__args__


def test_floor_of_settings_applies_only_without_level_in_manifest():
    silent = levels.required(manifest.SandboxSpec(), floor=Level.ISOLATED, needs=frozenset({"threads"}))
    assert silent == Required(level=Level.ISOLATED, features=frozenset({"threads"}))
    asked = levels.required(manifest.SandboxSpec(level="filtered", features=("workdir",)), floor=Level.ISOLATED)
    assert asked == Required(level=Level.FILTERED, features=frozenset({"workdir"}))


features = st.frozensets(st.sampled_from(sorted(levels.FEATURES)))


@given(wanted=st.sampled_from(Level), needs=features, given_level=st.sampled_from(Level), gives=features)
def test_chosen_level_and_features_are_never_less_than_required(wanted, needs, given_level, gives):
    """If the host has less, the refusal is sandbox_unavailable."""
    found = levels.decide(Required(level=wanted, features=needs), Provided(level=given_level, features=gives))
    if isinstance(found, Chosen):
        assert found.level == given_level >= max(wanted, Level.FILTERED)
        assert found.features == needs <= gives
    else:
        assert found.code == "sandbox_unavailable"
        assert given_level < max(wanted, Level.FILTERED) or needs - gives


@pytest.mark.parametrize(
    ("step", "error", "host", "words"),
    [
        ("unshare(user)", errno.EPERM, HostSupport(filtered_already=True), "RestrictNamespaces=yes"),
        ("unshare(user)", errno.ENOSPC, HostSupport(), "user.max_user_namespaces"),
        ("unshare(user)", errno.EPERM, HostSupport(unprivileged_userns_clone=0), "unprivileged_userns_clone"),
        ("unshare(net)", errno.EPERM, HostSupport(), "unshare(net)"),
        ("uid_map", errno.EPERM, HostSupport(apparmor_restricts_userns=1), "AppArmor"),
        ("bind(/usr/lib)", errno.EPERM, HostSupport(), "@mount"),
        ("landlock_create_ruleset", errno.EOPNOTSUPP, HostSupport(), "lsm="),
        ("setresuid", errno.EPERM, HostSupport(), "CAP_SETUID"),
        ("seccomp", errno.EINVAL, HostSupport(), "@sandbox"),
        ("execveat", errno.EACCES, HostSupport(memfd_noexec=2), "vm.memfd_noexec"),
    ],
)
def test_each_failed_step_has_a_hint_at_its_fix(step, error, host, words):
    """These are the steps that hosts are known to refuse."""
    assert words in levels.fix(step, error, host)


def test_level_is_found_by_its_token():
    """Manifests, settings and answers use the same tokens."""
    assert [Level.of(level.token) for level in Level] == list(Level)
    with pytest.raises(ValueError, match="expected open"):
        Level.of("loose")
