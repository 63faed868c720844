"""Plugins that this host cannot confine or execute are refused with the failed step and the fix."""

from __future__ import annotations

import inspect
import os
import struct
import sys

import pytest

from tests.house import bundles, confined_driver, hosting, programs

pytestmark = pytest.mark.daemon

_WITHOUT_USER_NAMESPACES = f"""
import ctypes, os, struct, sys
CLONE_NEWUSER = {confined_driver.CLONE_NEWUSER}
{inspect.getsource(confined_driver.refuse)}
refuse(CLONE_NEWUSER)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""As a unit with RestrictNamespaces=yes does."""
STEP, FIX = "EPERM at unshare(user)", "RestrictNamespaces=yes"
DEDICATED = {"sandbox": {"level": "dedicated"}}


@pytest.fixture(scope="module")
def host():
    with hosting.hosting() as host:
        yield host


def refused(answer, code="sandbox_unavailable"):
    assert (answer.status, answer.code) == (409, code), answer
    return answer.json()


def test_unsupported_sandbox_level_is_refused(host):
    """409 with the level, the failed step, its errno and a fix; the status is unchanged, and it is audited."""
    problem = refused(host.activated("acme.dedicated", programs.GREETER, runtime=DEDICATED))
    assert problem["detail"] == "needs dedicated, host gives isolated: EPERM at setresuid"
    assert "CAP_SETUID" in problem["hint"]
    record = host.daemon.plugin("acme.dedicated")
    assert (record["status"], record["runtime"]["state"]) == ("installed", "stopped")
    denied = host.daemon.events(action="plugin.status", target="acme.dedicated", decision="deny")
    assert [event["code"] for event in denied] == ["sandbox_unavailable"]
    done = host.daemon.ctl("activate", "acme.dedicated")
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "hint: " in done.stderr
    assert "CAP_SETUID" in done.stderr


def test_sandbox_floor_of_settings_applies_without_level_in_manifest(place, acme):
    """A plugin runs below the floor only if its manifest names a lower level."""
    place.set('[sandbox]\nfloor = "dedicated"')
    with place.running() as daemon:
        host = hosting.Host(daemon=daemon, author=acme)
        assert "needs dedicated" in refused(host.activated("acme.silent", programs.GREETER))["detail"]
        assert "needs dedicated" in refused(host.activated("acme.v1", programs.GREETER, v2=False))["detail"]
        modest = host.activated("acme.modest", programs.GREETER, runtime={"sandbox": {"level": "filtered"}})
        assert modest.json()["runtime"]["sandbox"].startswith("isolated")


def test_plugins_run_filtered_without_user_namespaces_and_a_low_floor(place, acme):
    """This holds under both protocols. What needs more than that is refused with the step that failed."""
    place.before = (sys.executable, "-c", _WITHOUT_USER_NAMESPACES)
    place.set('[sandbox]\nfloor = "filtered"')
    with place.running() as daemon:
        host = hosting.Host(daemon=daemon, author=acme)
        given = daemon.get("/api/health").json()["sandbox"]
        assert (given["level"], given["floor"]) == ("filtered", "filtered")
        assert next(one["step"] for one in given["missing"] if one["token"] == "isolated") == STEP
        for plugin_id, v2 in (("acme.speaking", True), ("acme.v1", False)):
            host.up(plugin_id, programs.GREETER, v2=v2)
            assert host.runtime(plugin_id)["sandbox"] == "filtered"
            assert host.result(plugin_id, "keep", "x") == "x"
        for token, wanted in (("processes", {"features": ["processes"]}), ("isolated", {"level": "isolated"})):
            problem = refused(host.activated(f"acme.{token}", programs.GREETER, runtime={"sandbox": wanted}))
            assert problem["detail"] == f"needs {token}, host gives filtered: {STEP}"
            assert FIX in problem["hint"]
            assert daemon.plugin(f"acme.{token}")["status"] == "installed"


def test_default_floor_refuses_plugins_without_user_namespaces(place, acme):
    """latticectl says what helps, also before the activation."""
    place.before = (sys.executable, "-c", _WITHOUT_USER_NAMESPACES)
    with place.running() as daemon:
        host = hosting.Host(daemon=daemon, author=acme)
        for plugin_id, v2 in (("acme.speaking", True), ("acme.v1", False)):
            problem = refused(host.activated(plugin_id, programs.GREETER, v2=v2))
            assert problem["detail"] == f"needs isolated, host gives filtered: {STEP}"
            assert FIX in problem["hint"]
            assert FIX in daemon.ctl("activate", plugin_id).stderr
        shown = daemon.ctl("health").stdout
        assert STEP in shown
        assert FIX in shown
        assert host.processes() == set()


def _elf(machine, *, kind=2, bits=2):
    return b"\x7fELF" + bytes([bits, 1, 1]) + bytes(9) + struct.pack("<HHI", kind, machine, 1) + bytes(44)


OTHER_MACHINE = {"x86_64": (183, "aarch64"), "aarch64": (62, "x86_64")}.get(os.uname().machine, (183, "aarch64"))
MISFITS = {
    "perl": (b"#!/usr/bin/perl\nprint 1;\n", "interpreter_not_allowed", 'found "perl"'),
    "env-bash": (b"#!/usr/bin/env bash\n:\n", "interpreter_not_allowed", 'found "bash"'),
    "nothing": (b"#!\n", "interpreter_not_allowed", 'found ""'),
    "text": (b"hello\n", "artifact_not_executable", "its first bytes are"),
    "other-machine": (_elf(OTHER_MACHINE[0]), "artifact_not_executable", f"it is built for {OTHER_MACHINE[1]}"),
    "library": (_elf(62, kind=1), "artifact_not_executable", "type 1"),
    "32-bit": (_elf(3, bits=1), "artifact_not_executable", "64-bit"),
}


@pytest.mark.parametrize("name", MISFITS)
@pytest.mark.parametrize("v2", [True, False], ids=["v2", "v1"])
def test_artifact_that_is_no_program_fails_to_arm(host, name, v2):
    """The problem has a code and what was found; there is no retry, which could not succeed."""
    artifact, code, words = MISFITS[name]
    answer = host.activated(f"acme.{name}-{'v2' if v2 else 'v1'}", artifact, v2=v2)
    assert (answer.status, answer.json()["status"]) == (200, "active")
    runtime = answer.json()["runtime"]
    assert (runtime["state"], runtime["last_error"]["code"]) == ("failed", code)
    assert words in runtime["last_error"]["message"]
    assert "next_retry_at" not in runtime


def test_unlisted_interpreter_is_refused(place, acme):
    """Only those in the settings are allowed, and each must be a program on this host."""
    place.set('[sandbox.interpreters]\nsh = "/bin/sh"\npython3 = "/nowhere/python3"\nnode = "/etc/passwd"')
    with place.running() as daemon:
        host = hosting.Host(daemon=daemon, author=acme)
        assert host.up("acme.sh", bundles.ARTIFACT)
        for name, first_line in (("python", b"#!/usr/bin/env python3\n"), ("node", b"#!/usr/bin/env node\n")):
            runtime = host.activated(f"acme.{name}", first_line).json()["runtime"]
            assert (runtime["state"], runtime["last_error"]["code"]) == ("failed", "interpreter_not_allowed")
