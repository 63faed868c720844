"""The harness for programs: protocol errors are reported with stderr, and no process is left behind."""

from __future__ import annotations

import pytest

from latticed.sdk.testing import Gate, LongLived, ProgramError, run_once

IGNORES = ["/bin/sh", "-c", "while read -r line; do :; done; sleep 60"]


def _sh(script):
    return ["/bin/sh", "-c", script]


HELLO = """read -r line; printf '{"jsonrpc":"2.0","id":1,"result":{}}\\n'"""
ANSWER = """printf '{"jsonrpc":"2.0","id":%s,"result":{"ok":true}}\\n'"""


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo sorry >&2; exit 3", r"the program ended|has closed its end"),
        ("read -r line; echo hello", "expected an object in a line of JSON, found b'hello'"),
        ("read -r line; echo '[1]'", "expected an object in a line of JSON"),
        (f"read -r line; {ANSWER.replace('%s', '9')}", "expected an answer to 1, found"),
        ("""read -r line; echo '{"id":1,"error":{"code":1}}'""", "initialize was answered with the error"),
    ],
)
def test_harness_names_the_reason_of_a_failed_start(script, words):
    plugin = LongLived(_sh(script), Gate())
    with pytest.raises(ProgramError, match=words):
        plugin.__enter__()
    assert plugin.returncode is not None


def test_harness_includes_stderr_in_the_failure():
    with pytest.raises(ProgramError, match=r"its stderr:\nsorry") as caught:
        LongLived(_sh("read -r line; echo sorry >&2; exit 3"), Gate()).__enter__()
    assert isinstance(caught.value, AssertionError), "a test that fails, not one that breaks"


def test_harness_times_out_on_a_silent_program():
    plugin = LongLived(IGNORES, Gate(), deadline_s=0.2)
    with pytest.raises(ProgramError, match=r"expected a line within 0\.2 s"):
        plugin.__enter__()
    assert plugin.returncode == -9


def test_program_that_reads_nothing_times_out():
    """A payload of 1 MiB fills the pipe."""
    with (
        pytest.raises(ProgramError, match=r"to read within 0\.3 s"),
        LongLived(_sh(f"{HELLO}; sleep 60"), Gate(), deadline_s=0.3) as plugin,
    ):
        plugin.invoke("x", "x" * (1 << 20))


def test_exception_in_the_test_ends_the_harness_program():
    """The test's own exception propagates."""
    plugin = LongLived(_sh(f"{HELLO}; read -r line; exit 0"), Gate())
    with pytest.raises(KeyError), plugin:
        raise KeyError
    assert plugin.returncode == 0


def test_program_that_ignores_shutdown_is_killed(monkeypatch):
    monkeypatch.setattr("latticed.sdk.programs.GRACE_S", 0.1)
    with LongLived(_sh(f"{HELLO}; read -r line; {ANSWER.replace('%s', '2')}; sleep 60"), Gate()) as plugin:
        pass
    assert plugin.returncode == -9


def test_missing_program_is_an_error():
    with pytest.raises(FileNotFoundError):
        LongLived(["/nowhere/plugin"], Gate()).__enter__()
    with pytest.raises(ProgramError, match="FileNotFoundError"):
        run_once(["/nowhere/plugin"], Gate(), "x")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("read -r line; echo sorry >&2", r"look was not answered; its stderr:\nsorry"),
        ("read -r line; echo hello", "expected an object in a line of JSON, found b'hello'"),
        ("read -r line; sleep 60", r"expected a line within 0\.3 s"),
    ],
)
def test_invocation_without_a_reply_names_what_came_instead(script, words):
    with pytest.raises(ProgramError, match=words):
        run_once(_sh(script), Gate(), "look", deadline_s=0.3)


def test_invoked_program_gets_its_request_and_answers():
    """The request and the answers of its host calls are lines of the protocol."""
    script = """
    IFS= read -r request
    printf '{"host_call":{"id":7,"method":"node.facts"}}\\n'
    IFS= read -r answer <&"$LATTICE_HOST_RESPONSE_FD"
    printf '{"ok":true,"result":[%s,%s]}\\n' "$request" "$answer"
    """
    found = run_once(_sh(script), Gate(["node:read"], answers={"node.facts": {"a": "ä"}}), "look", {"b": 1})
    response = {"id": 7, "ok": True, "result": {"a": "ä"}, "error": None}
    assert found["result"] == [{"action": "look", "payload": {"b": 1}}, {"host_response": response}]
