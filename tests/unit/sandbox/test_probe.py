"""The probe on this machine, also with user namespaces refused."""

from __future__ import annotations

import os

import pytest

from latticed.sandbox import levels, probe
from tests.house import children, confined, processes

SCRIPT = b"#!/bin/sh\necho hello\n"


def test_probe_of_this_machine_names_the_failed_step_of_each_lack():
    """The level is at least filtered, with threads, or the failure is known; so is that of each missing feature."""
    found = children.probed().provided
    assert found.level >= levels.Level.FILTERED or found.failure("filtered") is not None
    assert ("threads" in found.features) == (found.level >= levels.Level.FILTERED)
    for token in levels.FEATURES - found.features:
        assert found.failure(token) is not None, token


@pytest.mark.root
def test_root_gets_level_dedicated_and_other_users_isolated():
    """Both are probed on the same machine."""
    if os.getuid() != 0:
        pytest.skip("running a process under another uid needs uid 0")
    found = confined.run(SCRIPT, [], user=None)
    assert found["level"] == "dedicated"
    found = confined.run(SCRIPT, [], user=processes.STRANGER)
    assert found["level"] == "isolated"
    assert found["failures"]["dedicated"][0] == "EPERM at setresuid"
    assert "CAP_SETUID" in found["failures"]["dedicated"][1]


@pytest.mark.root
@pytest.mark.parametrize(
    ("how", "words", "fix"),
    [
        ("seccomp", "EPERM at unshare(user)", "RestrictNamespaces"),
        ("sysctl", "ENOSPC at unshare(user)", "max_user_namespaces"),
    ],
)
def test_host_without_user_namespaces_provides_filtered(how, words, fix):
    """The report has the failed step and its fix; a script runs at that level."""
    if os.getuid() != 0:
        pytest.skip("running a process under another uid needs uid 0")
    found = confined.run(SCRIPT, [{"level": "filtered"}], user=processes.STRANGER, refuse=how)
    assert found["level"] == "filtered"
    assert found["features"] == ["threads"]
    for token in ("isolated", "processes", "workdir"):
        assert found["failures"][token][0] == words
        assert fix in found["failures"][token][1]
    assert found["results"][0]["stdout"] == "hello\n"


def test_probe_child_past_its_deadline_is_killed():
    with children.spec_of("read forever", level="filtered", features=()) as spec:
        report, answer = probe.run(spec)
        assert (report.stage, answer) == (None, 1)  # /dev/null ends at once
    with children.spec_of("while :; do :; done", level="filtered", features=()) as spec:
        report, answer = probe.run(spec, deadline_s=0.2)
        assert (report.stage, answer) == (None, -9)


@pytest.mark.root
@pytest.mark.parametrize("policy", [0, 1, 2])
def test_programs_run_whatever_memfd_noexec_says(policy):
    """Where it forbids execution, they are copied into the sandbox's own root."""
    order = {"level": "isolated", "args": ["descriptors"], "limits": {"open_files": 32}}
    found = confined.run(confined.compiled("bombs"), [order], memfd_noexec=policy)
    assert found["level"] == "dedicated"
    assert found["results"][0]["stdout"].startswith("descriptors ")
    scripts = [{"level": "filtered"}, {"level": "isolated"}]
    found = confined.run(SCRIPT, scripts, memfd_noexec=policy)
    assert [result["stdout"] for result in found["results"]] == ["hello\n", "hello\n"]


@pytest.mark.root
def test_root_without_capabilities_uses_a_user_namespace():
    """Containers are like that. Without CAP_SETUID no child is started, since it would have uid 0."""
    if os.getuid() != 0:
        pytest.skip("running a process under another uid needs uid 0")
    script = b"#!/bin/sh\nid -u; echo $$\n"
    order = {"level": "isolated", "features": ["processes", "workdir"]}
    found = confined.run(script, [order], without="sys_admin")
    assert (found["level"], found["results"][0]["stdout"]) == ("dedicated", "65502\n2\n")
    found = confined.run(script, [], without="setuid")
    assert (found["level"], found["failures"]["filtered"][0]) == ("open", "EPERM at setresuid")
    assert "CAP_SETUID" in found["failures"]["filtered"][1]
